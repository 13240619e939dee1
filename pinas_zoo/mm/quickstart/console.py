"""The display of a running job: a bar with the remaining time for each stage, or plain lines without a terminal."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn

__all__ = ['Display', 'Position', 'read_position']

#: Lines of mmengine's logger, of tqdm, and of tools that count what they train, each with their progress.
PATTERNS = (
    re.compile(r'(?:Iter|Epoch)\((?P<phase>train|val|test)\)(?: \[\d+\])? *\[ *(?P<done>\d+)/(?P<total>\d+)\]'),
    re.compile(r'(?P<phase>)\b(?P<done>\d+)/(?P<total>\d+) \['),
    re.compile(r'(?P<phase>)\b(?P<done>\d+) of (?P<total>\d+)\b'),
)
#: Seconds between two plain lines of a stage.
QUIET = 30.0


@dataclass(frozen=True)
class Position:
    """Progress of a tool; the phase is empty if it has only one."""

    phase: str
    done: int
    total: int


def read_position(line: str) -> Position | None:
    """Progress of a tool according to a line of its output; None if the line does not show it."""
    for pattern in PATTERNS:
        if (match := pattern.search(line)) and 0 <= int(match['done']) <= int(match['total']) > 0:
            return Position(match['phase'], int(match['done']), int(match['total']))
    return None


class Display:
    """Shows the running stages; a context manager."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.live = self.console.is_terminal
        self.progress = Progress(
            TextColumn('{task.description}', markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            RemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.tasks: dict[str, TaskID] = {}
        self.labels: dict[str, str] = {}
        self.spoken: dict[str, float] = {}
        self.phases: dict[str, str] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        if self.live:
            self.console.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    def begin(self, name: str, label: str) -> None:
        """A stage starts."""
        self.labels[name], self.spoken[name], self.phases[name] = label, time.monotonic(), ''
        self.tasks[name] = self.progress.add_task(label, total=None)
        if not self.live:
            self.say(f'{label} ...')

    def read(self, name: str, line: str) -> None:
        """Takes a line of a stage's output; most of them contain no progress."""
        if (position := read_position(line)) is None:
            return
        if not self.live:
            if time.monotonic() - self.spoken[name] > QUIET:
                self.spoken[name] = time.monotonic()
                self.say(f'{self.labels[name]}: {position.phase} {position.done} of {position.total}')
            return
        label = self.labels[name] + (f' ({position.phase})' if position.phase not in ('', 'train') else '')
        if position.phase != self.phases[name]:  # another phase has a different speed
            self.phases[name] = position.phase
            self.progress.reset(self.tasks[name], total=position.total)
        self.progress.update(self.tasks[name], completed=position.done, total=position.total, description=label)

    def end(self, name: str) -> None:
        """A stage is over."""
        self.progress.remove_task(self.tasks.pop(name))
