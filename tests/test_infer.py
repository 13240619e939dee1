"""tools/infer.py: each kind of network on pictures, folders and a video, with the results of mmdet, mmseg and timm."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.mm

ROOT = Path(__file__).parents[1]
DETECTION = 'configs/quickstart/mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py'
SEGMENTATION = 'configs/quickstart/deeplabv3_pinas-nano-d8_b8-poly_scenes.py'
CLASSIFICATION = 'configs/quickstart/pinas-nano_b128-coslr_fmnist.py'
NAMES = tuple(f'thing {index}' for index in range(10))
CLASSES = {DETECTION: NAMES, SEGMENTATION: (*NAMES, 'wall', 'floor'), CLASSIFICATION: NAMES}


def read(config: str):
    from mmengine.config import Config

    import pinas_zoo.registry  # noqa: F401
    from pinas_zoo.mm.engine.from_data import fill_from_data

    cfg = Config.fromfile(ROOT / config)
    fill_from_data(cfg, names=CLASSES[config])
    return cfg


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Random weights in files, by config; the classifier's file has no class names."""
    from pinas_zoo.mm.inference.networks import build_network
    from pinas_zoo.weights.load import save_weights

    root, files = tmp_path_factory.mktemp('weights'), {}
    for config in (DETECTION, SEGMENTATION, CLASSIFICATION):
        torch.manual_seed(0)
        files[config] = root / f'{len(files)}.safetensors'
        meta = {} if config == CLASSIFICATION else {'dataset_meta': json.dumps({'classes': CLASSES[config]})}
        save_weights(files[config], build_network(read(config)).state_dict(), meta)
    return files


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, BGR: it survives JPEG."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path):
    """Five images of four sizes in two folders, and a text file."""
    root = tmp_path / 'images'
    (root / 'more').mkdir(parents=True)
    for seed, (name, size) in enumerate(
        {
            'a.png': (96, 96),
            'b.jpg': (96, 128),
            'c.bmp': (64, 80),
            'more/a.png': (96, 96),
            'more/d.webp': (50, 70),
        }.items()
    ):
        cv2.imwrite(str(root / name), noise(*size, seed))
    (root / 'notes.txt').write_text('no image')
    return root


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / 'predictions.jsonl').read_text().splitlines()]


def decode(mask: dict) -> np.ndarray:
    from pycocotools import mask as coco_mask

    return coco_mask.decode(mask).astype(bool)


def run_tool(*arguments: object) -> int:
    return runpy.run_path(str(ROOT / 'tools/infer.py'))['main']([str(argument) for argument in arguments])


# ---- one kind of output each -----------------------------------------------------------------------------------------


def test_instances_are_those_of_mmdet(weights, folder, tmp_path):
    from mmdet.apis import inference_detector, init_detector
    from mmengine.runner import load_checkpoint

    from pinas_zoo.data.tiles import Tiling
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import PredictionSettings, open_predictor

    predictor = open_predictor(str(ROOT / DETECTION), weights[DETECTION], 'cpu', PredictionSettings(score_thr=0.1))
    outcome = infer(folder / 'b.jpg', predictor, tmp_path / 'out', progress=False)
    (record,) = lines(tmp_path / 'out')
    assert (outcome.written, outcome.failed, record['image'], record['height'], record['width']) == (
        1,
        {},
        'b.jpg',
        96,
        128,
    )

    cfg = read(DETECTION)
    cfg.test_dataloader.dataset.pipeline.pop(2)  # the annotations, of which there are none
    model = init_detector(cfg, None, device='cpu')
    load_checkpoint(model, str(weights[DETECTION]), strict=True)
    expected = inference_detector(model, str(folder / 'b.jpg')).pred_instances
    expected = expected[expected.scores >= 0.1]
    assert len(record['instances']) == len(expected) > 0
    for row, box, label, score, mask in zip(
        record['instances'], expected.bboxes, expected.labels, expected.scores, expected.masks, strict=True
    ):
        assert row['label'] == label and row['class'] == NAMES[label]
        np.testing.assert_allclose(row['box'], box, atol=0.01)  # written with two digits
        assert row['score'] == pytest.approx(float(score), abs=1e-5)
        assert (decode(row['mask']) == mask.numpy()).all()
    infer(folder / 'b.jpg', predictor, tmp_path / 'tiled', progress=False, tiling=Tiling(4096))
    assert lines(tmp_path / 'tiled') == [record]


