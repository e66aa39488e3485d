"""Published sources: each schema mapped from small records of the same form, and judged by its reward."""

import json
import tomllib
from pathlib import Path

import pytest
from datasets import Dataset

from poise.errors import ConfigError
from poise.rewards import names as reward_names
from poise.rewards import verifier
from poise.tasks import load_task, names, parse_options, prompt_text, question_text, reward_of
from poise.tasks.other_sources import guru, tooldial
from poise.tasks.templates import TEMPLATES, fill

ALL = 1e-9  # a held-out share that leaves every row in train


@pytest.fixture
def parquet(tmp_path):
    def write(records):
        Dataset.from_list(records).to_parquet(tmp_path / "data.parquet")
        return str(tmp_path)

    return write


def test_dapo_in_both_published_forms(parquet):
    wrapped = [{"role": "user", "content": fill("dapo", "Find $x$ if $x+1=3$.")}]
    original = {
        "data_source": "math_dapo",
        "prompt": wrapped,
        "ability": "MATH",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": "a"},
    }
    processed = {"prompt": "Find $x$ if $x+1=3$.", "solution": "2", "data_source": "math_dapo"}
    for record in (original, processed):
        dataset = load_task("dapo-math-17k", "train", path=parquet([record]), held_out=ALL)
        assert question_text(dataset[0]) == "Find $x$ if $x+1=3$."
        assert dataset[0]["prompt"] == wrapped
        assert (dataset[0]["answer"], dataset[0]["domain"]) == ("2", "math")


def test_dapo_keeps_english_only(parquet):
    records = [{"prompt": "求 $x$ 的值。", "solution": "1"}, {"prompt": "Find $x$.", "solution": "1"}]
    dataset = load_task("dapo-math-17k", "train", path=parquet(records), held_out=ALL)
    assert [question_text(row) for row in dataset] == ["Find $x$."]


def test_deepscaler_and_math(parquet):
    dataset = load_task(
        "deepscaler", "train", path=parquet([{"problem": "P", "answer": r"\frac{1}{2}", "solution": ""}]), held_out=ALL
    )
    assert dataset[0]["answer"] == r"\frac{1}{2}"
    records = [
        {"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": r"So $\boxed{x^{2}}$."},
        {"problem": "no box", "level": "Level 1", "type": "Algebra", "solution": "It is obvious."},
    ]
    folder = parquet(records)
    dataset = load_task("math", "train", path=folder + "/data.parquet", held_out=ALL)
    assert dataset["answer"][:] == ["x^{2}"]
    assert json.loads(dataset[0]["info"])["level"] == "Level 5"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So $x = \boxed 2$.", "2"),
        (r"So $\boxed5$.", "5"),
        (r"It is $\boxed \frac{1}{2}.$", r"\frac{1}{2}"),
        (r"$x$ is \boxed{3} and \boxed{4}.", "3, 4"),
        (r"First $\boxed{3}$. After some more thought it is $\boxed{4}$.", "4"),
    ],
)
def test_boxes_of_math_without_braces_and_side_by_side(parquet, solution, answer):
    path = parquet([{"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": solution}])
    dataset = load_task("math", "train", path=path + "/data.parquet", held_out=ALL)
    assert dataset["answer"][:] == [answer]


def test_whole_number_answers_of_competitions(parquet):
    folder = parquet([{"problem_idx": 1, "answer": 33, "problem": "Find it.", "problem_type": ["Algebra"]}])
    for name in ("aime25", "aime26", "hmmt25", "brumo25", "amc24"):
        dataset = load_task(name, "test", path=folder + "/data.parquet")
        assert (dataset[0]["answer"], question_text(dataset[0])) == ("33", "Find it.")
        assert verifier(reward_of(name))("Answer: 33", dataset[0]).score == 1.0


def test_amc24_asks_for_its_files():
    with pytest.raises(ConfigError, match="no known home on the hub"):
        load_task("amc24", "test")


