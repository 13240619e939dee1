"""The released DeepLabV3 and Mask R-CNN, converted and run in mmseg and mmdet, against a re-implementation."""

import json
from pathlib import Path

import pytest
import torch
from released import (
    Released,
    deeplab_shapes_released,
    detectron2_anchors,
    detectron2_decode,
    fill,
    mask_rcnn_shapes_released,
)

from pinas_zoo.models.network import PINAS_B
from pinas_zoo.space import PINAS, PINAS_TINY
from pinas_zoo.weights.load import read_weights
from tools.convert_checkpoint import main

pytestmark = pytest.mark.mm
ROOT = Path(__file__).resolve().parents[1]
RELEASED = {
    'deeplabv3-ade20k': ('ade20k/deeplabv3_pinas-b-d8_released_ade20k.py', deeplab_shapes_released, 150),
    'deeplabv3-cityscapes': ('cityscapes/deeplabv3_pinas-b-d8_released_cityscapes.py', deeplab_shapes_released, 19),
    'mask-rcnn': ('coco/mask-rcnn_pinas-b_fpn_released_coco.py', mask_rcnn_shapes_released, 80),
}


def build(config: str, space=PINAS):
    """The model of a released config on a CPU; a smaller space replaces the paper's, for speed."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from pinas_zoo.mm.engine.machine import replace_sync_bn

    cfg = Config.fromfile(ROOT / 'configs' / config)
    replace_sync_bn(cfg, [])
    cfg.model.backbone.space = space.name
    if 'decode_head' in cfg.model:
        cfg.model.decode_head.in_channels = space.num_features
        cfg.model.auxiliary_head.in_channels = space.planes[2] * 4
    else:
        cfg.model.neck.in_channels = [planes * 4 for planes in space.planes]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).eval(), cfg


def load(model, path: Path) -> None:
    from mmengine.runner import load_checkpoint

    load_checkpoint(model, str(path), map_location='cpu', strict=True)


def converted(folder: Path, shapes: dict, kind: str, suffix: str, **extras) -> tuple[dict, Path]:
    state = fill(shapes)
    torch.save({'model': state | extras, 'iteration': 89999, 'scheduler': {}}, folder / 'released.pth')
    path = folder / f'ours{suffix}'
    assert main([str(folder / 'released.pth'), str(path), '--kind', kind, '--arch', 'pinas_b']) == 0
    return state, path


@pytest.mark.parametrize('name', RELEASED)
def test_configs_are_complete(name):
    """Every weight of the model that a config builds is one of the released file's, at full size."""
    from pinas_zoo.weights.released.heads import deeplab_shapes, mask_rcnn_shapes
    from pinas_zoo.weights.shapes import backbone_shapes, shapes_of

    config, released, classes = RELEASED[name]
    with torch.device('meta'):
        model, _ = build(config)
    heads = deeplab_shapes if 'deeplab' in name else mask_rcnn_shapes
    backbone = backbone_shapes(PINAS, PINAS.parse(PINAS_B))
    expected = {f'backbone.{key}': shape for key, shape in backbone.items()} | heads(PINAS, classes)
    assert shapes_of(model.state_dict()) == expected
    assert len(released(PINAS, PINAS_B, classes)) == len(expected)


