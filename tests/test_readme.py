"""The README's way from a supernet to a network of one's own: the very commands, with a few iterations each."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import timm
from project_copy import ROOT

from pinas_cli.main import main as pinas

pytestmark = pytest.mark.mm
#: What makes each command short.
SHORT = {
    name: options.split()
    for name, options in {
        'search': 'budget=3 searcher.initial=2 calibration.batches=1 calibration.batch_size=16 '
        'evaluation.view.source.limit=100 evaluation.batch_size=50',
        'derive': 'calibration.batches=1 calibration.batch_size=16',
        'train': 'train_cfg.max_iters=2 train_cfg.val_interval=2 train_dataloader.batch_size=8 '
        'val_dataloader.dataset.source.limit=100',
        'publish': '',
    }.items()
}


def test_from_a_supernet_to_a_network(tmp_path: Path, monkeypatch, capsys) -> None:
    blocks = re.findall(r'```bash\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (block,) = [block for block in blocks if 'published/mine' in block]
    *commands, last = block.replace('\\\n', ' ').strip().splitlines()
    monkeypatch.chdir(tmp_path)
    for name in ('configs', 'checkpoints'):
        (tmp_path / name).symlink_to(ROOT / name)
    printed, arch = '', 'ARCH'
    for command in commands:
        program, name, *words = shlex.split(command.replace('ARCH', arch).replace('iter_320', 'iter_2'))
        assert program == 'pinas' and name in SHORT
        options = [] if '--cfg-options' in words or not SHORT[name] else ['--cfg-options']
        assert pinas([name, *words, *options, *SHORT[name]]) == 0, command
        printed = capsys.readouterr().out
        if name == 'derive':
            (arch,) = re.findall(r'model\.model\.arch=(\S+)', printed)
    assert last.startswith('python -c') and "timm.create_model('local-dir:published/mine', pretrained=True)" in last
    net = timm.create_model('local-dir:published/mine', pretrained=True)
    assert net.space.format(net.arch) == arch and net.num_classes == 10