def test_segments_are_those_of_mmseg(weights, folder, tmp_path):
    from mmseg.apis import inference_model, init_model

    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import open_predictor

    predictor = open_predictor(str(ROOT / SEGMENTATION), weights[SEGMENTATION], 'cpu')
    infer(folder / 'b.jpg', predictor, tmp_path / 'out', progress=False)
    (record,) = lines(tmp_path / 'out')
    cfg = read(SEGMENTATION)
    cfg.model.decode_head.norm_cfg.type = cfg.model.auxiliary_head.norm_cfg.type = 'BN'
    cfg.model.backbone.norm_cfg.type = 'BN'
    model = init_model(cfg, str(weights[SEGMENTATION]), device='cpu')
    expected = inference_model(model, str(folder / 'b.jpg')).pred_sem_seg.data[0].numpy()
    found = np.full_like(expected, -1)
    for row in record['segments']:
        mask = decode(row['mask'])
        assert row['class'] == cfg.classes[row['label']]
        assert row['share'] == pytest.approx(mask.mean(), abs=1e-6)
        found[mask] = row['label']
    assert (found == expected).all() and len(record['segments']) > 1


def test_a_head_of_one_channel_gives_labels():
    """mmseg thresholds its output, and returns floats."""
    from types import SimpleNamespace

    from mmseg.models.segmentors.base import BaseSegmentor

    from pinas_zoo.mm.inference.predictors import PredictionSettings, _prediction
    from pinas_zoo.mm.inference.records import describe

    head = SimpleNamespace(out_channels=1, align_corners=False, decode_head=SimpleNamespace(threshold=0.3))
    (sample,) = BaseSegmentor.postprocess_result(head, torch.tensor([[[[-9.0, 9.0], [9.0, 9.0]]]]))
    assert sample.pred_sem_seg.data.is_floating_point()
    rows = describe(_prediction(sample, PredictionSettings()), ('ground', 'road'))['segments']
    assert [(row['class'], row['label'], row['share']) for row in rows] == [('ground', 0, 0.25), ('road', 1, 0.75)]
    assert decode(rows[1]['mask']).tolist() == [[False, True], [True, True]]


def test_ranking_is_that_of_timm(folder, tmp_path):
    import timm
    from timm.data import create_transform, resolve_data_config

    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import PredictionSettings, open_predictor
    from pinas_zoo.weights.load import save_weights

    net = timm.create_model('pinas_nano').eval()
    file = tmp_path / 'net.safetensors'
    save_weights(
        file, net.state_dict(), {'arch': net.space.format(net.arch), 'dataset_meta': json.dumps({'classes': NAMES})}
    )
    predictor = open_predictor('pinas_nano', file, 'cpu', PredictionSettings(topk=3))
    infer(folder / 'a.png', predictor, tmp_path / 'out', progress=False)
    (record,) = lines(tmp_path / 'out')
    view = create_transform(**resolve_data_config(net.pretrained_cfg))
    with torch.no_grad(), Image.open(folder / 'a.png') as image:
        scores, labels = net(view(image.convert('RGB'))[None])[0].softmax(dim=0).topk(3)
    assert [row['label'] for row in record['ranking']] == labels.tolist()
    assert [row['class'] for row in record['ranking']] == [NAMES[label] for label in labels]
    assert [row['score'] for row in record['ranking']] == pytest.approx(scores.tolist(), abs=1e-5)


