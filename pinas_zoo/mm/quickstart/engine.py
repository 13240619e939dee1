"""Runs the stages of a job: those that are not done, in the order of their dependencies, in parallel where possible.

A stage is done only for the same data, settings, code and inputs (`record`). Its entry is written when it begins, and
gets its outputs when it has succeeded, so a killed stage continues, and a failed one is not done.
"""

import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinas_zoo.files import file_lock, file_sha256
from pinas_zoo.mm.quickstart.console import Display
from pinas_zoo.mm.quickstart.process import ToolProcess, log_end
from pinas_zoo.mm.quickstart.record import (
    Entry,
    Fingerprint,
    Records,
    code_version,
    differences,
    resolved_settings,
)

__all__ = ['CORES', 'Context', 'Engine', 'Stage', 'StageError']

#: Threads of all running stages together. Fixed, so that a run gives the same numbers on larger machines.
CORES = 2


class StageError(RuntimeError):
    """A stage failed; the message has the end of its log and how to continue."""


@dataclass(frozen=True)
class Stage:
    """One stage of a job.

    Args:
        name: Short name, for folders and messages.
        title: Name for readers.
        command: Returns the command line of its tool, given the job; called once the stages before it are done.
        after: Stages whose outputs it reads.
        configs: Its config files.
        code: Modules and folders of the package that its result depends on.
        outputs: Its files below the root; `last_checkpoint` stands for the checkpoint that it names.
        threads: Threads of its process.
    """

    name: str
    title: str
    command: Callable[[Any], list[str]]
    after: tuple[str, ...] = ()
    configs: tuple[Path, ...] = ()
    code: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    threads: int = 1


@dataclass(frozen=True)
class Context:
    """What all stages share.

    Args:
        root: Folder of the run.
        data: Title of the data set and the hash of its content.
        environment: Variables for the stages.
        again: The command that continues the run.
    """

    root: Path
    data: tuple[str, str]
    environment: dict[str, str]
    again: str


@dataclass
class _Running:
    stage: Stage
    tool: ToolProcess
    start: float


