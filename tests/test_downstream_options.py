"""What the READMEs of the detection and segmentation configs promise: one option each, examples, metafiles."""

from __future__ import annotations

import copy
import re

import pytest
from downstream import ALL, ARCHS, FOLDERS, ROOT, backbone_name, build, label, read
from torch import nn

pytestmark = pytest.mark.mm

OPTION_PATHS = [
    ROOT / 'configs/coco/mask-rcnn_pinas-b_fpn_1x_coco.py',
    ROOT / 'configs/coco/retinanet_pinas-a_fpn_1x_coco.py',
    ROOT / 'configs/ade20k/upernet_pinas-b_4xb4-80k_ade20k-512x512.py',
]


def learning_rates(cfg, model: nn.Module) -> dict[str, float]:
    """Relative to the base rate, for each parameter that learns."""
    from mmengine.optim import build_optim_wrapper

    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    rates = {
        id(p): group['lr'] / cfg.optim_wrapper.optimizer.lr
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    return {name: round(rates[id(p)], 6) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('path', OPTION_PATHS, ids=label)
def test_one_option_each(path):
    cfg = read(path)
    cfg.merge_from_dict({'model.backbone.with_cp': True, 'model.backbone.frozen_stages': 2})
    cfg.merge_from_dict({'visualizer.vis_backends.1.type': 'WandbVisBackend', 'auto_scale_lr.enable': True})
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'WandbVisBackend']
    model = build(cfg)
    assert model.backbone.with_cp
    frozen = {name.split('.')[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1', 'layer2'}
    cfg = read(path)
    cfg.merge_from_dict({'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': 0.1})
    rates = learning_rates(cfg, build(cfg))
    assert {rate for name, rate in rates.items() if name.startswith('backbone.')} == {0.1}
    assert {rate for name, rate in rates.items() if not name.startswith('backbone.')} == {1.0}


@pytest.mark.parametrize('folder', FOLDERS)
def test_layer_wise_example_of_the_readme(folder, tmp_path):
    text = (ROOT / 'configs' / folder / 'README.md').read_text()
    (block,) = [code for code in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if 'custom_keys' in code]
    (base,) = re.findall(r"_base_ = '(.*)'", block)
    file = tmp_path / 'layer_wise.py'
    file.write_text(block.replace(base, str(ROOT / 'configs' / folder / base)))
    cfg = read(file)
    rates = learning_rates(cfg, build(cfg))
    parts = {}
    for name, rate in rates.items():
        parts.setdefault('.'.join(name.split('.')[:2]) if name.startswith('backbone.') else 'rest', set()).add(rate)
    assert parts == {
        'backbone.conv1': {0.3},
        'backbone.bn1': {0.3},
        'backbone.layer1': {0.4},
        'backbone.layer2': {0.5},
        'backbone.layer3': {0.7},
        'backbone.layer4': {0.9},
        'rest': {1.0},
    }


# ---- metafiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('folder', FOLDERS)
def test_metafile_lists_every_pinas_config(folder):
    import yaml

    models = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']
    rows = {model['Config']: model for model in models}
    assert len(rows) == len(models)
    for path in ALL[folder]:
        if 'pinas' in path.name:
            row = rows[str(path.relative_to(ROOT))]
            assert row['Name'] == path.stem
            assert row['Metadata']['Arch'] == ARCHS[backbone_name(path).removesuffix('-d8')]
    assert f'configs/{folder}/metafile.yml' in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
