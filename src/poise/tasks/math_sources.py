"""Mathematics: the paper's training sets and its seven evaluation sets, and word problems for small models.

Each converter states the schema that it reads. Hub names and columns are those of the dataset cards in 2025 and 2026;
where a card could not be seen, the docstring says so, and the option `path` takes local files of the same schema.
"""

from __future__ import annotations

import re

from poise.rewards.answers import after_hashes, final_answers
from poise.tasks.files import as_answer
from poise.tasks.sources import Problem, Record, Source
from poise.tasks.templates import TEMPLATES

# Han characters mark the Chinese half of DAPO-Math-17k.
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# `$\boxed 2$`, as some solutions have it: up to the end of the formula.
_UNBRACED_BOX = re.compile(r"\\boxed\s*([^\s{$][^$]{0,80})\$")
_DAPO_BEFORE, _DAPO_AFTER = TEMPLATES["dapo"].split("{question}")


def gsm8k(record: Record) -> Problem:
    """GSM8K (arXiv 2110.14168): `question`, and `answer` that ends in `#### number`."""
    return Problem(record["question"], after_hashes(record["answer"]).replace(",", ""))


def svamp(record: Record) -> Problem:
    """SVAMP (arXiv 2103.07191): `Body` and `Question`, `Answer` as a float."""
    body = record["Body"].strip()
    question = f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {record['Question'].strip()}"
    return Problem(question, as_answer(_number(record["Answer"])), info={"type": record.get("Type", "")})


def mawps(record: Record) -> Problem:
    """MAWPS (Koncel-Kedziorski et al. 2016): `input` and `target`."""
    return Problem(record["input"], as_answer(_number(record["target"])))


def dapo(record: Record) -> Problem | None:
    """DAPO-Math-17k (arXiv 2503.14476), English problems only.

    Reads the original (`prompt` as messages in DAPO's template, `reward_model.ground_truth`) and open-r1's processed
    form (`prompt` as text, `solution`). The template is taken off, so that another can be put on.
    """
    prompt = record["prompt"]
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    question = text.removeprefix(_DAPO_BEFORE).removesuffix(_DAPO_AFTER).strip()
    if _HAN.search(question):
        return None
    answer = record["solution"] if record.get("solution") else record["reward_model"]["ground_truth"]
    return Problem(question, as_answer(answer))


def deepscaler(record: Record) -> Problem | None:
    """DeepScaleR-Preview (agentica-org, 40,315 rows): `problem`, `answer`, `solution`."""
    return Problem(record["problem"], record["answer"]) if str(record["answer"]).strip() else None


def hendrycks_math(record: Record) -> Problem | None:
    """MATH (arXiv 2103.03874): `problem`, `level`, `type` and a `solution` whose last box is the answer.

    Boxes side by side are one answer. Also MATH-500's form, with the `answer` on its own.
    """
    answers = [str(record["answer"])] if record.get("answer") else final_answers(record["solution"])
    if not answers:
        answers = [box.strip(" .") for box in _UNBRACED_BOX.findall(record["solution"])[-1:]]
    if not answers:
        return None
    kept = {key: record[key] for key in ("level", "type", "subject") if key in record}
    return Problem(record["problem"], ", ".join(answers), info=kept)


def competition(record: Record) -> Problem:
    """AMC, AIME, HMMT, BRUMO: `problem` (or `question`) and `answer`, as text or number."""
    question = record.get("problem") or record.get("Problem") or record["question"]
    answer = record["answer"] if "answer" in record else record["Answer"]
    return Problem(str(question), as_answer(answer))


def _number(value: object) -> object:
    return float(value) if isinstance(value, str) else value


def _competition(name: str, hub: str | None, split: str, about: str) -> Source:
    return Source(
        name,
        competition,
        hub=(hub, None) if hub else None,
        splits={"test": split},
        files={"all": (f"{name}*",)},
        evaluation_only=True,
        about=about,
    )


def _mawps(name: str, pattern: str, about: str) -> Source:
    return Source(name, mawps, files={"all": (pattern,)}, near_copies=True, about=about)


SOURCES = (
    Source(
        "dapo-math-17k",
        dapo,
        hub=("open-r1/DAPO-Math-17k-Processed", "en"),
        splits={"train": "train"},
        files={"all": ("dapo*", "*.parquet", "*.jsonl")},
        about="17k competition problems with whole-number answers; the paper's training set",
    ),
    Source(
        "deepscaler",
        deepscaler,
        hub=("agentica-org/DeepScaleR-Preview-Dataset", None),
        splits={"train": "train"},
        files={"all": ("deepscaler*", "*.parquet", "*.jsonl", "*.json")},
        about="40k competition problems",
    ),
    Source(
        "math",
        hendrycks_math,
        hub=("DigitalLearningGmbH/MATH-lighteval", None),
        splits={"train": "train", "test": "test"},
        files={"train": ("math_train*", "train*"), "test": ("math_test*", "test*")},
        about="12.5k competition problems in seven subjects",
    ),
    Source(
        "math500",
        hendrycks_math,
        hub=("HuggingFaceH4/MATH-500", None),
        splits={"test": "test"},
        files={"all": ("math500*", "MATH-500*", "test*")},
        evaluation_only=True,
        about="500 problems of MATH's test split",
    ),
    Source(
        "gsm8k",
        gsm8k,
        hub=("openai/gsm8k", "main"),
        splits={"train": "train", "test": "test"},
        files={"train": ("gsm8k_train.*", "train*"), "test": ("gsm8k_test.*", "test*")},
        about="8.5k grade-school word problems",
    ),
    Source(
        "svamp",
        svamp,
        hub=("ChilleD/SVAMP", None),
        splits={"train": "train", "test": "test"},
        files={"train": ("svamp_train*",), "test": ("svamp_test*",), "all": ("svamp*",)},
        near_copies=True,
        about="1k one-step",
    ),
    _mawps("mawps", "mawps*", "2k word problems of one and two steps"),
    _mawps("mawps-singleop", "mawps_singleop*", "word problems with a single operation"),
    _mawps("mawps-addsub", "mawps_addsub*", "word problems of adding and subtracting"),
    _competition("amc23", "math-ai/amc23", "test", "40 problems of AMC 2023"),
    # No card of an AMC 2024 set could be seen; its files are taken from a local path.
    _competition("amc24", None, "test", "problems of AMC 2024, from a local path"),
    _competition("aime24", "HuggingFaceH4/aime_2024", "train", "30 problems of AIME 2024"),
    _competition("aime25", "MathArena/aime_2025", "train", "30 problems of AIME 2025"),
    _competition("aime26", "MathArena/aime_2026", "train", "30 problems of AIME 2026"),
    _competition("hmmt25", "MathArena/hmmt_feb_2025", "train", "30 problems of HMMT February 2025"),
    _competition("brumo25", "MathArena/brumo_2025", "train", "30 problems of BRUMO 2025"),
)