@pytest.fixture(scope='module', params=['.pth', '.safetensors'])
def deeplab(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('deeplab')
    shapes = deeplab_shapes_released(PINAS_TINY, PINAS_B, 19)
    state, path = converted(folder, shapes, 'deeplabv3', request.param)
    model, _ = build(RELEASED['deeplabv3-cityscapes'][0], PINAS_TINY)
    load(model, path)
    return model, Released(state), path


class TestDeepLab:
    def test_computes_the_same(self, deeplab):
        model, released, _ = deeplab
        x = torch.randn(1, 3, 97, 65, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features = model.extract_feat(x)
            theirs = released.deeplab_features(x, PINAS_TINY, PINAS_B)
            for ours, their in zip(features[2:], theirs):
                torch.testing.assert_close(ours, their, rtol=0, atol=1e-4)
            torch.testing.assert_close(model(x), released.deeplab_head(theirs[1]), rtol=0, atol=1e-4)
            auxiliary = released.deeplab_auxiliary(theirs[0])
            torch.testing.assert_close(model.auxiliary_head(features), auxiliary, rtol=0, atol=1e-4)

    def test_metadata(self, deeplab):
        metadata = read_weights(deeplab[2])[1]
        assert metadata['kind'] == 'deeplabv3' and metadata['arch'] == PINAS_B and metadata['num_classes'] == '19'
        assert json.loads(metadata['space'])['name'] == 'pinas_tiny'

    def test_multi_scale(self, deeplab):
        """One window and no mirror image is a softmax without its sum; windows, scales and mirrors by hand."""
        import torch.nn.functional as F

        model = deeplab[0]
        old, x = model.test_cfg, torch.randn(1, 3, 40, 52, generator=torch.Generator().manual_seed(0))
        black = -model.data_preprocessor.mean / model.data_preprocessor.std
        try:
            model.test_cfg = dict(mode='multi-scale', base_size=52, crop_size=64, scales=[1.0], flip=False)
            with torch.no_grad():
                padded = black.view(1, 3, 1, 1).repeat(1, 1, 64, 64)
                padded[:, :, :40, :52] = x
                logits = F.interpolate(model(padded), (64, 64), mode='bilinear', align_corners=True)
                got = model.inference(x, [{}])
                torch.testing.assert_close(got, logits.exp()[:, :, :40, :52], rtol=1e-4, atol=1e-5)
                model.test_cfg = dict(mode='multi-scale', base_size=52, crop_size=48, scales=[1.0, 2.0], flip=True)
                got = model.inference(x, [{}])
                mirrored = model.inference(x.flip(3), [{}])
            assert got.shape == (1, 19, 40, 52) and got.isfinite().all() and (got > 0).all()
            assert mirrored.shape == got.shape
        finally:
            model.test_cfg = old

    def test_protocol(self):
        for name, base, crop, scales in (
            ('deeplabv3-ade20k', 520, 480, (0.5, 0.75, 1, 1.25, 1.5, 1.75)),
            ('deeplabv3-cityscapes', 2048, 768, (0.75, 1, 1.25, 1.5, 1.75, 2, 2.25)),
        ):
            with torch.device('meta'):
                model, cfg = build(RELEASED[name][0], PINAS_TINY)
            test = model.test_cfg
            assert (test.base_size, test.crop_size, tuple(test.scales), test.flip) == (base, crop, scales, True)
            assert cfg.test_dataloader.dataset.pipeline[0]['type'] == 'LoadImageFromFile'
            assert not any('Resize' in step['type'] for step in cfg.test_dataloader.dataset.pipeline)


@pytest.fixture(scope='module')
def rcnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('rcnn')
    shapes = mask_rcnn_shapes_released(PINAS_TINY, PINAS_B, 80)
    anchors = {f'proposal_generator.anchor_generator.cell_anchors.{i}': torch.zeros(3, 4) for i in range(5)}
    extras = dict(pixel_mean=torch.zeros(3, 1, 1), pixel_std=torch.ones(3, 1, 1), **anchors)
    state, path = converted(folder, shapes, 'mask-rcnn', '.pth', **extras)
    model, cfg = build(RELEASED['mask-rcnn'][0], PINAS_TINY)
    load(model, path)
    return model, Released(state), cfg


class TestMaskRCNN:
    def test_backbone_fpn_and_rpn(self, rcnn):
        model, released, _ = rcnn
        x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, theirs = model.extract_feat(x), released.rcnn_features(x, PINAS_TINY, PINAS_B)
            assert len(ours) == len(theirs) == 5
            for our, their in zip(ours, theirs):
                torch.testing.assert_close(our, their, rtol=0, atol=1e-4)
            scores, deltas = model.rpn_head(ours)
            for level, feature in enumerate(theirs):
                objectness, anchor_deltas = released.rpn(feature)
                torch.testing.assert_close(scores[level], objectness, rtol=0, atol=1e-4)
                torch.testing.assert_close(deltas[level], anchor_deltas, rtol=0, atol=1e-4)

    def test_heads(self, rcnn):
        model, released, _ = rcnn
        generator = torch.Generator().manual_seed(1)
        small, large = (torch.randn(3, 256, side, side, generator=generator) for side in (7, 14))
        with torch.no_grad():
            for ours, theirs in zip(model.roi_head.bbox_head(small), released.boxes(small), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            torch.testing.assert_close(model.roi_head.mask_head(large), released.masks(large), rtol=0, atol=1e-4)

    def test_anchors_and_box_coding(self, rcnn):
        model = rcnn[0]
        generator = model.rpn_head.prior_generator
        sizes = [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]
        anchors = generator.grid_priors(sizes, device='cpu')
        for level, (size, ours) in enumerate(zip(sizes, anchors)):
            torch.testing.assert_close(ours, detectron2_anchors(*size, 4 * 2**level, 32 * 2**level), rtol=0, atol=1e-4)
        # mmdet also bounds how far a box may shrink (1/62.5), detectron2 only how far it may grow.
        deltas = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 5).clamp(min=-4)
        boxes = anchors[0][:20] + 40
        for coder, weights in ((model.rpn_head.bbox_coder, (1, 1, 1, 1)), (None, (10, 10, 5, 5))):
            coder = coder or model.roi_head.bbox_head.bbox_coder
            ours = coder.decode(boxes, deltas)
            torch.testing.assert_close(ours, detectron2_decode(deltas, boxes, weights), rtol=1e-5, atol=1e-3)

    def test_input_and_protocol(self, rcnn):
        model, _, cfg = rcnn
        image = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)  # BGR, as it is read
        data = model.data_preprocessor({'inputs': [image], 'data_samples': None})['inputs'][0]
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        torch.testing.assert_close(data, (image.flip(0) - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        assert next(s for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize').scale == (1333, 800)
        test, extractor = model.test_cfg, model.roi_head.bbox_roi_extractor
        assert (test.rpn.nms_pre, test.rpn.max_per_img, test.rpn.nms.iou_threshold) == (1000, 1000, 0.7)
        assert (test.rcnn.score_thr, test.rcnn.nms.iou_threshold, test.rcnn.max_per_img) == (0.05, 0.5, 100)
        assert extractor.finest_scale == 56 and extractor.roi_layers[0].aligned
        assert extractor.roi_layers[0].sampling_ratio == 0
        scales = torch.tensor([[0, 0, 0, side, side] for side in (100.0, 120.0, 230.0, 500.0)])
        assert extractor.map_roi_levels(scales, 4).tolist() == [0, 1, 2, 3]
        assert model.roi_head.bbox_head.fc_cls.out_features == 81  # the background is last in both

    def test_left_over(self, tmp_path, capsys):
        state = fill(mask_rcnn_shapes_released(PINAS_TINY, PINAS_B, 3))
        state['roi_heads.mask_head.mask_fcn5.weight'] = torch.zeros(1)
        torch.save({'model': state}, tmp_path / 'a.pth')
        assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'x.pth')]) == 1
        assert 'unexpected: roi_heads.mask_head.mask_fcn5.weight' in capsys.readouterr().err
        assert not (tmp_path / 'x.pth').exists()


def test_classifier_in_mmengine(tmp_path):
    """A converted classifier fits `pinas_zoo.Classifier`, so tools/test.py evaluates it."""
    from mmengine.registry import MODELS

    import pinas_zoo.mm.checkpoint_loader  # noqa: F401
    from pinas_zoo.models.network import PiNASNet
    from pinas_zoo.weights.released.convert import convert_file

    net = PiNASNet('01-23-32-10', 'pinas_nano', num_classes=10)
    torch.save({'state_dict': net.state_dict()}, tmp_path / 'a.pth')
    arguments = dict(model_name='pinas_nano', arch='01-23-32-10')
    convert_file(tmp_path / 'a.pth', tmp_path / 'x.safetensors')
    model = MODELS.build(dict(type='pinas_zoo.Classifier', model=arguments, num_classes=10))
    load(model, tmp_path / 'x.safetensors')
    assert torch.equal(model.net.fc.bias, net.fc.bias)


def test_mmengine_reads_safetensors_and_names(tmp_path, monkeypatch):
    from mmengine.runner.checkpoint import CheckpointLoader

    import pinas_zoo.mm.checkpoint_loader  # noqa: F401
    from pinas_zoo.weights.load import save_weights

    save_weights(tmp_path / 'a.safetensors', {'x': torch.ones(2)}, {'dataset_meta': json.dumps({'classes': ['a']})})
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors'), 'cpu')
    assert checkpoint['meta']['dataset_meta'] == {'classes': ['a']} and checkpoint['state_dict']['x'].tolist() == [1, 1]
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    monkeypatch.setenv('PINAS_ZOO_HOME', str(tmp_path))
    with pytest.raises(RuntimeError, match='pinas_b_mask-rcnn_coco'):
        CheckpointLoader.load_checkpoint('pinas://pinas_b_mask-rcnn_coco', 'cpu')
