"""Export every distinct head of the detection and segmentation configs, and compare the files with eager mode.

    python tools/dev/export_table.py                    python tools/dev/export_table.py --only upernet,retinanet
    python tools/dev/export_table.py --int8             python tools/dev/export_table.py --full --only fcos

Heads keep their kinds and settings; channels are few and the backbone is nano, unless --full keeps the config's own.
Weights are random, with BN statistics of the pictures, and scores and offsets scaled as after a training. The
pictures are composed scenes (Fashion-MNIST, 256 px and three odd sizes; with --full one at 256 x 256 and one at 512 x
512, of detectors 800 x 1216). --int8 scores our own classifiers on the 10,000 test images instead. Results go to
benchmarks/export.json by row, and from there into docs/export.md.
"""

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from int8_rows import int8_rows
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from PIL import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.data import open_source
from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes
from pinas_zoo.files import write_text
from pinas_zoo.mm.export.network import DenseExport, Difference, dense_export, difference
from pinas_zoo.mm.inference.networks import Dense, build_network
from pinas_zoo.space import PINAS_NANO

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / 'benchmarks' / 'export.json', ROOT / 'docs' / 'export.md'
#: One config of each distinct head.
CONFIGS = {
    'DeepLabV3 (paper)': 'ade20k/deeplabv3_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'DeepLabV3 (released)': 'ade20k/deeplabv3_pinas-b-d8_released_ade20k.py',
    'DeepLabV3': 'ade20k/deeplabv3-plain_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'DeepLabV3+': 'ade20k/deeplabv3plus_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'UPerNet': 'ade20k/upernet_pinas-a_4xb4-80k_ade20k-512x512.py',
    'PSPNet': 'ade20k/pspnet_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'FCN': 'ade20k/fcn_pinas-a-d8_4xb4-80k_ade20k-512x512.py',
    'RetinaNet': 'coco/retinanet_pinas-a_fpn_1x_coco.py',
    'FCOS': 'coco/fcos_pinas-a_fpn_1x_coco.py',
    'Faster R-CNN': 'coco/faster-rcnn_pinas-a_fpn_1x_coco.py',
    'Mask R-CNN': 'coco/mask-rcnn_pinas-a_fpn-plain_1x_coco.py',
    'Mask R-CNN (paper)': 'coco/mask-rcnn_pinas-a_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'coco/cascade-mask-rcnn_pinas-a_fpn_1x_coco.py',
}
#: Layers of scores and of offsets, in the order in which they run: standard deviation and mean as after a training.
LAYERS = {
    'conv_seg': (2.0, 0.0),
    'rpn_cls': (2.0, 0.0),
    'rpn_reg': (0.3, 0.0),
    'retina_cls': (2.0, -5.0),
    'retina_reg': (0.3, 0.0),
    'conv_cls': (2.0, -5.0),
    'conv_reg': (1.0, 2.0),
    'fc_cls': (2.0, 0.0),
    'fc_reg': (1.0, 0.0),
    'conv_logits': (2.0, 0.0),
}
#: The nano backbone with the strides of the large ones.
SPACE = replace(PINAS_NANO, name='export_nano', stem_pool=True)
CHANNELS = [64, 128, 256, 384]
WIDTH = 32
SIZES: tuple[tuple[int, int], ...] = ((256, 256), (200, 256), (255, 179), (131, 133))


# ---- networks --------------------------------------------------------------------------------------------------------


def shrink(cfg: Config) -> None:
    """Few channels and the nano backbone; kinds and settings of the heads stay."""
    old = cfg.model.backbone
    cfg.model.backbone = dict(
        type='pinas_zoo.PiNASBackbone',
        space=asdict(SPACE),
        arch='30-02-00-10',
        output_stride=old.get('output_stride', 32),
    )
    for head in ('decode_head', 'neck', 'rpn_head', 'bbox_head', 'roi_head'):
        if head in cfg.model:
            _narrow(cfg.model[head], head == 'decode_head', head in ('decode_head', 'neck'))


