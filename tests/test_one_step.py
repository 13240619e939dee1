"""One training step is readable in at most ten own files, data included: it runs with those and nothing else.

`docs/design.md` lists them. `mm/pretrain.py`, which hands the step to mmengine's Runner, needs mmengine; the
others are torch alone, and a fresh process runs a step with them. Every other module of ours is an empty stand-in
there: what names it at import gets a placeholder, what uses it fails.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ('mm/pretrain.py',)
METHOD = ('space.py', 'models/blocks.py', 'models/supernet.py', 'models/graphs.py', 'methods/pinas.py', 'dist.py')
STEP = (*METHOD, 'data/sources.py', 'data/views.py')
LARGE = (*STEP, 'data/colour.py')  # flip, colours, blur
SMALL = (*STEP, 'data/batched.py')  # views of a whole batch at once, for small images

CODE = """
import importlib.abc, importlib.machinery, json, sys, types
from pathlib import Path

root, allowed, images = Path(sys.argv[1]), set(json.loads(sys.argv[2])), sys.argv[3]


class Placeholder:
    def __init_subclass__(cls, **kwargs): pass
    def __init__(self, *args, **kwargs): raise AssertionError('a stand-in was used: the step needs a further file')
    def __class_getitem__(cls, item): return cls


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return Placeholder


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    # Packages run no __init__, listed modules are the real ones, all others of ours stand-ins.
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] != 'pinas_zoo':
            return None
        place = root.joinpath(*name.split('.'))
        if place.is_dir():
            spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
            spec.submodule_search_locations = [str(place)]
            return spec
        file = place.with_suffix('.py')
        if file.relative_to(root / 'pinas_zoo').as_posix() in allowed:
            return importlib.util.spec_from_file_location(name, file)
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return types.ModuleType(spec.name) if spec.submodule_search_locations else StandIn(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())

import torch
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.data.sources import FolderSource
from pinas_zoo.space import SearchSpace
from pinas_zoo.models.supernet import SuperNet

from pinas_zoo.data.views import FourViews as Views, ViewRecipe
from torch.utils.data import default_collate as collate

recipe = ViewRecipe()
if 'data/batched.py' in allowed:
    from pinas_zoo.data.batched import BatchedViews as Views, collate_views as collate

    recipe = ViewRecipe.small_grey((0.5,), (0.25,))

torch.manual_seed(0)
space = SearchSpace('small', (1, 1), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, input_size=16)
method = PiNAS(SuperNet(space), dim=8, queue_length=16).train()
views = Views(FolderSource(images), 16, recipe)
optimiser = torch.optim.SGD(method.param_groups()['weights'], lr=0.1)
before = [p.detach().clone() for p in method.student.parameters()]
losses = method.loss(collate([views[i] for i in range(4)]), step=0)
losses['loss'].backward()
optimiser.step()

moved = sum(not torch.equal(a, b) for a, b in zip(before, method.student.parameters()))
loaded = [m for n, m in sys.modules.items() if n.startswith('pinas_zoo') and getattr(m, '__file__', None)]
print(json.dumps({
    'loss': float(losses['loss'].detach()), 'moved': moved, 'pointer': int(method.queue_ptr),
    'files': sorted(Path(m.__file__).relative_to(root / 'pinas_zoo').as_posix() for m in loaded),
}))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / f'{index}.png')
    return root


def run_step(files: tuple[str, ...], folder: Path) -> dict:
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', CODE, str(ROOT), json.dumps(files), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize('files', [LARGE, SMALL], ids=['views', 'batched'])
def test_a_step_runs_with_the_listed_files_alone(files: tuple[str, ...], folder: Path) -> None:
    report = run_step(files, folder)
    assert report['files'] == sorted(files)
    assert len({*files, *RUNNER}) <= 10 and all((ROOT / 'pinas_zoo' / name).is_file() for name in RUNNER)
    assert 0 < report['loss'] < 100 and report['moved'] > 10 and report['pointer'] == 4


def test_the_design_page_lists_them() -> None:
    section = (ROOT / 'docs/design.md').read_text().split('## One training step', 1)[1].split('\n## ', 1)[0]
    named = re.findall(r'`([a-z_/]+\.py)`', section)
    assert {*LARGE, *SMALL, *RUNNER} <= set(named), named
