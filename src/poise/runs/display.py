"""What a run shows while it trains: a live table on a terminal, one line of key=value pairs a step anywhere else."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]
_ROWS = 12


def _share(name: str) -> Callable[[Record], str]:
    return lambda record: _number(record.get(name), ".4f")


# What a step says, in this order: (key of the line, heading of the table, value). The order is a promise to whoever
# reads the lines with a script; new keys go to the end.
FIELDS: tuple[tuple[str, str, Callable[[Record], str]], ...] = (
    ("reward", "reward", _share("reward")),
    ("predicted", "predicted", _share("poise/prediction_mean")),
    ("variance_ratio", "Var(A)/Var(r)", _share("poise/variance_ratio")),
    ("grad_norm", "grad norm", _share("grad_norm")),
    ("entropy", "entropy", _share("entropy")),
    ("length", "tokens", lambda record: _number(record.get("completions/mean_length"), ".1f")),
    ("seconds", "s/step", lambda record: _number(record.get("step_seconds"), ".2f")),
    ("rollouts", "rollouts", lambda record: str(record["rollouts"])),
    # What "predicted" is to be held against: the siblings' rewards, weighted as the probe is fitted.
    ("target", "to predict", _share("poise/target_mean")),
)


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else "-"


def step_line(record: Record, steps: int) -> str:
    """One step on one line: `step=12/100 reward=0.5234 predicted=0.5102 ...`; a missing value is `-`."""
    return " ".join([f"step={record['step']}/{steps}", *(f"{key}={show(record)}" for key, _, show in FIELDS)])


def evaluation_line(record: Record) -> str:
    """One held-out evaluation on one line, with its interval."""
    interval = f"low={record['low']:.4f} high={record['high']:.4f}"
    size = f"prompts={record['prompts']} samples={record['samples']} seconds={record['seconds']:.2f}"
    return f"held-out step={record['step']} accuracy={record['accuracy']:.4f} {interval} {size}"


class Display(Protocol):
    """Where a run's progress goes."""

    def note(self, sentence: str) -> None: ...

    def step(self, record: Record) -> None: ...

    def evaluation(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One line per event, flushed at once."""

    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self.steps = steps
        self.stream = stream or sys.stdout

    def _say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def note(self, sentence: str) -> None:
        self._say(sentence)

    def step(self, record: Record) -> None:
        self._say(step_line(record, self.steps))

    def evaluation(self, record: Record) -> None:
        self._say(evaluation_line(record))

    def close(self) -> None:
        pass


class LiveTable:
    """The last steps as a table under a progress bar, redrawn in place; notes scroll away above it."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.steps = steps
        self.recent: deque[Record] = deque(maxlen=_ROWS)
        self.evaluations: list[Record] = []
        self.live = Live(self.draw(), console=console or Console(), refresh_per_second=4)
        self.live.start()

    def draw(self) -> Group:
        """The picture of the run as it stands."""
        done = self.recent[-1]["step"] if self.recent else 0
        left = sum(record["step_seconds"] for record in self.recent) / max(1, len(self.recent)) * (self.steps - done)
        head = Text(
            f"step {done} of {self.steps}   about {left / 60:.1f} min left" if self.recent else "first step ..."
        )
        table = Table(box=None, pad_edge=False)
        for heading in ("step", *(heading for _, heading, _ in FIELDS)):
            table.add_column(heading, justify="right")
        for record in self.recent:
            table.add_row(str(record["step"]), *(show(record) for _, _, show in FIELDS))
        held_out = [Text(evaluation_line(record), style="bold") for record in self.evaluations[-3:]]
        bar = Table.grid()  # a bar of its own would not end its line
        bar.add_row(ProgressBar(total=self.steps, completed=done, width=72))
        return Group(head, bar, table, *held_out)

    def note(self, sentence: str) -> None:
        self.live.console.print(sentence, highlight=False, markup=False)

    def step(self, record: Record) -> None:
        self.recent.append(record)
        self.live.update(self.draw())

    def evaluation(self, record: Record) -> None:
        self.evaluations.append(record)
        self.live.update(self.draw())

    def close(self) -> None:
        self.live.stop()


class Silent:
    """For the processes of a distributed run that are not the first."""

    def note(self, sentence: str) -> None:
        pass

    def step(self, record: Record) -> None:
        pass

    def evaluation(self, record: Record) -> None:
        pass

    def close(self) -> None:
        pass


def open_display(steps: int) -> Display:
    """A live table if standard output is a terminal, else lines."""
    return LiveTable(steps) if sys.stdout.isatty() else Lines(steps)