def _narrow(node: Any, segments: bool, reads_backbone: bool) -> None:
    for part in node if isinstance(node, list) else [node]:
        for key, value in list(part.items()):
            if key == 'in_channels':
                part[key] = (
                    (CHANNELS if isinstance(value, (list, tuple)) else CHANNELS[-1]) if reads_backbone else WIDTH
                )
            elif key == 'c1_in_channels':
                part[key] = CHANNELS[0]
            elif key in ('out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels') or (
                segments and key == 'channels'
            ):
                part[key] = WIDTH
            elif key in ('bbox_head', 'mask_head', 'bbox_roi_extractor', 'mask_roi_extractor'):
                _narrow(value, False, False)


def open_random(config: str, full: bool, pictures: Sequence[Image.Image]) -> DenseExport:
    """A config's network with random weights that find something in the pictures."""
    cfg = Config.fromfile(ROOT / 'configs' / config)
    if 'custom_imports' in cfg:
        import_modules_from_strings(**cfg.custom_imports)
    cfg.model.pop('auxiliary_head', None)
    if not full:
        shrink(cfg)
    torch.manual_seed(0)
    model = build_network(cfg)
    dataset = cfg.test_dataloader.dataset
    network = dense_export(cfg, Dense(model, list(dataset.pipeline), (), None))
    enliven(network, [_input(network, picture) for picture in pictures])
    return network


def enliven(network: DenseExport, images: Sequence[Tensor]) -> None:
    """Takes BN statistics from the pictures, and scales scores and offsets as after a training."""
    model: Any = network.model
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    batch = torch.cat([image[..., :128, :128] for image in images])
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        features = model.extract_feat(batch)
        for name in ('decode_head', 'rpn_head', 'bbox_head'):
            if hasattr(model, name):
                getattr(model, name)(features)
        for norm in norms:
            norm.eval()
    for name, (deviation, mean) in LAYERS.items():
        for key, layer in model.named_modules():
            if key.rpartition('.')[2] == name:
                _spread(network, layer, images[0], deviation, mean)


def _spread(network: DenseExport, layer: Any, image: Tensor, deviation: float, mean: float) -> None:
    """Scales a layer so that its outputs have a standard deviation, and about a mean, in a picture."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten()))
    with torch.no_grad():
        network.eager(image)
        hook.remove()
        layer.weight.mul_(deviation / torch.cat(seen).std().clamp(min=1e-6))
        layer.bias.fill_(mean)


# ---- rows ------------------------------------------------------------------------------------------------------------


def scenes(count: int, side: int) -> list[Image.Image]:
    """Composed scenes."""
    train, val = (open_source({'kind': 'fashion-mnist', 'split': split}) for split in ('train', 'test'))
    with tempfile.TemporaryDirectory() as folder:
        prepare_scenes(folder, SceneSettings(side, count, count, 0, ('coco',)), train, val)
        return [Image.open(path).convert('RGB') for path in sorted(Path(folder).glob('coco/val2017/*'))]


def _input(network: DenseExport, picture: Image.Image) -> Tensor:
    """A normalised picture at its own size: the sizes of the configs' tests are too large for a table."""
    view = replace(network.preprocessing, short=None, long=None, size=None)
    return torch.from_numpy(view(picture))[None]


def measure(
    network: DenseExport, pictures: Sequence[Image.Image], folder: Path, suffix: str, sizes: Any = SIZES
) -> dict[str, Any]:
    """The differences of one file, or why there is none."""
    inputs = [_input(network, picture) for picture in pictures]
    inputs = [x[..., :height, :width].contiguous() for x, (height, width) in zip(inputs, sizes, strict=False)]
    if not network.detects:
        inputs = [x.expand(count, -1, -1, -1).contiguous() for x, count in zip(inputs, (2, 1, 3, 1), strict=False)]
    out = folder / f'network{suffix}'
    try:
        network.write(out, inputs[0])
        if suffix == '.pt2':
            program = torch.export.load(out).module()

            def call(x: Tensor) -> list[Tensor]:
                found = program(x)
                return list(found) if isinstance(found, tuple) else [found]
        else:

            def call(x: Tensor) -> list[Tensor]:
                return network.run(out, x)

        parts = [difference(call(x), network.eager(x)) for x in inputs]
    except Exception as error:
        return {'error': f'{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}'}
    return asdict(sum(parts[1:], parts[0]))