def test_acecode_keeps_the_tests_that_can_be_judged(parquet, bubblewrap_or_skip):
    records = [
        {
            "id": "a",
            "question": "Write add(a, b).",
            "test_cases": ["assert add(1, 2) == 3", "assert [add(i, i) for i in range(2)] == [0, 2]", "x = 1"],
        },
        {"id": "b", "question": "Nothing to judge by.", "test_cases": ["assert True"]},
    ]
    dataset = load_task("acecode", "train", path=parquet(records), held_out=ALL)
    assert len(dataset) == 1
    assert json.loads(dataset[0]["answer"]) == {"asserts": ["assert add(1, 2) == 3"]}
    assert dataset[0]["domain"] == "code"
    said = "```python\ndef add(a, b):\n    return a + b\n```"
    assert verifier(reward_of("acecode"))(said, dataset[0]).score == 1.0


def test_if_rlvr_drops_constraints_that_nobody_can_check(parquet):
    def record(key, truth):
        return {"key": key, "messages": [{"role": "user", "content": f"Write {key}."}], "ground_truth": truth}

    good = "[{'instruction_id': ['punctuation:no_comma', 'keywords:word_once'], 'kwargs': [None, {'keyword': 'tea'}]}]"
    unknown = "[{'instruction_id': ['no:such'], 'kwargs': [None]}]"
    dataset = load_task("if-rlvr", "train", path=parquet([record("a", good), record("b", unknown)]), held_out=ALL)
    assert [prompt_text(row["prompt"]) for row in dataset] == ["Write a."]
    verify = verifier(reward_of("if-rlvr"))
    assert verify("One cup of tea.", dataset[0]).score == 1.0
    assert verify("Tea, and tea.", dataset[0]).score == 0.0


DIALOGUE = {
    "source": "a",
    "target": "b",
    "dialogue": [
        {"User": {"message": "What is the weather in Oslo?", "action": "inform_intent_clear"}},
        {
            "System": {
                "action": "retriever_call",
                "thought": "",
                "message": "",
                "retriever_status": {"retriever_call": "true", "retrieved_api": {"weather": 0.9}},
                "api_response": "",
                "dialogue_state": {"api_confirmed": "false", "api_status": "none"},
            }
        },
        {
            "System": {
                "action": "call",
                "thought": "",
                "message": "",
                "retriever_status": "",
                "api_response": {"temperature": -3},
                "dialogue_state": {
                    "api_confirmed": "true",
                    "api_status": {
                        "api_name": "weather",
                        "required_parameters": {"city": "Oslo"},
                        "optional_parameters": {"unit": ""},
                    },
                },
            }
        },
    ],
}


def test_tooldial_asks_for_the_next_action_of_every_system_turn(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([DIALOGUE]))
    dataset = load_task("tooldial", "train", path=str(tmp_path))
    assert len(dataset) == 2
    assert json.loads(dataset[0]["answer"]) == [{"name": "retriever call", "arguments": {}}]
    call = {"name": "call", "arguments": {"api_name": "weather", "parameters": {"city": "Oslo"}}}
    assert json.loads(dataset[1]["answer"]) == [call]
    assert "User: What is the weather in Oslo?" in prompt_text(dataset[0]["prompt"])
    assert "retrieved_api" not in prompt_text(dataset[0]["prompt"])
    assert '"weather": 0.9' in prompt_text(dataset[1]["prompt"])
    assert '"temperature"' not in prompt_text(dataset[1]["prompt"])
    verify = verifier(reward_of("tooldial"))
    assert verify(json.dumps(call), dataset[1]).score == 1.0
    assert verify(json.dumps({"name": "call", "arguments": {}}), dataset[1]).score == 0.0
    assert len(tooldial(DIALOGUE)) == 2


def guru_record(source, truth):
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": f"{source}?"}],
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": 1},
    }


