"""docs/other_frameworks.md: every block runs as it is printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'other_frameworks.md'
BLOCKS = dict(re.findall(r'^## (\w+)[^\n]*\n.*?```python\n(.*?)```', PAGE.read_text(), re.S | re.M))
#: Name that a block leaves behind, and its shape.
RESULTS = {
    'torchvision': ('loss', ()),
    'transformers': ('logits', (2, 5, 64, 64)),
    'segmentation_models_pytorch': ('logits', (1, 5, 64, 64)),
    'lightly': ('loss', ()),
}


def test_every_block_is_run():
    assert BLOCKS.keys() == RESULTS.keys()


@pytest.mark.parametrize('library', RESULTS)
def test_block(library):
    pytest.importorskip(library)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[library], f'{PAGE.name}: {library}', 'exec'), names)
    name, shape = RESULTS[library]
    assert names[name].shape == torch.Size(shape) and names[name].isfinite().all()
    if library == 'torchvision':
        assert {'boxes', 'labels', 'scores'} <= names['found'].keys()
        assert all(p.grad is not None for p in names['net'].backbone.fpn.parameters())
    if library == 'transformers':
        assert len(names['features']) == 4
