"""The file with the figures of a transfer study: one recipe, the origin of each backbone, and one entry per run."""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pinas_zoo.files import write_text
from pinas_zoo.mm.quickstart.record import leaves

__all__ = ['ResultsFile', 'locked']


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock is released when the process ends."""
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ResultsFile:
    """Figures in JSON, replaced atomically at every change; processes may share it, one task each.

    Args:
        path: The file.
        recipe: What the figures depend on; all runs of a file share it.
        lock: File that orders the writers.
    """

    def __init__(self, path: Path, recipe: dict[str, Any], lock: Path) -> None:
        self.path, self.recipe, self.lock = path, json.loads(json.dumps(recipe)), lock

    def read(self) -> dict[str, Any]:
        """The content, or that of a new file.

        Raises:
            ValueError: The file contains runs of another recipe.
        """
        if not self.path.is_file():
            return {'recipe': self.recipe, 'pretraining': {}, 'runs': []}
        content = json.loads(self.path.read_text())
        if content['recipe'] != self.recipe:
            old, new = dict(leaves(content['recipe'])), dict(leaves(self.recipe))
            changed = [f'{k}: {old.get(k)} there, {new.get(k)} now' for k in old | new if old.get(k) != new.get(k)]
            raise ValueError(
                f'{self.path} contains runs of another recipe, give another --out: {"; ".join(changed[:5])}'
            )
        return content

    def append(self, run: dict[str, Any]) -> None:
        """Adds a finished run."""
        self._change(lambda content: content['runs'].append(run))

    def set_pretraining(self, arm: str, facts: dict[str, Any]) -> None:
        """Records where an arm's backbone comes from."""
        self._change(lambda content: content['pretraining'].update({arm: facts}))

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        with locked(self.lock):
            content = self.read()
            change(content)
            text = json.dumps(content, indent=1) + '\n'
            write_text(self.path, text)
