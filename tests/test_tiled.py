"""Large pictures in tiles: grids, pixels, and the same objects and label maps as on the whole picture."""

from __future__ import annotations

import json
import weakref
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from tally import tally

from pinas_zoo.data.images import read_picture
from pinas_zoo.data.sources import BrokenImageError
from pinas_zoo.data.tiles import Tile, Tiling, limit_pictures, open_tiled

pytestmark = pytest.mark.mm


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(3, 80), st.data())
def test_tiles_cover_a_picture_and_their_cores_do_so_once(height, width, side, data):
    tiling = Tiling(side, data.draw(st.one_of(st.none(), st.integers(0, side // 2))))
    covered, sizes = np.zeros((height, width), int), set()
    tiles = tiling.grid(height, width)
    for tile, core in tiles:
        assert tile.common(core) == core
        covered[core.top : core.bottom, core.left : core.right] += 1
        sizes.add((tile.height, tile.width))
    assert (covered == 1).all() and sizes == {(min(side, height), min(side, width))}
    rows = sorted({(tile.top, tile.bottom) for tile, _ in tiles})
    assert all(before[1] - after[0] >= tiling.margin for before, after in pairwise(rows))
    tally('tilings', refused=False)


@pytest.mark.parametrize(('side', 'overlap'), [(0, None), (8, 5), (8, -1)])
def test_a_tiling_that_makes_no_sense_is_refused(side, overlap):
    with pytest.raises(ValueError, match=r'at least 1 px, got 0|may overlap by 0 to 4 px.*got (5|-1)'):
        Tiling(side, overlap)


def _kinds(folder: Path) -> None:
    """Pictures of every kind that has its own reader."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (40, 60, 4), dtype=np.uint8))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        colours.convert('RGB').save(folder / f'turned{turn}.png', exif=exif)
    colours.convert('RGB').save(folder / 'turned.tif', exif=exif)
    colours.save(folder / 'alpha.png')
    colours.convert('RGB').quantize(20).save(folder / 'palette.gif')
    colours.convert('CMYK').save(folder / 'cmyk.jpg')
    colours.convert('1').save(folder / 'bits.png')
    colours.convert('L').save(folder / 'grey.pgm')
    Image.fromarray(rng.integers(0, 65536, (40, 60), dtype=np.uint16)).save(folder / 'deep.png')
    Image.fromarray(rng.random((40, 60), dtype=np.float32)).save(folder / 'float.tif')


def test_tiles_show_what_the_whole_picture_shows(tmp_path):
    _kinds(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 16
    for file in files:
        whole, _ = read_picture(file)
        with open_tiled(file) as picture:
            assert (picture.height, picture.width) == whole.shape[:2]
            for tile, _, pixels in picture.tiles(Tiling(17, 3)):
                assert (pixels == whole[tile.top : tile.bottom, tile.left : tile.right]).all(), file.name
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'alpha.png').read_bytes()[:-900])
    with pytest.raises(BrokenImageError, match=r'cut\.png'), open_tiled(tmp_path / 'cut.png'):
        pass


# ---- objects and label maps ------------------------------------------------------------------------------------------


def _shapes(height: int, width: int, seed: int) -> np.ndarray:
    """Separate shapes of two colours, some larger than a tile, one shaped like a U."""
    rng, picture = np.random.default_rng(seed), np.zeros((height, width, 3), np.uint8)
    picture[-4:, -4:, 0] = picture[:3, :3, 2] = 255  # to the first and the last pixel
    for number in range(60):
        canvas = np.zeros((height, width), np.uint8)
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(2, 60)), int(rng.integers(2, 20)))
        if number:
            cv2.ellipse(canvas, centre, axes, int(rng.integers(180)), 0, 360, 1, -1)
        else:
            cv2.polylines(canvas, [np.array([[20, 20], [20, 75], [60, 75], [60, 20]])], False, 1, 9)
        near = cv2.dilate(canvas, np.ones((3, 3), np.uint8)).astype(bool)
        if not picture[near].any():
            picture[canvas.astype(bool), 2 * (number % 2)] = 255
    return picture


def _components(masked: bool):
    """A perfect detector: the connected regions of a colour are objects; their score grows with their size."""
    from pinas_zoo.mm.inference.predictors import Instances, Predictor

    def run(images):
        found = []
        for image in images:
            boxes, labels, masks = [], [], []
            for label in (0, 1):
                count, regions, stats, _ = cv2.connectedComponentsWithStats(
                    (image[..., 2 * label] > 0).astype(np.uint8)
                )
                for index in range(1, count):
                    x, y, w, h, _ = stats[index]
                    boxes.append([x, y, x + w, y + h])
                    labels.append(label)
                    masks.append(regions == index)
            scores = torch.tensor([mask.mean() for mask in masks])
            bits = torch.tensor(np.array(masks).reshape(-1, *image.shape[:2])) if masked else None
            boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            found.append(Instances(boxes, torch.tensor(labels, dtype=torch.long), scores, bits))
        return found

    return Predictor(run, ('blue', 'red'))


def _objects(prediction, masked: bool) -> set:
    from pinas_zoo.mm.inference.records import describe

    rows = describe(prediction, ('blue', 'red'))['instances']
    return {(row['class'], tuple(row['box']), row['mask']['counts'] if masked else '') for row in rows}


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('batch_size', [1, 3])
def test_objects_across_seams_are_whole(seed, batch_size, tmp_path):
    from pinas_zoo.mm.inference.tiled import predict_tiled

    pixels = _shapes(150, 230, seed)
    Image.fromarray(pixels[..., ::-1]).save(tmp_path / 'a.png')
    predictor = _components(masked=True)
    (whole,) = predictor.run([pixels])
    assert len(whole.boxes) > 10
    with open_tiled(tmp_path / 'a.png') as picture:
        result = predict_tiled(picture, predictor, Tiling(64, 16), batch_size)
    assert (result.image == pixels).all() and result.size == (150, 230)
    assert len(result.prediction.boxes) == len(whole.boxes)
    assert _objects(result.prediction, True) == _objects(whole, True)
    scores = result.prediction.scores
    assert (scores[:-1] >= scores[1:]).all()


def test_boxes_without_masks_are_joined_and_neighbours_stay_apart(tmp_path):
    from pinas_zoo.mm.inference.tiled import predict_tiled

    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[10:30, 5:150, 0] = 255  # across three tiles
    pixels[35:55, 20:60, 0] = pixels[35:55, 62:110, 0] = 255  # two side by side
    pixels[60:99, 30:45, 2] = 255
    Image.fromarray(pixels[..., ::-1]).save(tmp_path / 'a.png')
    predictor = _components(masked=False)
    with open_tiled(tmp_path / 'a.png') as picture:
        result = predict_tiled(picture, predictor, Tiling(64), 2)
    assert _objects(result.prediction, False) == _objects(predictor.run([pixels])[0], False)
    assert len(result.prediction.boxes) == 4 and result.prediction.masks is None


def test_label_maps_have_no_seam(tmp_path, capsys):
    """A network that sees no further than half of the overlap gives the same on tiles as on the whole picture."""
    from pinas_zoo.mm.inference.predictors import Predictor, Segments
    from pinas_zoo.mm.inference.records import describe
    from pinas_zoo.mm.inference.tiled import predict_tiled

    def run(images):
        blurred = (cv2.blur(image, (9, 9), borderType=cv2.BORDER_CONSTANT)[..., 0] for image in images)
        return [Segments(np.minimum(grey // 64, 2).astype(np.int64)) for grey in blurred]

    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., ::-1]).save(tmp_path / 'a.png')
    predictor = Predictor(run, ('dark', 'grey', 'bright'))
    with open_tiled(tmp_path / 'a.png') as picture:
        result = predict_tiled(picture, predictor, Tiling(40, 10), 4, progress=True)
    expected = run([pixels])[0].labels
    assert (result.prediction.labels == expected).all() and len(np.unique(expected)) > 1
    assert 'tile' in (said := capsys.readouterr().err) and '/12 ' in said
    rows = describe(result.prediction, predictor.classes)['segments']
    assert rows == describe(Segments(expected), predictor.classes)['segments']
    for row in rows:
        assert (coco_mask.decode(row['mask']) == (expected == row['label'])).all()
    assert [row['class'] for row in rows] == [predictor.classes[label] for label in np.unique(expected)]


def test_the_drawing_of_a_large_picture_is_smaller(tmp_path, monkeypatch):
    from pinas_zoo.mm.inference import tiled
    from pinas_zoo.mm.inference.records import draw

    monkeypatch.setattr(tiled, 'OVERVIEW', 80)
    pixels = _shapes(150, 230, 0)
    Image.fromarray(pixels[..., ::-1]).save(tmp_path / 'a.png')
    predictor = _components(masked=True)
    with open_tiled(tmp_path / 'a.png') as picture:
        result = tiled.predict_tiled(picture, predictor, Tiling(64, 16), 2)
    assert (result.image == pixels[::3, ::3]).all() and result.size == (150, 230)
    assert _objects(result.prediction, True) == _objects(predictor.run([pixels])[0], True)
    drawn = draw(result.image, result.shown, predictor)
    assert drawn.width % 77 == 0 and drawn.height % 50 == 0
    union = coco_mask.decode(coco_mask.merge(result.shown.masks))
    assert (union == pixels[::3, ::3].any(-1)).all()


# ---- the command -----------------------------------------------------------------------------------------------------


def _infer(monkeypatch, predictor, *arguments: object) -> int:
    from pinas_cli.main import main

    monkeypatch.setattr('pinas_zoo.mm.inference.predictors.open_predictor', lambda *_: predictor)
    return main(['infer', *map(str, arguments), '--model', 'none', '--quiet'])


def test_a_picture_above_the_limit_is_tiled(tmp_path, monkeypatch, capsys):
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    pixels = np.zeros((1000, 1100), np.uint8)
    pixels[400:600, 100:1000] = 255
    Image.fromarray(pixels).save(source / 'large.png')
    Image.new('RGB', (1, 1), 'white').save(source / 'one.png')
    (source / 'cut.png').write_bytes((source / 'large.png').read_bytes()[:200])
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)  # put back afterwards
    options = ('--out', out, '--max-megapixels', 1)
    assert _infer(monkeypatch, _components(True), source, *options) == 1
    assert 'large.png skipped' in (said := capsys.readouterr().err) and '--tile 1024 cuts it' in said
    options = ('--out', out, '--tile', 512)
    assert _infer(monkeypatch, _components(True), source, *options) == 1
    assert 'cut.png skipped: cannot read image' in (said := capsys.readouterr().err) and 'large.png' not in said
    one, other = (json.loads(line) for line in (out / 'predictions.jsonl').read_text().splitlines())
    assert (one['height'], one['width'], other['image']) == (1000, 1100, 'one.png')
    assert [row['box'] for row in one['instances']] == [[100, 400, 1000, 600]] * 2  # white is blue and red
    assert [row['box'] for row in other['instances']] == [[0, 0, 1, 1]] * 2
    with Image.open(out / 'large.png') as drawn:
        assert drawn.size == (1100, 1000)
    limit_pictures(178)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--tile', 0], 'at least 1 px, got 0'),
        (['--tile', 64, '--tile-overlap', 40], 'may overlap by 0 to 32 px'),
        (['--tile-overlap', 4], 'no effect without --tile'),
    ],
)
def test_wrong_tiles_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    Image.new('RGB', (9, 9)).save(tmp_path / 'a.png')
    assert _infer(monkeypatch, _components(True), tmp_path, '--out', tmp_path / 'out', *options) == 1
    assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_films_and_classifiers_are_not_tiled(tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor

    (tmp_path / 'film.mp4').touch()
    Image.new('RGB', (9, 9)).save(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='only pictures are cut'):
        infer(tmp_path / 'film.mp4', _components(True), tmp_path / 'out', tiling=Tiling(8))
    with pytest.raises(ValueError, match='a classifier judges the whole picture'):
        infer(tmp_path / 'a.png', Predictor(lambda images: [], (), tileable=False), tmp_path / 'out', tiling=Tiling(8))


@pytest.mark.parametrize('tiling', [None, Tiling(16)])
def test_a_folder_takes_no_more_memory_than_a_batch(tiling, tmp_path):
    """Pictures are read, predicted, drawn and written batch by batch: no earlier one is alive."""
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Segments

    (tmp_path / 'in').mkdir()
    for number in range(40):
        Image.new('RGB', (8, 8), (number, 0, 0)).save(tmp_path / 'in' / f'{number:02}.png')
    alive: list[weakref.ref] = []
    most = 0

    def run(images):
        nonlocal most
        alive.extend(weakref.ref(image) for image in images)
        most = max(most, sum(ref() is not None for ref in alive))
        return [Segments(image[..., 2].astype(np.int64)) for image in images]

    outcome = infer(tmp_path / 'in', Predictor(run, list(map(str, range(40)))), tmp_path / 'out', 4, False, tiling)
    assert outcome.written == len(alive) == 40 and most <= 8
    rows = (tmp_path / 'out/predictions.jsonl').read_text().splitlines()
    assert [json.loads(row)['segments'][0]['label'] for row in rows] == list(range(40))


def test_a_film_that_breaks_off_is_drawn_as_far_as_it_goes(tmp_path):
    from pinas_zoo.mm.inference.infer import infer
    from pinas_zoo.mm.inference.predictors import Predictor, Ranking

    film = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for number in range(30):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        writer.write(noise)
    writer.release()
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    outcome = infer(film, Predictor(lambda images: [Ranking([0], [1.0])], ['x']), tmp_path / 'out', progress=False)
    rows = (tmp_path / 'out/predictions.jsonl').read_text().splitlines()
    assert 5 < outcome.written == len(rows) < 20
    assert f'only {len(rows)} of 30 frames decode' in outcome.failed['film.avi']
    drawn = cv2.VideoCapture(str(tmp_path / 'out/film.mp4'))
    assert sum(1 for _ in iter(lambda: drawn.read()[0], False)) == len(rows)


def test_a_tile_knows_what_it_shares():
    assert Tile(0, 0, 4, 4).common(Tile(2, 3, 9, 9)) == Tile(2, 3, 4, 4)
    assert Tile(0, 0, 4, 4).common(Tile(4, 0, 9, 9)) is None
