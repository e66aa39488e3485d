"""Datasets between the two engines, both ways and without loss: our rows (prompt, answer, domain, info) and verl's.

    prompt  -> prompt (text becomes one user message)      answer -> reward_model.ground_truth
    domain  -> data_source                                 info, and what else a row has -> extra_info

Only `prompt` must be there: a TRL dataset without an answer, a domain or info gets empty ones on verl's side and none
when it comes back. A row that came from verl carries the rest of its verl row in `info` under "verl", and becomes that
row again. Needs no verl; `poise data convert` calls `convert_file` and `convert_rows`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from poise.errors import ConfigError
from poise.rewards import check_row_names
from poise.tasks.files import read_file

Form = Literal["verl", "trl"]
_OPTIONAL = ("answer", "domain", "info")
_VERL_COLUMNS = ("data_source", "prompt", "reward_model")
_FOREIGN = "verl"


def to_verl(
    rows: Iterable[Mapping[str, Any]],
    split: str = "train",
    reward: str = "",
    prompt: str = "prompt",
    answer: str = "answer",
    domain: str = "unknown",
) -> list[dict[str, Any]]:
    """Our rows, or those of any TRL dataset with a prompt, as verl's.

    Args:
        rows: mappings with the columns prompt, answer, domain, info; further columns are kept in extra_info.
        split: noted in extra_info, as verl's own datasets do.
        reward: registered name of the reward that verifies the rows, for `poise.verl.reward.compute_score`; if empty,
            the reward of the task that `domain` names.
        prompt, answer: columns that hold the problem (text or messages) and the ground truth.
        domain: data_source of rows that have no domain; verl's own word for it if not given.

    Raises:
        ConfigError: a row has no prompt, or came from verl and has lost its domain, or holds what JSON cannot; or rows
            may not name that reward.
    """
    if reward:
        check_row_names(reward)
    return [_to_verl(row, index, split, reward, prompt, answer, domain) for index, row in enumerate(rows)]


def from_verl(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """verl's rows as ours.

    Raises:
        ConfigError: a row lacks a column, or holds what JSON cannot (images).
    """
    return [_from_verl(row, index) for index, row in enumerate(rows)]


def convert_file(source: Path, target: Path, to: Form, **options: str) -> int:
    """Convert a .parquet, .jsonl, .json or .csv file; the target's ending chooses its format.

    Args:
        options: as `to_verl` takes them.

    Returns:
        the number of rows.

    Raises:
        ConfigError: an unknown ending or form, no such file, or rows that cannot be converted.
    """
    _require_form(to)
    return convert_rows(read_file(source), target, to, **options)


def convert_rows(rows: list[dict[str, Any]], target: Path, to: Form, **options: str) -> int:
    """The same for rows that are at hand."""
    _require_form(to)
    write_rows(to_verl(rows, **options) if to == "verl" else from_verl(rows), target)
    return len(rows)


def info_of(extra_info: Mapping[str, Any]) -> str:
    """The `info` of a verl row's extra_info, for a verifier."""
    if _is_ours(extra_info):
        return str(extra_info["info"])
    return json.dumps(extra_info, ensure_ascii=False, default=str)


def _to_verl(
    row: Mapping[str, Any], index: int, split: str, reward: str, prompt: str, answer: str, domain: str
) -> dict[str, Any]:
    _require(row, (prompt,), index, f"{prompt}, and as a rule answer, domain and info (--prompt, --answer name others)")
    problem, truth, info = row[prompt], row.get(answer), row.get("info")
    foreign = _foreign_part(info) if isinstance(info, str) else None
    if foreign is not None:
        _require(row, ("domain",), index, "prompt, domain and info, as a row that came from verl has them")
        return {"data_source": row["domain"], "prompt": problem, **foreign}
    # What verl's side holds in another form or under another name, or lacks, comes back from the copy in `columns`.
    renamed = {name for name, column in (("prompt", prompt), ("answer", answer)) if name != column}
    fits = ["prompt", *(column for column in _OPTIONAL if isinstance(row.get(column), str))]
    plain = [column for column in fits if column not in renamed]
    others = {key: value for key, value in row.items() if key not in plain}
    return {
        "data_source": row["domain"] if "domain" in plain else domain,
        "prompt": [{"role": "user", "content": problem}] if isinstance(problem, str) else problem,
        "reward_model": {"style": "rule", "ground_truth": "" if truth is None else _text(truth, index)},
        "extra_info": {
            "index": index,
            "split": split,
            "reward": reward,
            "info": "{}" if info is None else _text(info, index),
            "is_plain_prompt": isinstance(problem, str),
            "plain": ",".join(plain),
            "columns": _text(others, index),
        },
    }


def _from_verl(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    _require(row, _VERL_COLUMNS, index, "data_source, prompt and reward_model")
    extra_info = row.get("extra_info") or {}
    truth = row["reward_model"].get("ground_truth")
    if _is_ours(extra_info):
        prompt = row["prompt"][0]["content"] if extra_info["is_plain_prompt"] else row["prompt"]
        held = {"prompt": prompt, "answer": truth, "domain": row["data_source"], "info": extra_info["info"]}
        plain = {name: held[name] for name in extra_info["plain"].split(",") if name}
        return {**plain, **json.loads(extra_info["columns"])}
    rest = {key: value for key, value in row.items() if key not in ("data_source", "prompt")}
    info, answer = _text({_FOREIGN: rest}, index), _text(truth, index)
    return {"prompt": row["prompt"], "answer": answer, "domain": row["data_source"], "info": info}


def _text(value: Any, index: int) -> str:
    """Text as it is, anything else as JSON."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise ConfigError(f"row {index} holds what a text row cannot ({error}); only text can be converted") from error


def _is_ours(extra_info: Mapping[str, Any]) -> bool:
    return {"info", "is_plain_prompt", "plain", "columns"} <= set(extra_info)


def _foreign_part(info: str) -> dict[str, Any] | None:
    """The rest of the verl row that a row came from."""
    try:
        kept = json.loads(info)
    except json.JSONDecodeError:
        return None
    foreign = kept[_FOREIGN] if isinstance(kept, dict) and set(kept) == {_FOREIGN} else None
    return foreign if isinstance(foreign, dict) else None


def _require_form(to: str) -> None:
    if to not in ("verl", "trl"):
        raise ConfigError(f"data is converted to 'verl' or 'trl', got {to!r}")


def _require(row: Mapping[str, Any], columns: Iterable[str], index: int, named: str) -> None:
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise ConfigError(f"row {index} has no {', '.join(missing)}; expected the columns {named}, got {sorted(row)}")


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows to a .parquet or .jsonl file, in a folder that is made if it is not there."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"{path} is neither .parquet nor .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
