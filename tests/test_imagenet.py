"""configs/imagenet evaluates pinas_a with one command: file from a mirror, ImageNet folder, released transform."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from golden import filled, keys
from PIL import Image
from project_copy import ROOT
from torchvision.transforms import functional as TF

pytestmark = [pytest.mark.mm, pytest.mark.slow]

CONFIG = ROOT / 'configs/imagenet/pinas-a_8xb32-coslr-270e_in1k.py'
SIZES = ((300, 260), (240, 410), (224, 224), (190, 333), (256, 256))


def write_images(root: Path) -> None:
    """Two classes, JPEG, of several sizes, one of them smaller than the network's input."""
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        folder = root / f'n0000000{index % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])
        image.save(folder / f'ILSVRC2012_val_{index:08d}.JPEG', quality=95)


def released_view(path: Path) -> torch.Tensor:
    """Centre crop of 224/256 of the short side, resized to 224 bicubic, ImageNet mean and deviation."""
    pixels = TF.pil_to_tensor(Image.open(path).convert('RGB'))
    side = round(0.875 * min(pixels.shape[1:]))
    crop = TF.resize(TF.center_crop(pixels, [side, side]), [224, 224], TF.InterpolationMode.BICUBIC, antialias=True)
    if tuple(pixels.shape[1:]) == (224, 224):
        crop = pixels  # the size of the input already
    return TF.normalize(crop.float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_one_command(tmp_path, monkeypatch):
    from engine_utils import run_tool

    state = filled(keys('cls_keys.json'))
    state['fc.bias'][1] += 100  # class 1 wins, so that the accuracy is not 0
    (tmp_path / 'mirror').mkdir()
    torch.save({'state_dict': state, 'epoch': 270, 'best_pred': 0.816}, tmp_path / 'mirror' / 'PiNAS_cls.pth.tar')
    monkeypatch.setenv('PINAS_ZOO_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('PINAS_ZOO_MIRROR', str(tmp_path / 'mirror'))
    write_images(tmp_path / 'val')
    # A folder of two classes does not say which of the 1,000 outputs they are.
    source = dict(root=str(tmp_path / 'val'), classes=[f'n{index:08}' for index in range(1000)])
    loader = dict(dataset=dict(source=source), num_workers=0)
    (tmp_path / 'config.py').write_text(f'_base_ = {str(CONFIG)!r}\ntest_dataloader = {loader}\n')
    command = [
        'tools/test.py',
        str(tmp_path / 'config.py'),
        'pinas://pinas_a.in1k',
        '--work-dir',
        str(tmp_path / 'run'),
    ]
    done = run_tool(*command)
    assert done.returncode == 0, done.stdout[-3000:]
    said = json.loads((tmp_path / 'run' / 'test_metrics.json').read_text())['metrics']

    net = timm.create_model('pinas_a', pretrained=True).eval()
    assert torch.equal(net.fc.bias, state['fc.bias'])
    files = sorted((tmp_path / 'val').rglob('*.JPEG'))
    labels = torch.tensor([int(file.parent.name[-1]) for file in files])
    with torch.no_grad():
        logits = torch.cat([net(released_view(file)[None]) for file in files])
    assert said['accuracy/top1'] == pytest.approx(100 * 2 / 5) and said['accuracy/top5'] >= said['accuracy/top1']
    assert said['accuracy/loss'] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
