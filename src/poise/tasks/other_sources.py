"""Beyond mathematics: code (AceCode), instruction following (IF-RLVR), tool calling (ToolDial), six domains (GURU).

Rows whose ground truth cannot be judged by our rewards (an unknown constraint, a test that would have to trust the
program, an answer that needs a language model as its judge) are left out when they are loaded, not failed in training.
"""

from __future__ import annotations

import json
from typing import Any

from poise.rewards.code_tests import UnreadableTestsError, read_tests
from poise.rewards.constraints import CONSTRAINTS, UnknownConstraintError, read_constraints
from poise.tasks.files import as_answer
from poise.tasks.sources import Problem, Record, Source


def acecode(record: Record) -> Problem | None:
    """AceCode-87K (arXiv 2502.01718): `question` and `test_cases`, a list of asserts. V2 has `tests` instead."""
    tests = record.get("test_cases") or record["tests"]
    tests = json.loads(tests) if isinstance(tests, str) else list(tests)
    judged = [test for test in tests if _can_be_judged(json.dumps([test]))]
    if not judged:
        return None
    return Problem(record["question"], json.dumps({"asserts": judged}), info={"id": record.get("id", "")})


def if_rlvr(record: Record) -> Problem | None:
    """IF-RLVR (arXiv 2507.02833, allenai/IF_multi_constraints_upto5): `messages` and `ground_truth`.

    `ground_truth` is a Python literal, [{"instruction_id": [...], "kwargs": [...]}].
    """
    try:
        constraints = read_constraints(str(record["ground_truth"]))
    except UnknownConstraintError:
        return None
    if any(each.id not in CONSTRAINTS for each in constraints):
        return None
    answer = json.dumps([{"id": each.id, "kwargs": dict(each.arguments)} for each in constraints])
    asked = [message["content"] for message in record["messages"] if message["role"] == "user"]
    return Problem(asked[0], answer, info={"key": record.get("key", "")})


_TOOLDIAL = (
    "You are the system in a dialogue with a user. Decide what to do next: request, response, clarify, suggest, "
    "response fail, system bye, retriever call, or call. Answer with one JSON object and nothing else:\n"
    '{"name": "<the action>", "arguments": {}}\n'
    'For "call", the arguments are the name of the API and the parameters that are known so far:\n'
    '{"name": "call", "arguments": {"api_name": "...", "parameters": {"...": "..."}}}\n\nThe dialogue so far:\n'
)


def tooldial(record: Record) -> list[Problem]:
    """ToolDial (Shim et al., ICLR 2025): one problem for every system turn of a `dialogue`.

    A turn is {"User": {"message", ...}} or {"System": {"action", "message", "dialogue_state", "retriever_status",
    "api_response", ...}}. What is asked for is the next action, and for a call its API and parameters; the action
    instructions are ours, and POISE's own form of this task is not published. It is on GitHub (holi-lab/ToolDial), not
    on the hub: download train.json and test.json and give their folder as `path`.
    """
    history: list[str] = []
    problems: list[Problem] = []
    for turn in record["dialogue"]:
        if "User" in turn:
            history.append(f"User: {turn['User']['message']}")
            continue
        system = turn["System"]
        wanted = {"name": _action(system["action"]), "arguments": _call_arguments(system)}
        problems.append(Problem(_TOOLDIAL + "\n".join(history), json.dumps([wanted])))
        history += _system_lines(system)
    return problems


def _action(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _call_arguments(system: Record) -> dict[str, Any]:
    state = (system.get("dialogue_state") or {}).get("api_status")
    if _action(system["action"]) != "call" or not isinstance(state, dict):
        return {}
    given = {**(state.get("required_parameters") or {}), **(state.get("optional_parameters") or {})}
    known = {name: value for name, value in given.items() if value not in ("", None)}
    return {"api_name": state.get("api_name", ""), "parameters": known}


def _system_lines(system: Record) -> list[str]:
    lines = [f"System action: {_action(system['action'])}"]
    for label, key in (("Retriever", "retriever_status"), ("Result", "api_response"), ("System", "message")):
        if system.get(key):
            lines.append(f"{label}: {as_answer(system[key])}")
    return lines


# GURU's six domains, by the beginning of `data_source`, with the reward that judges each. The science answers (stem)
# are published for a language model as judge; only those that are numbers are kept.
_GURU = {"math": "math", "codegen": "code", "logic": "exact", "simulation": "exact", "table": "math", "stem": "math"}


def guru(record: Record) -> Problem | None:
    """GURU (arXiv 2506.14965, LLM360/guru-RL-92k): `data_source`, `prompt` messages, `reward_model.ground_truth`.

    The prompts carry their own instructions, so the template is plain. Ground truths of logic puzzles that are
    structures (grids, tables of houses) are left out; they need judges of their own. The hub's files differ in schema:
    where `datasets` cannot join them, download them and give their folder as `path`.
    """
    domain = str(record["data_source"]).split("__")[0]
    reward = _GURU.get(domain)
    truth = record["reward_model"]["ground_truth"]
    if reward is None or not _judgeable(truth, reward, domain):
        return None
    info = {"reward": reward, "data_source": record["data_source"]}
    return Problem(record["prompt"][-1]["content"], as_answer(truth), domain=domain, info=info)


def _judgeable(truth: Any, reward: str, domain: str) -> bool:
    if reward == "code":
        return isinstance(truth, str) and _can_be_judged(truth)
    if not isinstance(truth, str | int | float) or not str(truth).strip() or str(truth).lstrip().startswith(("[", "{")):
        return False
    return domain != "stem" or str(truth).replace(".", "", 1).replace("-", "", 1).replace(",", "").strip().isdigit()


def _can_be_judged(tests: str) -> bool:
    try:
        return bool(read_tests(tests))
    except UnreadableTestsError:
        return False


SOURCES = (
    Source(
        "acecode",
        acecode,
        reward="code",
        domain="code",
        template="function",
        hub=("TIGER-Lab/AceCode-87K", None),
        splits={"train": "train"},
        files={"all": ("acecode*", "*.parquet", "*.jsonl")},
        about="87k Python functions with synthesised asserts",
    ),
    Source(
        "if-rlvr",
        if_rlvr,
        reward="instructions",
        domain="instructions",
        template="plain",
        hub=("allenai/IF_multi_constraints_upto5", None),
        splits={"train": "train"},
        files={"all": ("if*", "*.parquet", "*.jsonl")},
        about="95k prompts with one to five verifiable constraints",
    ),
    Source(
        "tooldial",
        tooldial,
        reward="tools",
        domain="tools",
        template="plain",
        files={"train": ("tooldial_train*", "train.json*"), "test": ("tooldial_test*", "test.json*")},
        about="system turns of 11k dialogues with tools, from a local path",
    ),
    Source(
        "guru",
        guru,
        reward="mixed",
        domain="math",
        template="plain",
        hub=("LLM360/guru-RL-92k", None),
        splits={"train": "train"},
        files={"all": ("guru*", "*.parquet", "*.jsonl")},
        about="92k problems in six domains, one reward each",
    ),
)
