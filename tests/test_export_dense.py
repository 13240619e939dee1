"""Detectors and segmentors as files: compared with mmdet and mmseg, described, and run without torch."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pinas_cli.main import main as pinas
from pinas_zoo.models.description import Preprocessing, describe, timm_preprocessing
from pinas_zoo.models.export import export_program, run_onnx
from pinas_zoo.models.pooling import AveragePool, BinPool, with_dynamic_pooling

ROOT = Path(__file__).resolve().parents[1]
DETECTOR, SEGMENTOR = 'pinas_nano_a_mask-rcnn_scenes', 'pinas_nano_a_deeplabv3_scenes'
#: Noise contains no objects.
LOW = {'model.test_cfg.rcnn.score_thr': 0.01}
mm = pytest.mark.mm
onnx = pytest.mark.skipif(
    find_spec('onnx') is None or find_spec('onnxruntime') is None,
    reason="onnx or onnxruntime is not installed: pip install 'pinas-zoo[export]'",
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    """Smooth noise of three sizes."""
    folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    for index, (height, width) in enumerate(((128, 128), (101, 128), (77, 90))):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)).save(
            folder / f'{index}.png'
        )
    return folder


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(7, 12), (3, 5), (13, 6)])
def test_pools_are_those_of_torch(size):
    x = torch.randn(2, 3, *size)
    for bins in (2, 3, 6):
        assert torch.allclose(BinPool(bins)(x), F.adaptive_avg_pool2d(x, bins), atol=1e-6)
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    replaced = with_dynamic_pooling(nn.Sequential(pool, nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1)))
    assert [type(child) for child in replaced] == [AveragePool, BinPool, nn.AdaptiveAvgPool2d]
    assert torch.allclose(replaced[0](x), pool(x), atol=1e-6)


def test_a_pool_that_no_replacement_covers():
    with pytest.raises(ValueError, match='only square'):
        with_dynamic_pooling(nn.Sequential(nn.AdaptiveAvgPool2d((2, 3))))
    with pytest.raises(ValueError, match='cannot be exported with any size'):
        with_dynamic_pooling(nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True)))


def test_a_program_takes_even_and_odd_sizes():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2, ceil_mode=True))
    net[2].count_include_pad = False
    program = export_program(net, torch.randn(2, 3, 64, 64), dynamic_size=True).module()
    for size in ((33, 40), (31, 62)):
        x = torch.randn(1, 3, *size)
        assert torch.allclose(program(x), net(x), atol=1e-6)


@mm
def test_suppression_of_any_number_of_boxes():
    from torchvision.ops import batched_nms

    from pinas_zoo.mm.export.boxes import suppress

    class Suppress(nn.Module):
        def forward(self, x):
            x = x[x[:, 4] > 0.5]
            return suppress(x[:, :4], x[:, 4], x[:, 5].long(), 0.5, 5)

    rows = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    rows[:, 2:4] += rows[:, :2] + 0.5
    rows[:, 5] = torch.arange(30) % 2
    program = torch.export.export(Suppress(), (rows,), strict=False).module()
    for scores in (rows[:, 4], rows[:, 4] * 0, torch.eye(30)[3]):
        x = torch.cat((rows[:, :4], scores[:, None], rows[:, 5:]), dim=1)
        kept = x[x[:, 4] > 0.5]
        expected = batched_nms(kept[:, :4], kept[:, 4], kept[:, 5].long(), 0.5)[:5]
        assert torch.equal(program(x), expected)
    assert len(expected) == 1


class TestPreprocessing:
    @pytest.mark.parametrize('size', [(640, 427), (100, 1000), (333, 500)])
    @mm
    def test_size_rule_is_that_of_mmcv(self, size):
        from mmcv import rescale_size

        rule = Preprocessing((0.0,) * 3, (1.0,) * 3, short=512, long=2048)
        assert rule.target(*size) == rescale_size(size, (2048, 512))

    def test_classifier_input_is_that_of_timm(self):
        from timm.data import create_transform, resolve_data_config

        cfg = dict(
            input_size=(3, 24, 24), crop_pct=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation='bicubic'
        )
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))
        expected = create_transform(**resolve_data_config(cfg))(picture)
        assert np.abs(timm_preprocessing(cfg)(picture) - expected.numpy()).max() < 1e-5

    def test_channels_and_fixed_size(self):
        picture = Image.new('RGB', (4, 6), (10, 20, 30))
        values = Preprocessing((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 'BGR', size=(3, 5))(picture)
        assert values.shape == (3, 3, 5) and values[:, 0, 0].tolist() == [29, 9, pytest.approx(7 / 3)]

    def test_only_what_is_known_is_stated(self):
        told = describe('features', Preprocessing((0.0,) * 3, (1.0,) * 3))
        assert list(told) == ['task', 'preprocessing']
        assert set(json.loads(told['preprocessing'])) == {'mean', 'std', 'channels', 'interpolation'}


# ---- whole networks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def files(tmp_path_factory, pictures) -> dict[str, tuple[Path, str]]:
    """Our own segmentor and detector as files, with what the command printed."""
    folder, found = tmp_path_factory.mktemp('files'), {}
    detector = ['--config', str(ROOT / f'checkpoints/{DETECTOR}.py'), '--out', str(folder / 'detector.onnx'),
                '--checkpoint', str(ROOT / f'checkpoints/{DETECTOR}.safetensors'),
                '--cfg-options', *(f'{key}={value}' for key, value in LOW.items())]  # fmt: skip
    for kind, words in {'segmentor': [SEGMENTOR, str(folder / 'segmentor.onnx')], 'detector': detector}.items():
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert pinas(['export', *words, '--images', str(pictures)]) == 0
        found[kind] = folder / f'{kind}.onnx', printed.getvalue()
    return found


@mm
@onnx
def test_segmentor(files, pictures):
    from pinas_zoo.mm.export.network import open_export

    out, printed = files['segmentor']
    assert 'on 3 pictures' in printed
    network = open_export(SEGMENTOR, labels=True)
    x = torch.cat([torch.from_numpy(network.preprocessing(Image.open(pictures / '0.png')))[None]] * 2)
    (labels,), (logits,) = network.eager(x), run_onnx(out, x)
    assert logits.shape == (2, 12, 128, 128) and len(labels.unique()) > 1
    assert (logits.argmax(1) != labels).sum() <= 4  # pixels between two classes
    with torch.no_grad():
        assert torch.equal(network.network(x), labels)


@mm
@onnx
def test_detector(files):
    out, printed = files['detector']
    assert int(printed.split('; ')[1].split()[0]) > 20 and ' 0 unmatched' in printed
    boxes, scores, labels, masks = run_onnx(out, torch.zeros(1, 3, 50, 60))
    assert masks.shape == (len(boxes), 50, 60) and len(scores) == len(labels) == len(boxes)


@pytest.fixture
def small(monkeypatch, pictures):
    """Networks of configs/ with few channels and random weights: tools/dev/export_table.py."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/dev'))
    import export_table

    noise = [Image.open(path).convert('RGB').resize((160, 160)) for path in sorted(pictures.glob('*'))]

    def differences(name: str, suffix: str, folder: Path):
        network = export_table.open_random(export_table.CONFIGS[name], False, noise)
        found = export_table.measure(network, noise, folder, suffix, ((160, 160), (131, 160), (159, 133)))
        assert 'error' not in found, found
        return export_table.Difference(**found)

    return differences