class Engine:
    """Runs stages and keeps the records of a folder.

    Args:
        context: What all stages share.
        stages: In a possible order. A dependency that is not among them is taken as done.
        job: Passed to the stages' commands.

    Raises:
        ValueError: A stage comes before one that it depends on, or the folder's record is unreadable.
    """

    def __init__(self, context: Context, stages: Sequence[Stage], job: Any) -> None:
        self.context, self.job = context, job
        names = [stage.name for stage in stages]
        for place, stage in enumerate(stages):
            if late := set(stage.after) & set(names[place:]):
                raise ValueError(f'stage {stage.name} must come after {sorted(late)}; the order is {names}')
        self.stages = {stage.name: stage for stage in stages}
        self.numbers = {name: f'[{number}/{len(names)}]' for number, name in enumerate(names, start=1)}
        self.records = Records(context.root / 'stages.json')
        self.running: dict[str, _Running] = {}
        self.finished: set[str] = set()
        self.lines: queue.SimpleQueue[tuple[str, str | int]] = queue.SimpleQueue()
        self.display = Display()
        self.keep_open: tuple[int, ...] = ()

    # ---- what is done ----------------------------------------------------------------------------

    def fingerprint(self, stage: Stage) -> Fingerprint:
        """What the stage's result would depend on now; the stages before it have to be done."""
        inputs: dict[str, str] = {}
        for name in stage.after:
            if entry := self.records.entries.get(name):
                inputs |= {f'{name}/{file}': digest for file, digest in (entry.outputs or {}).items()}
        settings = resolved_settings(stage.command(self.job), stage.configs, self.context.root, stage.threads)
        return Fingerprint(self.context.data, settings, code_version(stage.code), inputs)

    def reasons(self, stage: Stage, entry: Entry) -> list[str]:
        """Why the entry has become invalid; empty if it is valid."""
        changed = differences(entry.begun, self.fingerprint(stage))
        for file, digest in (entry.outputs or {}).items():
            path = self.context.root / file
            if not path.is_file():
                changed.append(f'{file} is missing')
            elif file_sha256(path) != digest:
                changed.append(f'{file} was changed')
        return changed

    def plan(self) -> dict[str, str]:
        """The state of each stage: 'done', 'interrupted', 'new', or 'stale: ' and why."""
        words: dict[str, str] = {}
        for name, stage in self.stages.items():
            entry = self.records.entries.get(name)
            waiting = [before for before in stage.after if words.get(before, 'done') != 'done']
            if entry is None:
                words[name] = 'new'
            elif waiting:
                words[name] = f'stale: {", ".join(waiting)} first' if entry.done else 'interrupted'
            elif changed := self.reasons(stage, entry):
                words[name] = f'stale: {"; ".join(changed)}'
            else:
                words[name] = 'done' if entry.done else 'interrupted'
        return words

    # ---- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs what is not done.

        Raises:
            StageError: A stage failed; the others were stopped, and continue in a later call.
            ValueError: The record of the folder is unreadable.
        """
        lock = self.context.root / 'job.lock'
        lock.parent.mkdir(parents=True, exist_ok=True)
        with self.display, file_lock(lock, self._say_waiting) as held:
            # The tools hold the lock too: if only this process is killed, the next call waits for them.
            self.keep_open = (held.fileno(),)
            self.records = Records(self.records.path)
            for name, word in self.plan().items():
                if word.startswith('stale'):
                    self.display.say(f'{self.numbers[name]} {self.stages[name].title}: {word}')
            try:
                self._loop()
            finally:
                self._stop_all()

    def _say_waiting(self) -> None:
        self.display.say(f'another call is working in {self.context.root}: waiting for it')

    def _loop(self) -> None:
        pending = sorted(self.stages, key=self._depth, reverse=True)  # stable: else in the given order
        while pending or self.running:
            for name in list(pending):
                stage = self.stages[name]
                if (set(stage.after) & self.stages.keys()) - self.finished:
                    continue
                if self._is_done(stage):
                    pending.remove(name)
                    break  # earlier ones may have become possible
                if self._free(stage):
                    pending.remove(name)
                    self._begin(stage)
            else:
                self._wait()

    def _depth(self, name: str) -> int:
        """Length of the longest chain of stages that wait for this one."""
        return 1 + max((self._depth(n) for n, stage in self.stages.items() if name in stage.after), default=0)

    def _free(self, stage: Stage) -> bool:
        taken = sum(running.stage.threads for running in self.running.values())
        return not taken or taken + stage.threads <= CORES

    def _is_done(self, stage: Stage) -> bool:
        entry = self.records.entries.get(stage.name)
        if entry is None or not entry.done or self.reasons(stage, entry):
            return False
        self.finished.add(stage.name)
        self.display.say(f'{self.numbers[stage.name]} {stage.title}: done before, {entry.seconds:.0f} s')
        return True

    def _begin(self, stage: Stage) -> None:
        fingerprint, entry = self.fingerprint(stage), self.records.entries.get(stage.name)
        log = self.context.root / 'logs' / f'{stage.name}.log'
        same = entry is not None and not entry.done and not differences(entry.begun, fingerprint)
        if entry is not None and same:
            self.records.put(stage.name, replace(entry, continued=True))
        else:
            self._set_aside(stage)
            log.unlink(missing_ok=True)
            self.records.put(stage.name, Entry(fingerprint))
        label = f'{self.numbers[stage.name]} {stage.title}' + (', continued' if same else '')
        self.display.begin(stage.name, label)
        command, environment = stage.command(self.job), self.context.environment
        tool = ToolProcess(command, log, stage.threads, environment, self.keep_open)
        self.running[stage.name] = _Running(stage, tool, time.perf_counter())
        threading.Thread(target=self._follow, args=(stage.name, tool), daemon=True).start()

    def _set_aside(self, stage: Stage) -> None:
        """Moves the results of an earlier form of the stage into `stale`; only the latest are kept."""
        for part in sorted({output.split('/')[0] for output in stage.outputs}):
            old, new = self.context.root / part, self.context.root / 'stale' / part
            if old.exists():
                remove(new)
                new.parent.mkdir(exist_ok=True)
                old.replace(new)

    def _follow(self, name: str, tool: ToolProcess) -> None:
        status = tool.follow(lambda line: self.lines.put((name, line)))
        self.lines.put((name, status))

    def _wait(self) -> None:
        name, content = self.lines.get()
        if isinstance(content, str):
            self.display.read(name, content)
        else:
            self._end(self.running.pop(name), content)

    def _end(self, running: _Running, status: int) -> None:
        stage, seconds = running.stage, time.perf_counter() - running.start
        self.display.end(stage.name)
        self.records.add_seconds(stage.name, seconds)
        label = f'{self.numbers[stage.name]} {stage.title}'
        files = self._files(stage)
        missing = [str(file) for file in files if not (self.context.root / file).is_file()]
        if status or missing:
            what = f'failed with status {status}' if status else f'did not write {", ".join(missing)}'
            raise StageError(
                f'{label} {what}; the end of {running.tool.log}:\n{log_end(running.tool.log)}\n'
                f'To continue: fix the cause and call `{self.context.again}` again; finished stages are kept.'
            )
        outputs = {str(file): file_sha256(self.context.root / file) for file in files}
        self.records.put(stage.name, replace(self.records.entries[stage.name], outputs=outputs))
        self.finished.add(stage.name)
        self.display.say(f'{label}: {self.records.entries[stage.name].seconds:.0f} s')

    def _files(self, stage: Stage) -> list[Path]:
        """The stage's files, relative to the root; they need not exist."""
        files = [Path(output) for output in stage.outputs]
        return [
            Path(self.job.checkpoint(file.parent.name)).relative_to(self.context.root)
            if file.name == 'last_checkpoint' and (self.context.root / file).is_file()
            else file
            for file in files
        ]

    def _stop_all(self) -> None:
        for running in self.running.values():
            running.tool.stop()
        for name, running in self.running.items():
            running.tool.wait()
            self.records.add_seconds(name, time.perf_counter() - running.start)
            self.display.end(name)
        self.running.clear()


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