def test_a_classifier_of_a_config_sees_what_its_evaluation_sees(weights):
    """The config's own test data through its own model, and the same image through the predictor."""
    from mmengine.registry import DATASETS

    from pinas_zoo.mm.inference.networks import load_network
    from pinas_zoo.mm.inference.predictors import PredictionSettings, open_predictor

    cfg = read(CLASSIFICATION)
    cfg.test_dataloader.dataset.source.limit = 200  # of digits, where they stand in, 7
    model, _ = load_network(cfg, weights[CLASSIFICATION], 'cpu')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    predictor = open_predictor(str(ROOT / CLASSIFICATION), weights[CLASSIFICATION], 'cpu', PredictionSettings(topk=10))
    assert tuple(predictor.classes) == tuple(dataset.source.classes)
    for index in range(4):
        (ranking,) = predictor.run([dataset.source.load(index).permute(1, 2, 0).numpy()])
        with torch.no_grad():
            expected = model.net(dataset[index]['image'][None])[0].softmax(dim=0)
        assert ranking.scores == pytest.approx(expected[ranking.labels].tolist(), abs=1e-6)
        assert sorted(ranking.labels) == list(range(10))


def test_the_test_set_and_the_files_give_the_same(weights, tmp_path):
    """A segmentor on scenes as the evaluation reads them, and on the same files."""
    from pinas_zoo.data import DigitsSource
    from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.pictures import predict
    from pinas_zoo.mm.inference.predictors import open_predictor

    settings = SceneSettings(128, 1, 3, 0, ('ade20k',))
    prepare_scenes(tmp_path / 'scenes', settings, DigitsSource('train'), DigitsSource('test'))
    cfg = read(SEGMENTATION)
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'scenes' / 'ade20k')
    evaluated = predict(cfg, weights[SEGMENTATION], range(3))
    predictor = open_predictor(str(ROOT / SEGMENTATION), weights[SEGMENTATION], 'cpu')
    images = tmp_path / 'scenes/ade20k/images/validation'
    assert infer(images, predictor, tmp_path / 'out', batch_size=2, progress=False).written == 3
    for (image, sample), record in zip(evaluated, lines(tmp_path / 'out'), strict=True):
        with Image.open(images / record['image']) as picture:
            assert (np.asarray(picture.convert('RGB')) == image).all()
        for row in record['segments']:
            assert (decode(row['mask']) == (sample.pred_sem_seg.data[0].numpy() == row['label'])).all()


# ---- names -----------------------------------------------------------------------------------------------------------


def packaged() -> list[str]:
    from pinas_zoo.weights.manifest import entries, package_file

    return [
        entry.name
        for entry in entries().values()
        if entry.arch is not None  # a supernet gives no predictions
        and any('package' in source and package_file(source['package']) for source in entry.sources)
    ]