FAMILIES = [
    'FCOS',
    pytest.param('UPerNet', marks=pytest.mark.slow),
]


@mm
@onnx
@pytest.mark.parametrize('name', FAMILIES)
def test_families(name, small, tmp_path):
    apart = small(name, '.onnx', tmp_path)
    assert apart.holds() and (name == 'UPerNet' or apart.objects > 30)


@mm
@pytest.mark.slow
@pytest.mark.parametrize('name', ['PSPNet'])
def test_programs(name, small, tmp_path):
    apart = small(name, '.pt2', tmp_path)
    assert apart.holds() and (name == 'PSPNet' or apart.objects > 30)


@mm
def test_boxes_without_partner_count():
    from pinas_zoo.mm.export.network import difference

    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    theirs = [boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2])]
    same = difference(theirs, theirs)
    assert same.holds() and same.objects == 2
    other = difference([boxes, theirs[1], torch.tensor([1, 3])], theirs)
    assert other.unmatched == 2 and not other.holds()
    moved = difference([boxes + torch.tensor([0.0, 0, 1, 0]), theirs[1] + 0.01, theirs[2]], theirs)
    assert moved.iou == pytest.approx(10 / 11) and moved.value == pytest.approx(0.01, abs=1e-6) and not moved.holds()
    assert difference([boxes[:0], theirs[1][:0], theirs[2][:0]], theirs).unmatched == 2
    # eager mode's masks are margins: the third pixel is undecided, so either value of it is the same mask
    margins = torch.tensor([[[0.4, 0.3, 0.001, -0.3]], [[0.4, 0.4, 0.4, -0.4]]])
    masks = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 1, 0]]], dtype=torch.bool)
    assert difference([*theirs, masks], [*theirs, margins]).iou == 1
    masks[0, 0, 1] = False
    assert difference([*theirs, masks], [*theirs, margins]).iou == 0.5


