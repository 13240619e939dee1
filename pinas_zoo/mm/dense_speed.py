"""Forward and backward passes of a detector and a segmentor on random images, in mixed precision.

    python -m pinas_zoo.mm.dense_speed --out dense.json

It shows that the operators (including RoIAlign, NMS and SyncBN) run on the device, and gives images/s beside ResNet-50
with the same head; losses on random images mean nothing.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import init_default_scope

import pinas_zoo
from pinas_zoo.models.precision import autocast
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.registry import MODELS

__all__ = ['main', 'measure']

MODELS_MEASURED = {
    'Mask R-CNN, pinas_a': 'coco/mask-rcnn_pinas-a_fpn-plain_1x_coco.py',
    'Mask R-CNN, ResNet-50': 'coco/mask-rcnn_r50_fpn-plain_1x_coco.py',
    'DeepLabV3, pinas_a': 'ade20k/deeplabv3-plain_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'DeepLabV3, ResNet-50': 'ade20k/deeplabv3-plain_r50-d8_4xb4-80k_ade20k-512x512.py',
}


def _build(config: Path, device: torch.device, tiny: bool) -> tuple[BaseModel, str]:
    """The model of a config with random weights, and its scope; a tiny one has narrow heads and samples few boxes."""
    cfg = Config.fromfile(config)
    scope = str(cfg.default_scope)
    init_default_scope(scope)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.pop('pretrained', None)
    cfg.model.pop('pretrained', None)
    if tiny and scope == 'mmdet':
        cfg.model.train_cfg.rcnn.sampler.num = 32
    elif tiny:
        cfg.model.decode_head.channels = cfg.model.auxiliary_head.channels = 32
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    return model.to(device).train(), scope


def _batch(scope: str, images: int, tiny: bool) -> dict[str, Any]:
    """Random images as the loader would give them."""
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        shape = (3, 96, 128) if tiny else (3, 800, 1216)
        return demo_mm_inputs(images, shape, num_items=[7] * images, num_classes=80, with_mask=True)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    side = 64 if tiny else 512
    samples = []
    for _ in range(images):
        shapes = dict(img_shape=(side, side), ori_shape=(side, side), pad_shape=(side, side))
        sample = SegDataSample(metainfo=shapes)
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, side, side)))
        samples.append(sample)
    return {'inputs': [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in samples],
            'data_samples': samples}  # fmt: skip


def measure(
    config: Path, device: torch.device, precision: torch.dtype | None, channels_last: bool, tiny: bool
) -> dict[str, Any]:
    """Images per second of forward and backward passes, and the loss of the first.

    Args:
        config: Config of a detector or segmentor.
        device: Device to run on.
        precision: Half type of the forward passes; None for float32.
        channels_last: Memory format of the network.
        tiny: Small images and heads, and the first step is the one that is timed.
    """
    torch.manual_seed(0)
    model, scope = _build(config, device, tiny)
    if channels_last:
        to_memory_format(model, torch.channels_last)
    images = 2 if tiny else 4
    batch = _batch(scope, images, tiny)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)

    def step() -> torch.Tensor:
        data = model.data_preprocessor(dict(batch), True)
        with autocast(device.type, precision):
            losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses)
        scaler.scale(loss).backward()
        model.zero_grad()
        return loss.detach()

    start, rounds = time.perf_counter(), 1
    first = float(step())
    if not tiny:
        step(), step()
        _wait(device)
        start, rounds = time.perf_counter(), 5
        for _ in range(rounds):
            step()
        _wait(device)
    seconds = (time.perf_counter() - start) / rounds
    return {'images_per_second': images / seconds, 'first_loss': first}


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures all models and writes the file after each; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--tiny', action='store_true')
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    configs = Path(pinas_zoo.__file__).resolve().parents[1] / 'configs'
    halves = {'bf16': torch.bfloat16, 'fp16': torch.float16} if device.type == 'cuda' else {'bf16': torch.bfloat16}
    models = {n: c for n, c in MODELS_MEASURED.items() if not (args.tiny and 'ResNet' in n)}  # ours, in a rehearsal
    cases = [(n, c, kind, half, False) for n, c in models.items() for kind, half in halves.items()]
    if device.type == 'cuda':
        cases += [(n, c, 'bf16, channels_last', torch.bfloat16, True) for n, c in models.items()]
    rows: dict[str, dict[str, Any]] = {}
    for name, config, kind, half, channels_last in cases:
        try:
            rows[f'{name}, {kind}'] = measure(configs / config, device, half, channels_last, args.tiny)
        except Exception as error:
            rows[f'{name}, {kind}'] = {'error': f'{type(error).__name__}: {str(error)[:200]}'}
        args.out.write_text(json.dumps(rows))
    return int(any('error' in row for row in rows.values()))


if __name__ == '__main__':
    raise SystemExit(main())
