"""tools/analyze.py: costs against a count by hooks, and curves of several logs."""

from __future__ import annotations

import io
import json
import math
import runpy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pinas_zoo.report.curves import Run, choose_keys, draw_curves, read_run
from pinas_zoo.report.figures import LINES

ROOT = Path(__file__).parents[1]
DETECTION = 'checkpoints/pinas_nano_a_mask-rcnn_scenes.py'
SEGMENTATION = 'checkpoints/pinas_nano_a_deeplabv3_scenes.py'


def run_tool(*arguments: object) -> int:
    return runpy.run_path(str(ROOT / 'tools/analyze.py'))['main']([str(argument) for argument in arguments])


def macs_by_hooks(model: nn.Module, call) -> int:
    """A slow count: output elements of each convolution and linear layer, times the weights that one of them takes."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += inputs[0].numel() * module.weight[0].numel()
        else:
            total += output.numel() * module.weight[0].numel()

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return total


# ---- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.mm
class TestModel:
    def test_the_paper_network(self):
        from pinas_zoo.mm.inference.analyze import analyze

        found = analyze('pinas_a')
        assert (found.size, found.params) == ((224, 224), 27_046_278)
        assert found.macs / 1e9 == pytest.approx(5.33229, abs=5e-6)  # ../shared/pinas-facts.md
        assert found.latency is None and found.parts == {}

    def test_a_backbone_at_a_size(self):
        import timm

        from pinas_zoo.mm.inference.analyze import analyze

        net = timm.create_model('pinas_nano').eval()
        found = analyze('pinas_nano', (40, 56))
        assert found.macs == macs_by_hooks(net, lambda: net(torch.zeros(1, 3, 40, 56)))
        assert analyze('pinas_nano', [28]).macs == analyze('pinas_nano').macs < found.macs

    @pytest.mark.parametrize('seed', [0, 1])
    def test_a_detector_with_all_its_proposals(self, seed):
        from mmengine.config import Config

        from pinas_zoo.mm.inference import analyze as module

        torch.manual_seed(seed)
        found = module.analyze(str(ROOT / DETECTION))
        assert found.size == (128, 128) and found.kept == (100, 50)  # test_cfg: rpn.max_per_img, rcnn.max_per_img
        assert set(found.parts) == {'backbone', 'neck', 'rpn_head', 'roi_head'}
        assert sum(part.macs for part in found.parts.values()) == found.macs
        assert sum(part.params for part in found.parts.values()) == found.params
        assert all(part.macs > 0 for part in found.parts.values())

        model = module.build_network(Config.fromfile(ROOT / DETECTION))
        model.rpn_head.test_cfg.nms.iou_threshold = model.roi_head.test_cfg.nms.iou_threshold = 1.0
        model.roi_head.test_cfg.score_thr = 0.0
        batch = module._batch(model, (128, 128), 1)
        assert found.macs == macs_by_hooks(model, lambda: model(**batch, mode='predict'))

    def test_a_segmentor_leaves_the_auxiliary_head_out(self):
        from pinas_zoo.mm.inference.analyze import analyze

        found = analyze(str(ROOT / SEGMENTATION))
        assert found.size == (128, 128) and found.kept is None
        assert found.parts['auxiliary_head'].macs == 0 < found.parts['auxiliary_head'].params
        assert found.parts['backbone'].macs + found.parts['decode_head'].macs == found.macs
        # Stride 8 throughout: four times the pixels are four times the work, but for what works on pooled features.
        ratio = analyze(str(ROOT / SEGMENTATION), [256]).macs / found.macs
        assert 3.9 < ratio <= 4

    @pytest.mark.parametrize('name', ['pinas_nano', DETECTION, SEGMENTATION])
    def test_latency(self, name):
        from pinas_zoo.mm.inference.analyze import Timing, analyze

        name = str(ROOT / name) if name.endswith('.py') else name
        found = analyze(name, timing=Timing(warmup=1, seconds=0.0, batch_size=2))
        assert found.latency > 0 and found.spread >= 0 and found.batch_size == 2

    def test_the_warm_up_is_not_timed(self):
        """The first calls sleep, the others do next to nothing."""
        from pinas_zoo.mm.inference import analyze as module

        calls = []

        def call():
            calls.append(None)
            if len(calls) <= 3:
                time.sleep(0.2)

        measured = module._time(call, module.Timing(warmup=3, seconds=0.01))
        assert len(calls) > 3 and measured['latency'] < 0.1

    def test_tool(self, tmp_path, capsys):
        file = tmp_path / 'costs.json'
        assert run_tool('model', 'pinas_nano', ROOT / SEGMENTATION, '--no-latency', '--json', file) == 0
        out = capsys.readouterr().out
        content = json.loads(file.read_text())
        nano, segmentor = content['models']
        assert (nano['name'], nano['size'], nano['latency']) == ('pinas_nano', [28, 28], None)
        assert segmentor['parts']['decode_head']['macs'] > 0
        for number in (f'{nano["params"] / 1e6:.3f} M', f'{segmentor["macs"] / 1e9:.4f} G', 'decode_head'):
            assert number in out

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['no_such_net'], "'no_such_net' is neither a config file (.py) nor a model that timm"),
            (['pinas_nano', '--size', '0'], 'size must be a side'),
            (['pinas_nano', 'pinas_a', '--checkpoint', 'x.pth'], '--checkpoint needs exactly one model'),
            (['configs/none.py'], 'configs/none.py'),
        ],
    )
    def test_errors_are_one_line(self, arguments, message, capsys):
        assert run_tool('model', '--no-latency', *arguments) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]


# ---- curves ----------------------------------------------------------------------------------------------------------


def write_log(folder: Path, start: str = '20240101_000000', first: int = 10, shift: float = 0.0) -> Path:
    """A run of mmengine: losses every ten iterations, a metric every hundred."""
    file = folder / start / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    rows = [
        {'lr': 0.1, 'time': 0.2, 'loss': math.exp(-step / 100) + shift, 'loss_mask': 1.0, 'step': step}
        for step in range(first, first + 300, 10)
    ]
    rows += [{'coco/bbox_mAP': 0.001 * step, 'step': step} for step in range(100, 301, 100)]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return file


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))


def has_colour(picture: np.ndarray, index: int) -> bool:
    colour = [int(LINES[index][place : place + 2], 16) for place in (1, 3, 5)]
    return bool((picture == colour).all(axis=-1).any())


class TestCurves:
    def test_logs_and_work_dirs(self, tmp_path):
        file = write_log(tmp_path / 'a')
        write_log(tmp_path / 'a', '20240102_000000', first=310)
        whole, part = read_run(tmp_path / 'a'), read_run(file)
        assert whole.name == part.name == 'a'
        assert [step for step, _ in whole.scalars['loss']] == list(range(10, 610, 10))
        assert len(part.scalars['loss']) == 30
        other = file.rename(tmp_path / 'other.json')
        assert read_run(other).name == 'other' and read_run(other, 'mine').name == 'mine'

    def test_no_log_is_said(self, tmp_path):
        with pytest.raises(ValueError, match='is not a log: neither'):
            read_run(tmp_path)
        (tmp_path / 'scalars.json').write_text('')
        with pytest.raises(ValueError, match='no number in'):
            read_run(tmp_path)

    def test_keys(self, tmp_path):
        run = read_run(write_log(tmp_path / 'a'))
        assert choose_keys([run]) == ['coco/bbox_mAP', 'loss', 'loss_mask']
        assert choose_keys([run], ['loss*', 'time', 'loss']) == ['loss', 'loss_mask', 'time']
        with pytest.raises(ValueError, match=r"no key matches 'acc'; there are: coco/bbox_mAP, loss, loss_mask, lr"):
            choose_keys([run], ['acc'])

    def test_a_panel_a_key_and_a_line_a_run(self, tmp_path):
        runs = [read_run(write_log(tmp_path / name, shift=0.3 * i)) for i, name in enumerate('ab')]
        one = pixels(draw_curves(runs, ['loss']))
        four = pixels(draw_curves(runs, ['loss', 'loss_mask', 'coco/bbox_mAP', 'time']))
        assert four.shape[1] > 1.8 * one.shape[1] and four.shape[0] > 1.5 * one.shape[0]
        assert has_colour(one, 0) and has_colour(one, 1) and not has_colour(one, 2)
        assert not has_colour(pixels(draw_curves(runs[:1], ['loss'])), 1)

    def test_smoothing_keeps_the_raw_values_faint(self):
        points = [(float(step), float(step % 2)) for step in range(100)]
        smooth = pixels(draw_curves([Run('a', {'loss': points})], ['loss'], smooth=9))
        raw = pixels(draw_curves([Run('a', {'loss': points})], ['loss'], smooth=1))
        faint = (0.25 * np.array([0x3F, 0x86, 0xD1]) + 0.75 * 255).round()
        near = np.abs(smooth.astype(int) - faint).max(axis=-1) <= 2
        assert near.sum() > 500 and has_colour(smooth, 0)
        assert not (np.abs(raw.astype(int) - faint).max(axis=-1) <= 2).sum() > near.sum() / 2

    def test_values_that_are_no_numbers_are_left_out(self):
        run = Run('a', {'loss': [(1.0, 1.0), (2.0, math.nan), (3.0, math.inf), (4.0, 2.0)], 'empty': []})
        assert has_colour(pixels(draw_curves([run], ['loss', 'empty'], smooth=9)), 0)

    def test_arguments_are_checked(self):
        run = Run('a', {'loss': [(1.0, 1.0)]})
        for runs, keys, smooth in (([], ['loss'], 1), ([run], [], 1), ([run], ['loss'], 0), ([run, run], ['loss'], 1)):
            with pytest.raises(ValueError, match='curves need keys, runs of different names'):
                draw_curves(runs, keys, smooth)

    @pytest.mark.mm
    def test_tool(self, tmp_path, capsys):
        for name in ('a', 'b'):
            write_log(tmp_path / name)
        logs = (tmp_path / 'a', tmp_path / 'b')
        assert run_tool('curves', *logs, '--list') == 0
        assert capsys.readouterr().out.split() == ['coco/bbox_mAP', 'loss', 'loss_mask', 'lr', 'time']
        out = tmp_path / 'new' / 'c.png'
        assert run_tool('curves', *logs, '--names', 'first', 'second', '--out', out, '--title', 'both') == 0
        assert '3 panels of 2 runs' in capsys.readouterr().out and pixels(out.read_bytes()).size
        assert run_tool('curves', *logs, '--names', 'first', '--out', out) == 1
        assert '--names has 1 names for 2 logs' in capsys.readouterr().err
