"""The command line: `poise COMMAND`. One table of commands, and one place where errors become sentences.

A command is a line in `COMMANDS`; its module is imported only when it is run, so that `poise --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from poise import __version__
from poise.errors import PoiseError

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("poise.cli.train:main", "train a model with verifiable rewards"),
    "eval": ("poise.cli.evaluate:main", "avg@k, pass@k and maj@k of a model on a task, with intervals"),
    "lab": ("poise.cli.lab:main", "studies: is the probe any good, does it lower the variance, does it learn faster"),
    "doctor": ("poise.cli.doctor:main", "check the environment, a model and a dataset before a run is paid for"),
    "data": ("poise.cli.data:main", "look at a task or dataset as a run would see it"),
    "report": ("poise.cli.report:main", "one HTML file, plots and a summary from run folders"),
}
_ABOUT = "The value baseline that your policy already computes, for RL with verifiable rewards."


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status (0 done, 1 could not be done, 2 misunderstood, 3 unexpected)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words and words[0] in ("-V", "--version", "version"):
        print(f"poise {__version__}")
        return 0

    def run() -> int:
        from poise.cli.table import run_command

        return run_command("poise", COMMANDS, words, _ABOUT)

    return _guarded(run, debug)


def _guarded(run: Callable[[], int], debug: bool) -> int:
    """The exit status of a command; an error becomes one sentence on standard error."""
    from poise.cli.parse import HelpShown, UsageError

    try:
        return run()
    except HelpShown:
        return 0
    except PoiseError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:  # `poise ... | head`: whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        if said := _of_the_disk(error):
            _complain(said)
            return 1
        _complain(f"unexpected {type(error).__name__}: {error} (--debug shows where)")
        return 3


def _of_the_disk(error: Exception) -> str:
    """A sentence for a full disk or a place that cannot be read or written; empty for any other error.

    Writers of tensors and tables wrap the system's error in classes of their own, so a full disk is known by words.
    """
    if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
        return f"the disk is full ({error}); make room, then give the same command again: it goes on from what is there"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"cannot use {error.filename}: {error.strerror}; change its permissions or name another place"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}; name another place"
    return ""


def _complain(message: str) -> None:
    print(f"poise: {' '.join(message.split())}", file=sys.stderr)
