"""Runs tools/train.py and dies by SIGKILL at a chosen point, without a change of the config.

    python engine_kill.py ITERATION MOMENT [arguments of tools/train.py]

MOMENT, with iterations counted from 1:
    step    before the step of the iteration
    saved   after the hooks of the iteration
    valid   inside a validation, from the one after the iteration on
    write   in a save from the iteration on, before the checkpoint's temporary file is renamed
    point   there, before last_checkpoint's is
    rotate  there, before the replaced checkpoint is removed
"""

import os
import runpy
import signal
import sys
from pathlib import Path


def arm(at: int, moment: str) -> None:
    """Patch the loop and the file writing of this process."""
    from pinas_zoo.mm.engine import loop

    reached = [0]
    run_iter, validate = loop.ExactIterLoop.run_iter, loop.ExactIterLoop._validate
    replace, unlink = os.replace, Path.unlink

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killing_run_iter(self: loop.ExactIterLoop, batch: object) -> None:
        reached[0] = self.iter + 1
        if reached[0] == at and moment == 'step':
            die()
        run_iter(self, batch)
        if reached[0] == at and moment == 'saved':
            die()

    def killing_replace(source: str, target: str) -> None:
        renamed = 'point' if Path(target).name == 'last_checkpoint' else 'write'
        if reached[0] >= at and moment == renamed:
            die()
        replace(source, target)

    def killing_unlink(self: Path, missing_ok: bool = False) -> None:
        if reached[0] >= at and moment == 'rotate' and self.suffix == '.pth':
            die()
        unlink(self, missing_ok)

    def killing_validate(self: loop.ExactIterLoop) -> None:
        if reached[0] >= at and moment == 'valid':
            self.runner.val_loop.run_iter = lambda *_: die()
        validate(self)

    loop.ExactIterLoop.run_iter = killing_run_iter
    loop.ExactIterLoop._validate = killing_validate
    os.replace = killing_replace
    Path.unlink = killing_unlink


if __name__ == '__main__':
    arm(int(sys.argv[1]), sys.argv[2])
    tool = Path(__file__).resolve().parents[1] / 'tools' / 'train.py'
    sys.argv = [str(tool), *sys.argv[3:]]
    runpy.run_path(str(tool), run_name='__main__')