def head_rows(names: Sequence[str], full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table's rows, one at a time."""
    drawn = scenes(len(SIZES), 256)
    for name in names:
        pictures, sizes = drawn, SIZES
        if full:
            side = (800, 1216) if CONFIGS[name].startswith('coco') else (512, 512)
            pictures, sizes = [drawn[0], drawn[1].resize(side[::-1], Image.Resampling.BICUBIC)], (SIZES[0], side)
        network = open_random(CONFIGS[name], full, drawn[:2] if full else pictures)
        with tempfile.TemporaryDirectory() as folder:
            row = {suffix[1:]: measure(network, pictures, Path(folder), suffix, sizes) for suffix in ('.onnx', '.pt2')}
        parameters = sum(parameter.numel() for parameter in network.network.parameters())
        yield f'{name}{" (full size)" if full else ""}', {'config': CONFIGS[name], 'parameters': parameters, **row}


# ---- tables ----------------------------------------------------------------------------------------------------------


def _cell(found: dict[str, Any]) -> str:
    if 'error' in found:
        return f'no: `{found["error"]}`'
    apart = Difference(**found)
    if not apart.objects:
        return f'{apart.value:.1e}'
    missing = f', {apart.unmatched} unmatched' if apart.unmatched else ''
    return f'{apart.objects} boxes{missing}, IoU {apart.iou:.4f}, scores {apart.value:.1e}'


def head_table(rows: dict[str, Any]) -> str:
    """Differences by head."""
    lines = ['| head | parameters | ONNX | torch.export |', '|---|---|---|---|']
    for name, row in rows.items():
        lines.append(f'| {name} | {row["parameters"] / 1e6:.1f} M | {_cell(row["onnx"])} | {_cell(row["pt2"])} |')
    return '\n'.join(lines)


def int8_table(rows: dict[str, Any]) -> str:
    """Top-1 and speed by network and type."""
    lines = ['| network | type | top-1 | file | 32 images | times faster, paired |', '|---|---|---|---|---|---|']
    for name, row in rows.items():
        for kind, top1 in row['top1'].items():
            faster = f'{row["ratios"][kind]["paired"]:.2f}' if kind in row['ratios'] else '1'
            size, time = row['bytes'][kind] / 2**20, row['milliseconds'][kind]
            lines.append(f'| {name} | {kind} | {top1:.2f} | {size:.2f} MiB | {time:.2f} ms | {faster} |')
    return '\n'.join(lines)


def write_tables(results: dict[str, Any]) -> None:
    """Writes the results, and the tables between their marks in docs/export.md."""
    write_text(RESULTS, json.dumps(results, indent=1) + '\n')
    text = PAGE.read_text()
    for name, table in (('heads', head_table(results['heads'])), ('int8', int8_table(results['int8']))):
        block = re.compile(f'(<!-- table: {name} -->\n).*?(<!-- end of table -->)', re.DOTALL)
        text = block.sub(lambda found, table=table: f'{found[1]}{table}\n{found[2]}', text)  # type: ignore[misc]
    write_text(PAGE, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the rows that are asked for and writes all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', help='heads by name, with commas; default: all')
    parser.add_argument('--full', action='store_true', help="the config's own backbone and channels")
    parser.add_argument('--int8', action='store_true', help='the classifiers instead of the heads')
    parser.add_argument('--images', type=int, default=512, help='calibration images; default 512')
    args = parser.parse_args(argv)
    warnings.simplefilter('ignore')
    known = ['pinas_nano_a.fmnist', 'pinas_nano_b.fmnist'] if args.int8 else list(CONFIGS)
    names = args.only.split(',') if args.only else known
    if unknown := set(names) - set(known):
        parser.error(f'unknown: {", ".join(sorted(unknown))}; there are {", ".join(known)}')
    rows = int8_rows(names, args.images) if args.int8 else head_rows(names, args.full)
    for name, row in rows:
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {'heads': {}, 'int8': {}}
        results['int8' if args.int8 else 'heads'][name] = row
        write_tables(results)
        print(name, json.dumps(row), flush=True)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