def test_guru_gives_each_row_the_reward_of_its_domain(tmp_path):
    records = [
        guru_record("math__combined_54.4k", "7"),
        guru_record("codegen__taco_8.8k", json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})),
        guru_record("logic__ordering_puzzle_1.9k", "the red book"),
        guru_record("logic__zebra_puzzle_1.3k", json.dumps({"header": [], "rows": []})),
        guru_record("stem__web_3.6k", "an argument in words"),
        guru_record("stem__web_3.6k", "3.5"),
        guru_record("unheard__of", "1"),
    ]
    (tmp_path / "guru.jsonl").write_text("\n".join(map(json.dumps, records)))
    dataset = load_task("guru", "train", path=str(tmp_path), held_out=ALL)
    assert dataset["domain"][:] == ["math", "codegen", "logic", "stem"]
    verify = verifier(reward_of("guru"))
    by_domain = {row["domain"]: row for row in dataset}
    assert verify(r"\boxed{7}", by_domain["math"]).score == 1.0
    assert verify("<answer>The red book</answer>", by_domain["logic"]).score == 1.0
    assert verify("anything", {"info": "{}"}).failure == "the row's info names no reward"
    assert verify("anything", {"info": '{"reward": "mixed"}'}).score is None


def test_gurus_leetcode_checks_are_read():
    check = "def check(candidate):\n    assert candidate(nums = [1, 2]) == 3\n\ncheck(Solution().total)\n"
    problem = guru(guru_record("codegen__leetcode2k_1.3k", json.dumps({"functional": check})))
    assert problem.info["reward"] == "code"
    free = "def check(candidate):\n    for i in range(3):\n        assert candidate(i)\n\ncheck(f)\n"
    assert guru(guru_record("codegen__leetcode2k_1.3k", json.dumps({"functional": free}))) is None


def test_every_task_names_a_reward_that_exists_and_a_template_that_exists():
    known = set(reward_names())
    for name in names():
        if not name.endswith("..."):
            assert reward_of(name) in known, name
    for template in TEMPLATES:
        assert "P?" in fill(template, "P?")
        assert fill(template, "{odd} {0}").count("{odd} {0}") == 1


def test_the_real_loading_call_on_a_folder_of_the_hubs_layout(parquet, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = parquet([{"q": f"What is {i}?", "a": i, "topic": "sums"} for i in range(20)])
    options = {"prompt": "q", "answer": "a", "domain": "topic", "held_out": 0.3}
    train, test = (load_task(f"hub:{folder}", split, **options) for split in ("train", "test"))
    assert len(train) + len(test) == 20
    assert set(train["domain"]) == {"sums"}
    with pytest.raises(ConfigError, match="cannot load the split 'train' of /no/such/folder from the hub"):
        load_task("hub:/no/such/folder", "train")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    from poise.tasks import files

    def refuse(*arguments, **options):
        assert arguments == ("open-r1/DAPO-Math-17k-Processed", "en")
        assert options == {"split": "train", "revision": None}
        raise ConnectionError("offline")

    monkeypatch.setattr(files, "load_dataset", refuse)
    with pytest.raises(
        ConfigError, match=r"open-r1/DAPO-Math-17k-Processed \(en\) from the hub: ConnectionError: offline"
    ):
        load_task("dapo-math-17k", "train")


@pytest.mark.parametrize("recipe", ["qwen3-4b-dapo-math", "r1-distill-1.5b-dapo-math", "olmo3-7b-guru"])
def test_the_papers_recipes_name_tasks_and_options_that_exist(recipe):
    path = Path(__file__).parents[2] / "recipes" / recipe
    data = tomllib.loads((path / "config.toml").read_text())["data"]
    options = dict(option.split("=") for option in data["task_options"])
    with pytest.raises(ConfigError, match="neither a file nor a folder"):  # the options were accepted before the path
        load_task(data["task"], "train", path="/no/such/place", **parse_options(options))
    assert reward_of(data["eval_task"]) == "math"
    assert "Not run here" in (path / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("gsm8k", {"question": "?", "answer": 5}),
        ("gsm8k", {"question": "?", "answer": None}),
        ("svamp", {"Body": None, "Question": "?", "Answer": 1}),
        ("mawps", {"input": "?", "target": "1/2"}),
        ("acecode", {"question": "?", "test_cases": "not json"}),
        ("if-rlvr", {"messages": [], "ground_truth": '[{"id": "punctuation:no_comma"}]'}),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path, name, record):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=f"record 1 does not have the schema of '{name}'"):
        load_task(name, "train", path=str(path))