@mm
def test_what_cannot_be_exported():
    from mmengine.config import Config

    from pinas_zoo.mm.export.detectors import detector
    from pinas_zoo.mm.export.network import open_export, preprocessing_of

    class YOLOX(nn.Module):
        pass

    with pytest.raises(ValueError, match='model YOLOX cannot be exported; known are RetinaNet'):
        detector(YOLOX())
    with pytest.raises(ValueError, match='step Albu of the test pipeline cannot be described'):
        preprocessing_of(Config(dict(model=dict(data_preprocessor={}))), [dict(type='Albu')])
    with pytest.raises(ValueError, match='is a classifier'):
        open_export(
            str(ROOT / 'checkpoints/pinas_nano_a.fmnist.py'), ROOT / 'checkpoints/pinas_nano_a.fmnist.safetensors'
        )


class TestUsage:
    @pytest.mark.parametrize(
        'words',
        [['pinas_nano'], ['pinas_nano', 'a.onnx', '--int8'], ['pinas_nano', 'a.pt2', '--int8', '--images', '.']],
    )
    def test_what_is_missing(self, words, capsys):
        assert pinas(['export', *words]) == 2
        assert 'error:' in capsys.readouterr().err

    def test_no_images(self, tmp_path, capsys):
        assert pinas(['export', 'pinas_nano', str(tmp_path / 'a.onnx'), '--int8', '--images', str(tmp_path)]) == 1
        assert 'has no images' in capsys.readouterr().err


# ---- int8 and the runner ---------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def classifier(tmp_path_factory, pictures) -> Path:
    out = tmp_path_factory.mktemp('int8') / 'a.onnx'
    assert pinas(['export', 'pinas_nano_a.fmnist', str(out), '--pretrained', '--int8', '--images', str(pictures)]) == 0
    return out


@onnx
def test_int8(classifier, pictures):
    import onnx as package
    import timm

    content = package.load(classifier)
    kinds = [node.op_type for node in content.graph.node]
    weights = {tensor.name: tensor.data_type for tensor in content.graph.initializer}
    assert kinds.count('QuantizeLinear') > 20
    assert sum(kind == package.TensorProto.INT8 for kind in weights.values()) > 20
    assert {entry.key for entry in content.metadata_props} == {'task', 'preprocessing', 'classes'}
    net = timm.create_model('pinas_nano_a.fmnist', pretrained=True).eval()
    view = timm_preprocessing(net.pretrained_cfg)
    x = torch.stack([torch.from_numpy(view(Image.open(path))) for path in sorted(pictures.glob('*'))])
    with torch.no_grad():
        expected = net(x)
    (found,) = run_onnx(classifier, x)
    assert 0 < (found - expected).norm() / expected.norm() < 0.2


@mm
@onnx
def test_runner_without_torch(classifier, pictures, files):
    from pinas_zoo.mm.inference.predictors import PredictionSettings, open_predictor

    picture = pictures / '1.png'
    paths = [str(path) for path in (classifier, files['segmentor'][0], files['detector'][0])]
    code = (
        'import json, sys; sys.modules["torch"] = None; sys.path.insert(0, "examples"); import run_onnx\n'
        f'print(json.dumps([run_onnx.predict(file, {str(picture)!r}) for file in {paths}]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    classes, segments, objects = json.loads(done.stdout)

    bgr = [np.ascontiguousarray(np.asarray(Image.open(picture))[..., ::-1])]
    assert len(classes) == 5 and sum(row['score'] for row in classes) <= 1 + 1e-6
    predictor = open_predictor(SEGMENTOR, device='cpu')
    (labels,) = predictor.run(bgr)
    shares = {predictor.classes[c]: float((labels.labels == c).mean()) for c in np.unique(labels.labels)}
    assert shares == pytest.approx({row['class']: row['share'] for row in segments}, abs=1e-3)
    predictor = open_predictor(DETECTOR, device='cpu', settings=PredictionSettings(score_thr=0.01), cfg_options=LOW)
    (found,) = predictor.run(bgr)
    assert len(found.boxes) == len(objects) > 5
    assert [predictor.classes[c] for c in found.labels] == [row['class'] for row in objects]
    assert np.allclose(found.boxes, [row['box'] for row in objects], atol=0.1)
    assert np.allclose(found.scores, [row['score'] for row in objects], atol=1e-3)


@onnx
def test_the_runner_prepares_as_the_package_does(pictures, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    import run_onnx

    view = Preprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 'BGR', short=60, long=70, interpolation='bicubic')
    for rule in (
        view,
        replace(view, short=64, long=None, crop=(60, 60)),
        replace(view, short=None, long=None, size=(31, 40)),
    ):
        picture = Image.open(pictures / '1.png').convert('RGB')
        stated = json.loads(describe('features', rule)['preprocessing'])
        assert np.array_equal(run_onnx.prepare(picture, **stated)[0], rule(picture))