@pytest.mark.parametrize('name', packaged())
def test_packaged_names_work_offline(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    monkeypatch.setenv('PINAS_ZOO_HOME', str(tmp_path / 'empty'))
    assert run_tool(folder / 'b.jpg', '--model', name, '--out', tmp_path / 'out', '--device', 'cpu', '--quiet') == 0
    (record,) = lines(tmp_path / 'out')
    (kind,) = {'ranking', 'instances', 'segments'} & set(record)
    assert not any(row['class'].isdigit() for row in record[kind]), 'classes have no names'
    assert not (tmp_path / 'empty').exists()


def test_a_name_of_the_manifest_opens_its_config_and_weights(weights, folder, tmp_path, monkeypatch):
    from pinas_zoo.files import file_sha256
    from pinas_zoo.weights import manifest

    row = dict(name='nano_det', model='mask-rcnn', task='Instance Segmentation', dataset='scenes', arch='30-32-20-03')
    row |= dict(space='pinas_nano', num_classes=10, file='nano_det.safetensors', licence='Apache-2.0', config=DETECTION)
    row |= dict(sources=[{'url': 'https://example.invalid/nano_det'}], sha256=file_sha256(weights[DETECTION]))
    file = tmp_path / 'manifest.json'
    file.write_text(json.dumps({'weights': [row]}))
    monkeypatch.setattr(manifest, 'MANIFEST', file)
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    monkeypatch.setenv('PINAS_ZOO_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / row['file']).write_bytes(weights[DETECTION].read_bytes())
    options = ('--score-thr', '0.1', '--out', tmp_path / 'out', '--quiet')
    assert run_tool(folder / 'a.png', '--model', 'nano_det', *options) == 0
    (record,) = lines(tmp_path / 'out')
    assert record['instances'] and {r['class'] for r in record['instances']} <= set(NAMES)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'yolo'], "unknown model 'yolo'; known: "),
        (['--model', DETECTION], 'give its weights with --checkpoint'),
        (
            ['--model', 'configs/quickstart/pinas-nano-tree_128_fmnist.py', '--checkpoint', 'x'],
            'is not a single network but a supernet',
        ),
        (['--model', 'pinas_nano'], 'pinas_nano has no pretrained weights'),
        (['--model', 'pinas_nano', '--cfg-options', 'model.x=1'], 'a timm model, it has no config'),
        (['--model', 'pinas_nano', '--topk', '0'], 'topk at least 1'),
    ],
)
def test_a_wrong_name_is_one_line(arguments, message, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run_tool(folder, *arguments, '--out', tmp_path / 'out') == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    from pinas_zoo.mm.inference.predictors import open_predictor
    from pinas_zoo.weights.load import read_weights, save_weights

    with pytest.raises(ValueError, match='do not fit EncoderDecoder'):
        open_predictor(str(ROOT / SEGMENTATION), weights[DETECTION], 'cpu')
    file = tmp_path / 'nine.safetensors'
    save_weights(file, read_weights(weights[DETECTION])[0], {'dataset_meta': json.dumps({'classes': NAMES[:9]})})
    with pytest.raises(ValueError, match='do not fit MaskRCNN'):  # of nine classes, as the file says
        open_predictor(str(ROOT / DETECTION), file, 'cpu')
    counts = {f'model.roi_head.{head}.num_classes': 10 for head in ('bbox_head', 'mask_head')}
    with pytest.raises(ValueError, match='nine.safetensors names 9 classes, the model has 10'):
        open_predictor(str(ROOT / DETECTION), file, 'cpu', cfg_options=counts)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_in_batches_with_broken_images(weights, folder, tmp_path, capsys):
    whole = (folder / 'b.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (folder / 'more' / 'text.png').write_text('no image either')
    (folder / 'empty.webp').touch()
    command = (folder, '--model', ROOT / SEGMENTATION, '--checkpoint', weights[SEGMENTATION], '--batch-size', 4)
    assert run_tool(*command, '--out', tmp_path / 'out') == 1
    said = capsys.readouterr()
    for name in ('cut.jpg', 'more/text.png', 'empty.webp'):
        assert f'{name} skipped: ' in said.err
    assert '3 could not be read whole' in said.err and '5 drawn' in said.out
    records = lines(tmp_path / 'out')
    assert [r['image'] for r in records] == ['a.png', 'b.jpg', 'c.bmp', 'more/a.png', 'more/d.webp']
    written = {path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.*')}
    assert written == {r['picture'] for r in records} | {'predictions.jsonl'}
    assert records[2]['picture'] == 'c.bmp.png'
    for record in records:
        with Image.open(tmp_path / 'out' / record['picture']) as picture:
            assert picture.width / record['width'] == picture.height / record['height'] >= 1

    # One at a time they are the same: images of other sizes in a batch change nothing; nor does one large tile.
    for name, options in {'single': (), 'tiled': ('--tile', 4096)}.items():
        assert run_tool(*command[:-2], '--out', tmp_path / name, *options) == 1
        assert lines(tmp_path / name) == records


def test_a_second_run_leaves_the_first_ones_pictures_alone(weights, folder):
    command = (folder, '--model', ROOT / SEGMENTATION, '--checkpoint', weights[SEGMENTATION], '--quiet')
    for _ in range(2):
        assert run_tool(*command, '--out', folder / 'drawn') == 0
        assert len(lines(folder / 'drawn')) == 5
    before = (folder / 'a.png').read_bytes()
    assert run_tool(*command, '--out', folder) == 1
    assert (folder / 'a.png').read_bytes() == before


def test_what_was_found_outlives_an_error(folder, tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Ranking

    calls = []

    def run(images):
        calls.append(images)
        if len(calls) == 3:
            raise RuntimeError('out of memory')
        return [Ranking([0], [1.0]) for _ in images]

    with pytest.raises(RuntimeError, match='out of memory'):
        infer(folder, Predictor(run, NAMES), tmp_path / 'out', progress=False)
    assert [r['image'] for r in lines(tmp_path / 'out')] == ['a.png', 'b.jpg']
    assert (tmp_path / 'out' / 'a.png').exists() and (tmp_path / 'out' / 'b.jpg').exists()


def test_every_image_has_a_picture_of_its_own(tmp_path):
    """Equal names, links, files that are left out; pictures are read as training sources read them."""
    from pinas_zoo.data import read_picture
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Ranking

    source, store, exif, seen = tmp_path / 'in', tmp_path / 'store', Image.Exif(), []
    exif[0x0112] = 6
    for folder in (source, store):
        folder.mkdir()
    for name in ('a.bmp', 'a.bmp.png', 'a.bmp.2.png', 'deep.png', '._a.png'):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels.astype(np.uint16) * 257 if name == 'deep.png' else pixels).save(source / name)
    Image.fromarray(noise(20, 40, seed=1)).save(store / 'turned.jpg', exif=exif)
    (source / 'more').symlink_to(store)
    (store / 'back').symlink_to(source)
    (source / 'notes.txt').touch()

    def run(images):
        seen.extend(images)
        return [Ranking([0], [1.0]) for _ in images]

    outcome = infer(source, Predictor(run, NAMES), source / 'out', progress=False)
    assert outcome.written == 5 and not outcome.failed
    assert outcome.left_out == (
        '1 hidden or system files and folders, 1 .txt files, 1 linked folders that were read already'
    )
    records = lines(source / 'out')
    pictures = {record['image']: record['picture'] for record in records}
    assert pictures == {
        'a.bmp': 'a.bmp.3.png',
        'a.bmp.2.png': 'a.bmp.2.png',
        'a.bmp.png': 'a.bmp.png',
        'deep.png': 'deep.png',
        'more/turned.jpg': 'more/turned.jpg',
    }
    for record, image in zip(records, seen, strict=True):
        assert (source / 'out' / record['picture']).is_file()
        assert (read_picture(source / record['image'])[0][..., ::-1] == image).all()
    assert (records[-1]['height'], records[-1]['width']) == (40, 20)


def test_names_that_are_no_text_and_results_beside_pictures(tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Ranking

    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    (tmp_path / 'a.png').rename(tmp_path / os.fsdecode(b'\xff.png'))
    predictor = Predictor(lambda images: [Ranking([0], [1.0]) for _ in images], NAMES)
    for left_out in ('', '1 folders of results'):
        outcome = infer(tmp_path, predictor, tmp_path / 'out', progress=False)
        assert outcome.written == 1 and outcome.left_out == left_out
    assert lines(tmp_path / 'out')[0]['image'] == os.fsdecode(b'\xff.png')
    (tmp_path / 'note').touch()
    with pytest.raises(ValueError, match='note is a file, but --out has to be a folder'):
        infer(tmp_path, predictor, tmp_path / 'note/out', progress=False)


@pytest.mark.parametrize('name', ['nothing', 'images/notes.txt', 'bare'])
def test_nothing_to_read_is_said(name, folder, tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor

    (tmp_path / 'bare').mkdir()
    with pytest.raises(ValueError, match=f'{name} (does not exist|contains no image|has no images)'):
        infer(tmp_path / name, Predictor(lambda images: [], NAMES), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# ---- video -----------------------------------------------------------------------------------------------------------


def write_video(path: Path, frames: int, size: tuple[int, int], rate: float) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate, size[::-1])
    for number in range(frames):
        writer.write(noise(*size, seed=number))
    writer.release()


def test_a_video_becomes_a_video(weights, tmp_path):
    film = tmp_path / 'film.mp4'
    write_video(film, 7, (66, 98), 12.5)
    options = ('--checkpoint', weights[DETECTION], '--score-thr', 0.1, '--batch-size', 3, '--out', tmp_path / 'out')
    assert run_tool(film, '--model', ROOT / DETECTION, *options) == 0
    records = lines(tmp_path / 'out')
    assert [r['frame'] for r in records] == list(range(7)) and all(r['video'] == 'film.mp4' for r in records)
    assert [r['second'] for r in records] == [round(number / 12.5, 3) for number in range(7)]
    assert sum(len(r['instances']) for r in records) > 0
    drawn = cv2.VideoCapture(str(tmp_path / 'out' / 'film.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    shapes = []
    while (frame := drawn.read()[1]) is not None:
        shapes.append(frame.shape)
    assert len(shapes) == 7 and len(set(shapes)) == 1
    assert shapes[0][1] / shapes[0][0] == pytest.approx(98 / 66, rel=0.02)  # an odd last row would be left out
    assert [path.name for path in sorted((tmp_path / 'out').iterdir())] == ['film.mp4', 'predictions.jsonl']


def test_a_video_of_rankings_keeps_one_size(tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Ranking

    film = tmp_path / 'film.avi'
    write_video(film.with_suffix('.mp4'), 4, (28, 28), 5)
    film.with_suffix('.mp4').rename(film)
    scores = iter([[0.9, 0.1], [0.55, 0.45], [1.0, 0.0], [0.7, 0.3]])
    outcome = infer(
        film, Predictor(lambda images: [Ranking([3, 1], next(scores))], NAMES), tmp_path / 'out', progress=False
    )
    assert outcome.written == 4 and cv2.VideoCapture(str(tmp_path / 'out/film.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_a_video_that_does_not_decode_is_an_error(weights, tmp_path, capsys):
    film = tmp_path / 'film.mp4'
    write_video(film, 7, (66, 98), 12.5)
    film.write_bytes(film.read_bytes()[:200])
    options = ('--checkpoint', weights[DETECTION], '--out', tmp_path / 'out')
    assert run_tool(film, '--model', ROOT / DETECTION, *options) == 1
    assert f'{film} cannot be decoded as a video' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


# ---- drawing ---------------------------------------------------------------------------------------------------------


def test_drawings_show_what_was_found():
    """Boxes in their places, masks in the colour of their class, names inside the picture."""
    from pinas_zoo.mm.inference.pictures import draw_instances, draw_ranking, draw_segments

    image = np.zeros((100, 200, 3), np.uint8)
    mask = torch.zeros(1, 100, 200, dtype=torch.bool)
    mask[0, 40:60, 150:190] = True
    found = (torch.tensor([[150.0, 40, 190, 60]]), torch.tensor([1]), mask, torch.tensor([0.5]))
    palette = [(1, 1, 1), (200, 100, 50)]
    picture = np.asarray(draw_instances(image, *found, NAMES, zoom=2, palette=palette))
    assert picture.shape == (200, 400, 3)
    assert (picture[80, 320] == palette[1]).all() and (picture[100, 340] == (100, 50, 25)).all()
    assert not picture[130:].any() and not picture[:50].any() and not picture[:, :200].any()

    labels = np.zeros((100, 200), np.uint8)
    labels[:, 100:] = 1
    labels[:10] = 255
    plain = np.asarray(draw_segments(image, labels, zoom=1, opacity=0.5, palette=palette))
    assert not plain[:10].any() and (plain[50, 150] == (100, 50, 25)).all() and (plain[95, 5] == (0, 0, 0)).all()
    named = np.asarray(draw_segments(image, labels, zoom=1, opacity=0.5, palette=palette, classes=NAMES))
    changed = np.argwhere((plain != named).any(axis=-1))
    assert {bool(x >= 100) for _, x in changed} == {True, False}

    ranked = draw_ranking(
        image, ['a', 'a name that is much too long for a picture of this width, so it is cut'], [0.7, 0.1]
    )
    assert ranked.width == 400 and ranked.height > 200


def test_an_image_that_the_network_does_not_take_is_named_and_the_others_stay(tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Ranking

    def run(images):
        for image in images:
            cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2))  # fails for a single row
        return [Ranking([0], [1.0]) for _ in images]

    (tmp_path / 'in').mkdir()
    for name, size in (('a', (8, 8)), ('b', (1, 1)), ('c', (6, 8)), ('d', (1, 9))):
        cv2.imwrite(str(tmp_path / 'in' / f'{name}.png'), noise(*size))
    outcome = infer(tmp_path / 'in', Predictor(run, ['thing']), tmp_path / 'out', batch_size=4, progress=False)
    assert [record['image'] for record in lines(tmp_path / 'out')] == ['a.png', 'c.png'] and outcome.written == 2
    assert sorted(outcome.failed) == ['b.png', 'd.png']
    assert outcome.failed['d.png'].startswith('the network cannot process its 9x1 px (OpenCV')
