"""The road from the command to the first loss is short: a real run is traced, and docs/design.md lists its files."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fork_server import python
from PIL import Image

pytestmark = pytest.mark.mm

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/pretrain/pinas-supernet_8xb24-coslr-100e_in1k.py'
#: Of pinas_zoo and tools; the command line, which needs the standard library only, has three files more.
MOST, COMMAND_LINE = 13, 3
#: What a user would write; --cfg-options would add mm/engine/overrides.py, which checks them.
SMALL = """
_base_ = {base!r}
model = dict(space='pinas_nano', method=dict(queue_length=16))
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(dataset=dict(source=dict(root={images!r}), size=28)),
)
"""


@pytest.fixture(scope='module')
def road(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The paper's recipe on a small space and a small folder: functions entered, by file."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    config = folder / 'small.py'
    config.write_text(SMALL.format(base=str(CONFIG), images=str(folder)))
    # A fork, which has imported everything: what an import runs does not count.
    command = [python(), str(ROOT / 'tests/trace_road.py'), 'train', str(config), '--work-dir', str(folder / 'run')]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_road_is_short(road: dict[str, list[str]]) -> None:
    package = [name for name in road if not name.startswith('pinas_cli/')]
    entered = '\n'.join(f'{name}: {", ".join(functions)}' for name, functions in road.items())
    assert len(package) <= MOST, f'{len(package)} files:\n{entered}'
    assert len(road) - len(package) <= COMMAND_LINE, entered


def test_the_trace_saw_the_run(road: dict[str, list[str]]) -> None:
    assert 'main' in road['pinas_cli/main.py'] and 'train' in road['pinas_zoo/mm/engine/launch.py']
    assert {'ExactIterLoop.run', 'SeededDataset._draw'} <= {name for names in road.values() for name in names}
    assert (
        'PiNAS.loss' in road['pinas_zoo/methods/pinas.py'] and 'InfoNCE.forward' in road['pinas_zoo/methods/pinas.py']
    )
    assert 'SplitAttention.forward' in road['pinas_zoo/models/blocks.py']
    assert (
        'check_data' in road['pinas_zoo/mm/engine/launch.py'] and 'FileSource.look' in road['pinas_zoo/data/images.py']
    )


def test_our_config_is_not_rewritten(road: dict[str, list[str]]) -> None:
    assert not [name for name in road if name.endswith(('rewrite.py', 'preflight/check.py'))]


def test_the_design_page_lists_them(road: dict[str, list[str]]) -> None:
    section = (ROOT / 'docs/design.md').read_text().split('## From the command to the loss', 1)[1].split('\n## ', 1)[0]
    named = re.findall(r'`((?:pinas_zoo|pinas_cli)/[a-z_/]+\.py)`', section)
    assert sorted(named) == sorted(road)
