"""From command line words to settings: defaults < TOML file < flags, and one sentence for whatever does not fit."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from poise.errors import ConfigError
from poise.runs.configfile import at_home, read_settings, suggest

SettingsT = TypeVar("SettingsT")


_EXAMPLES = {"--config": "FILE.toml", "--resume": "auto", "--out": "FILE.html"}


class UsageError(ConfigError):
    """Command line words that mean nothing; the command exits with status 2."""


class HelpShown(Exception):  # noqa: N818 (nothing is wrong)
    """Help was asked for and printed; the command has nothing more to do."""


@dataclass(frozen=True)
class Words:
    """Command line words with the options that stand outside the settings taken out.

    Args:
        rest: words that are left for the settings.
        options: value of each option found, True for one that takes no value.
    """

    rest: list[str]
    options: dict[str, Any]


def take_options(argv: list[str], valued: tuple[str, ...] = (), switches: tuple[str, ...] = ()) -> Words:
    """Takes `--name value`, `--name=value` and `--switch` out of the words.

    Raises:
        UsageError: an option has no value.
    """
    rest: list[str] = []
    options: dict[str, Any] = {}
    words = map(at_home, argv)
    for word in words:
        name, equals, value = word.partition("=")
        if word in switches:
            options[word] = True
        elif name in valued:
            value = value if equals else next(words, "")
            if not value or (not equals and value.startswith("--")):
                raise UsageError(f"{name} needs a value, e.g. {name} {_EXAMPLES.get(name, 'VALUE')}")
            options[name] = value
        else:
            rest.append(word)
    return Words(rest, options)


def parse_settings(base: SettingsT, argv: list[str], prog: str, config: str | Path | None = None) -> SettingsT:
    """Settings from `base`, then a TOML file, then flags.

    Raises:
        ConfigError: the file has an unknown key or a wrong value.
        UsageError: a flag is unknown or has a wrong value.
        HelpShown: the flags ask for help.
    """
    if config is not None:
        base = read_settings(Path(config), base)
    return parse_flags(base, argv, prog)


def parse_flags(base: SettingsT, argv: list[str], prog: str) -> SettingsT:
    """Settings from `base` and flags; a flag is the field's name with dashes, whatever section it is in."""
    import tyro

    known, argv = flags_of(type(base)), [at_home(word) for word in argv]
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name.replace("_", "-") not in known:
            raise UsageError(f"unknown flag {name}{suggest(name, known)} (see {prog} --help)")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(tyro.conf.OmitArgPrefixes[type(base)], args=argv, prog=prog, default=base)  # pyright: ignore
    except SystemExit as stop:
        if not stop.code:
            raise HelpShown from None
        sentence = _sentence(said.getvalue())
        raise UsageError(f"{sentence}{_meant(sentence, known)} (see {prog} --help)") from None


def _meant(said: str, known: list[str]) -> str:
    """A clause that says what a word was meant for, where the word itself tells."""
    if (found := re.search(r"Unrecognized options: (\S+)", said)) is None:
        return "; several values are parted by spaces" if re.search(r"'[^' ]+,[^' ]+'", said) else ""
    if found[1].lower() in ("true", "false", "yes", "no"):
        return "; a flag that is on or off takes no value: --name, or --no-name"
    from poise.tasks.files import KINDS

    kind, data = Path(found[1]).suffix, "--data" if "--data" in known else "--task"
    by_kind = {".toml": "--config", **dict.fromkeys(KINDS, data)}
    is_model = "--model" in known and Path(found[1]).is_dir()
    flag = by_kind.get(kind) or ("--model" if is_model else "")
    return f"; did you mean {flag} {found[1]}?" if flag else ""


def show_help(base: Any, prog: str, epilogue: str) -> int:
    """Prints the help of a command's settings, and what the command takes besides; returns exit status 0."""
    with contextlib.suppress(HelpShown):
        parse_flags(base, ["--help"], prog)
    print(epilogue)
    return 0


def flags_of(kind: type) -> list[str]:
    """Every flag of a settings class."""
    names = ["--help"]
    for name, hint in get_type_hints(kind).items():
        dashed = name.replace("_", "-")
        names += flags_of(hint)[1:] if is_dataclass(hint) else [f"--{dashed}"]  # pyright: ignore
        names += [f"--no-{dashed}"] if hint is bool else []
    return names


def _sentence(box: str) -> str:
    """The first paragraph of a drawn error box, on one line: what lies between its title and its first rule.

    A terminal without box characters gets rules of hyphens, below the title too.

    >>> _sentence(" Value error\\n ----\\n  Error parsing --seeds: invalid choice\\n  ----\\n  For help, --help")
    'Error parsing --seeds: invalid choice'
    """
    said: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        is_rule = bool(text) and set(text) <= set("─╰╯-")
        if is_rule and said:
            break
        if text and not is_rule:
            said.append(text)
    # Which class refused a value is no news to whoever typed it.
    return (
        re.sub(r"^Error parsing \w*Settings: ", "", " ".join(said)).rstrip(".") or "the command line could not be read"
    )
