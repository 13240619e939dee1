"""Pascal-VOC XML, labelme JSON, masks and CamVid's layout: converted, checked, refused by line, and trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pinas_cli.main import main

SIDE = 96
ROOT = Path(__file__).parents[1]


def picture(path: Path, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def write_voc(root: Path, train: int = 4, val: int = 2, lists: bool = True) -> None:
    (root / 'Annotations').mkdir(parents=True)
    (root / 'ImageSets/Main').mkdir(parents=True)
    names = [f'cell_{number}' for number in range(train + val)]
    for number, name in enumerate(names):
        picture(root / 'JPEGImages' / f'{name}.jpg')
        boxes = (('RBC', 1, 1, 40, 30, 0), ('WBC', 30, 40, 96, 96, 0), ('Platelets', 5, 50, 25, 70, number % 2))
        objects = ''.join(
            f'<object><name>{label}</name><difficult>{hard}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>'
            f'<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>'
            for label, a, b, c, d, hard in boxes
        )
        text = f'<annotation><filename>{name}.jpg</filename><size><width>0</width></size>{objects}</annotation>'
        (root / 'Annotations' / f'{name}.xml').write_text(text)
    if lists:
        (root / 'ImageSets/Main/train.txt').write_text('\n'.join(names[:train]) + '\n')
        (root / 'ImageSets/Main/val.txt').write_text('\n'.join(f'{name} 1' for name in names[train:]))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The error of a command."""
    try:
        status = main(['prepare', *words])
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
        if not isinstance(stopped.code, int):
            return str(stopped.code)
    assert status
    return capsys.readouterr().err


def test_voc(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_voc(tmp_path)
    assert main(['prepare', 'voc', '--root', str(tmp_path)]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts['counts'] == {'train': [4, 12], 'val': [2, 6]} and facts['classes'] == ['Platelets', 'RBC', 'WBC']
    found = read(tmp_path / 'annotations/train.json')
    assert found['images'][0] == {'id': 1, 'file_name': 'cell_0.jpg', 'width': SIDE, 'height': SIDE}
    first, second, third = found['annotations'][:3]
    assert first['bbox'] == [0, 0, 40, 30] and first['area'] == 1200 and first['category_id'] == 2
    assert second['bbox'] == [29, 39, 67, 57]  # to the last pixel
    assert [entry['iscrowd'] for entry in found['annotations'][2:6:3]] == [0, 1] and third['image_id'] == 1


def test_voc_without_lists_and_with_an_order_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_voc(tmp_path, lists=False)
    words = ['prepare', 'voc', '--root', str(tmp_path), '--classes', 'WBC', 'RBC', 'Platelets', '--val', '0.5']
    texts = []
    for _ in range(2):
        assert main(words) == 0
        texts.append((tmp_path / 'annotations/val.json').read_text())
    assert texts[0] == texts[1] and len(json.loads(texts[0])['images']) == 3
    assert json.loads(texts[0])['categories'][0] == {'id': 1, 'name': 'WBC'}
    assert "classes 'Platelets'" in refused(capsys, 'voc', '--root', str(tmp_path), '--classes', 'WBC', 'RBC')


def report(capsys: pytest.CaptureFixture, *words: str) -> tuple[str, dict[str, Any]]:
    """The lines of a command, and the JSON of the last."""
    capsys.readouterr()
    assert main(['prepare', *words]) == 0
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


def test_lists_of_voc_and_what_they_lose(tmp_path: Path, capsys: pytest.CaptureFixture):
    """VOC2007 has trainval and test; hidden files are no annotations; pictures of two splits are counted."""
    write_voc(tmp_path)
    (tmp_path / 'Annotations/._cell_0.xml').write_bytes(b'AppleDouble')
    lists = tmp_path / 'ImageSets/Main'
    lists.joinpath('train.txt').rename(lists / 'trainval.txt')
    lists.joinpath('val.txt').rename(lists / 'test.txt')
    _, facts = report(capsys, 'voc', '--root', str(tmp_path), '--val', '0.25')
    assert {split: images for split, (images, _) in facts['counts'].items()} == {'train': 3, 'val': 1, 'test': 2}
    assert facts['left_out'] == {'hidden files': 1}
    assert facts['noted'] == {'difficult objects, which became crowds (iscrowd 1)': 3}
    (lists / 'train.txt').write_text('cell_0\ncell_1\n')
    (lists / 'val.txt').write_text('cell_1\ncell_2\n')
    text, facts = report(capsys, 'voc', '--root', str(tmp_path))
    assert f'{tmp_path}: 1 pictures that an earlier split has, too' in text
    assert "names 'WBC' more than once" in refused(
        capsys, 'voc', '--root', str(tmp_path), '--classes', 'RBC', 'WBC', 'Platelets', 'WBC'
    )


def test_what_labelme_loses_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    outline = {'label': 'cat', 'shape_type': 'polygon', 'points': [[-20, 5], [40, 5], [40, 40]]}
    for number in range(4):
        picture(tmp_path / f'{number}.jpg')
        content = {'imagePath': f'{number}.jpg', 'shapes': [outline], 'imageData': 'AAAA'}
        (tmp_path / f'{number}.json').write_text(json.dumps(content))
    (tmp_path / '._0.json').write_bytes(b'AppleDouble')
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more/9.json').write_text('{}')
    words = ('labelme', '--root', str(tmp_path), '--val', '0.5')
    for _ in range(2):  # its own annotations are not read
        _, facts = report(capsys, *words)
        assert facts['left_out'] == {'JSON files in other folders': 1}
        assert facts['noted'] == {'objects cut off at the border of their picture': 4}
    (tmp_path / '0.jpg').unlink()
    assert '0.jpg: no such picture; 0.json contains it as imageData' in refused(capsys, *words)
    (tmp_path / 'more/deep').mkdir()
    (tmp_path / 'more/9.json').rename(tmp_path / 'more/deep/9.json')
    error = refused(capsys, 'labelme', '--root', str(tmp_path / 'more'))
    assert 'no JSON files in it, or in train and val; 1 in other folders' in error


def test_voc_that_cannot_be_used_is_named_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_voc(tmp_path)
    files = sorted((tmp_path / 'Annotations').iterdir())
    files[0].write_text('<annotation><object>')
    files[1].write_text(files[1].read_text().replace('<xmin>1<', '<xmin>one<'))
    files[2].write_text(files[2].read_text().replace('<xmax>40<', '<xmax>-3<'))
    (tmp_path / 'JPEGImages/cell_3.jpg').unlink()
    files[4].unlink()
    text = refused(capsys, 'voc', '--root', str(tmp_path))
    for line in (
        f'{files[0]}: not XML',
        f'{files[1]}: object 1 has the box xmin one, ymin 1, xmax 40, ymax 30, which must be four numbers',
        f'{files[2]}: object 1 (RBC) has the box xmin 1, ymin 1, xmax -3, ymax 30, whose maximum must not be below',
        f'{tmp_path}/JPEGImages/cell_3.jpg: no such picture',
        f'{files[4]}: no such file',
    ):
        assert line in text
    assert not (tmp_path / 'annotations').exists()


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture):
    shapes = [
        {'label': 'cat', 'points': [[10, 10], [30, 10], [30, 30]], 'shape_type': 'polygon', 'group_id': 1},
        {'label': 'cat', 'points': [[40, 40], [60, 40], [60, 60], [40, 60]], 'group_id': 1},
        {'label': 'cat', 'points': [[5, 5], [15, 25]], 'shape_type': 'rectangle', 'group_id': None},
        {'label': 'dog', 'points': [[50, 50], [60, 50]], 'shape_type': 'circle'},
        {'label': 'dog', 'points': [[50, 50]], 'shape_type': 'point'},
    ]
    for split, count in (('train', 3), ('val', 1)):
        for number in range(count):
            picture(tmp_path / split / f'{number}.jpg')
            content = {'shapes': shapes, 'imagePath': f'..\\elsewhere\\{number}.jpg', 'imageData': None}
            (tmp_path / split / f'{number}.json').write_text(json.dumps(content))
    assert main(['prepare', 'labelme', '--root', str(tmp_path)]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts['counts'] == {'train': [3, 9], 'val': [1, 3]} and facts['left_out'] == {'shapes of kind point': 4}
    found = read(tmp_path / 'annotations/train.json')
    both, box, circle = found['annotations'][:3]
    assert found['images'][0]['file_name'] == 'train/0.jpg'
    assert both['bbox'] == [10, 10, 50, 50] and both['area'] == 600 and len(both['segmentation']) == 2
    assert box['segmentation'] == [[5, 5, 15, 5, 15, 25, 5, 25]] and box['area'] == 200
    assert circle['bbox'] == pytest.approx([40, 40, 20, 20]) and circle['area'] == pytest.approx(314, rel=0.01)
    wrong: dict[str, Any] = {
        'val/0.json: not in the format of labelme: no text imagePath': {'shapes': []},
        'val/0.json: shape 1 has the label null, which must be a name': [{'points': 3}],
        'val/0.json: shape 1 has the label 7, which must be a name': [{'label': 7, 'points': []}],
        'val/0.json: shape 2 is "cat", which must be an object with label and points': [shapes[0], 'cat'],
        'val/0.json: shape 1 has the points [[1, "x"]], which must be pairs': [{'label': 'cat', 'points': [[1, 'x']]}],
        'val/0.json: shape 1 has a point that is not finite: [[1, NaN]]': [
            {'label': 'a', 'points': [[1, float('nan')]]}
        ],
        'val/0.json: states a picture of 192x96 px, but the picture is 96x96': {'imageWidth': 192, 'imageHeight': 96},
    }
    (tmp_path / 'train/0.json').write_text('{')
    for line, edit in wrong.items():
        sound = {'shapes': shapes, 'imagePath': '0.jpg'} if 'imageWidth' in edit else {}
        content = sound | (edit if isinstance(edit, dict) else {'shapes': edit, 'imagePath': '0.jpg'})
        (tmp_path / 'val/0.json').write_text(json.dumps(content))
        text = refused(capsys, 'labelme', '--root', str(tmp_path))
        assert f'{tmp_path}/{line}' in text, text
        assert f'{tmp_path}/train/0.json: not in the format of labelme: not JSON (Expecting' in text
        assert "'" not in text and 'Error(' not in text  # values as the file has them


def test_voc_takes_the_picture_of_the_annotations_name(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Copied annotations state another picture; exporters state a path, or the picture before it was renamed."""
    write_voc(tmp_path)
    first, second, third, fourth = sorted((tmp_path / 'Annotations').iterdir())[:4]
    first.write_text(first.read_text().replace('cell_0.jpg', 'C:\\\\photos\\\\cell_1.jpg'))
    second.write_text(second.read_text().replace('cell_1.jpg', '/data/IMG 7.JPG'))
    (tmp_path / 'JPEGImages/cell_2.jpg').rename(tmp_path / 'JPEGImages/before.jpg')
    third.write_text(third.read_text().replace('cell_2.jpg', 'before.jpg'))
    assert main(['prepare', 'voc', '--root', str(tmp_path)]) == 0
    names = [image['file_name'] for image in read(tmp_path / 'annotations/train.json')['images']]
    assert names == ['cell_0.jpg', 'cell_1.jpg', 'before.jpg', 'cell_3.jpg']
    fourth.write_text(fourth.read_text().replace('<width>0</width>', '<width>48</width><height>48</height>'))
    picture(tmp_path / 'JPEGImages/cell_1.png')
    second.write_text(second.read_text().replace('IMG 7', 'other'))
    third.write_bytes(
        third.read_text().replace('<annotation>', '<?xml version="1.0" encoding="klingon"?><annotation>').encode()
    )
    text = refused(capsys, 'voc', '--root', str(tmp_path))
    for line in (
        f'{fourth}: states a picture of 48x48 px, but the picture is 96x96: its objects do not fit',
        f'{tmp_path}/JPEGImages: cell_1.jpg and cell_1.png both belong to the annotation cell_1.xml',
        f'{third}: not XML (unknown encoding',
    ):
        assert line in text, text
    (tmp_path / 'ImageSets/Main/train.txt').write_text('cell_0\ncell_0\n')
    assert 'cell_0.jpg: the picture is annotated twice in one split' in refused(capsys, 'voc', '--root', str(tmp_path))


def write_other_masks(folder: Path) -> None:
    """The same masks as TIFF, with a palette whose first colour is the object's, and white behind an alpha channel."""
    first, second, third = (folder / f'{name}.png' for name in ('7', 'nucleus_1', 'nucleus_2'))
    Image.open(first).save(first.with_suffix('.TIF'), 'TIFF')
    first.unlink()
    inverted = (np.asarray(Image.open(second)) == 0).astype(np.uint8)
    mapped = Image.frombytes('P', (SIDE, SIDE), inverted.tobytes())
    mapped.putpalette([255, 255, 255, 0, 0, 0])
    mapped.save(second)
    Image.merge('LA', [Image.new('L', (SIDE, SIDE), 255), Image.open(third)]).convert('RGBA').save(third)


def test_masks(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip('pycocotools')
    for split in ('train', 'val'):
        picture(tmp_path / f'images/{split}/a.jpg')
        folder = tmp_path / f'masks/{split}/a'
        folder.mkdir(parents=True)
        for name, rows in (('nucleus_1', (4, 10)), ('nucleus_2', (20, 50)), ('7', (60, 70)), ('dust 3', (0, 0))):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[rows[0] : rows[1], 5:25] = 255
            Image.fromarray(mask).save(folder / f'{name}.png')
        picture(tmp_path / f'images/{split}/b.jpg')
    assert main(['prepare', 'masks', '--root', str(tmp_path)]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts['counts']['train'] == [2, 3] and facts['classes'] == ['nucleus', 'object']
    assert facts['left_out'] == {'empty masks': 2, 'images without masks': 2}
    found = read(tmp_path / 'annotations/train.json')
    assert [entry['area'] for entry in found['annotations']] == [200, 120, 600]
    assert found['annotations'][1]['bbox'] == [5, 4, 20, 6] and found['images'][0]['file_name'] == 'train/a.jpg'
    objects = {name: found['annotations'][k]['segmentation'] for k, name in enumerate(('7', 'nucleus_1', 'nucleus_2'))}
    write_other_masks(tmp_path / 'masks/train/a')
    assert main(['prepare', 'masks', '--root', str(tmp_path)]) == 0
    again = read(tmp_path / 'annotations/train.json')['annotations']
    assert [entry['segmentation'] for entry in again] == list(objects.values())
    (tmp_path / 'masks/train/lost').mkdir()
    for path, values in (('train/lost/7', (9, 9)), ('train/a/soft', (100, 255)), ('val/a/ids', (1, 2))):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[4:9, 5:25], mask[60:70, 5:25] = values
        Image.fromarray(mask).save(tmp_path / f'masks/{path}.png')
    text = refused(capsys, 'masks', '--root', str(tmp_path))
    assert f'{tmp_path}/masks/val/a/ids.png: has the values 1 to 2, which seem to number objects: write one PNG' in text
    (tmp_path / 'masks/val/a/ids.png').unlink()
    _, facts = report(capsys, 'masks', '--root', str(tmp_path))
    assert facts['left_out']['masks in folders of no picture'] == 1
    assert facts['noted'] == {'masks of several values, each read as one object': 1}
    Image.new('L', (SIDE, SIDE), 255).save(tmp_path / 'masks/train/a/x.jpg')
    picture(tmp_path / 'images/val/b.png')
    text = refused(capsys, 'masks', '--root', str(tmp_path))
    assert f'{tmp_path}/images: two pictures val/b with different suffixes share one folder of masks' in text
    (tmp_path / 'images/val/b.png').unlink()
    text = refused(capsys, 'masks', '--root', str(tmp_path))
    assert f'{tmp_path}/masks/train/a/x.jpg: a JPEG does not keep the values of a mask: write it as PNG' in text
    (tmp_path / 'masks/train/a/x.jpg').unlink()
    Image.new('L', (8, 8)).save(tmp_path / 'masks/val/a/nucleus_1.png')
    assert f'{tmp_path}/masks/val/a/nucleus_1.png: is 8x8 px, its image 96x96' in refused(
        capsys, 'masks', '--root', str(tmp_path)
    )


def write_camvid(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        (root / f'{split}annot').mkdir(parents=True)
        for number in range(count):
            picture(root / split / f'{number}.png')
            labels = rng.permutation(np.resize(np.arange(12, dtype=np.uint8), SIDE * SIDE)).reshape(SIDE, SIDE)
            Image.fromarray(labels).save(root / f'{split}annot' / f'{number}.png')


def test_camvid(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_camvid(tmp_path)
    assert main(['prepare', 'camvid', '--root', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])['counts'] == {'train': 4, 'val': 2} and "img_suffix='.png'" in out
    Image.new('L', (SIDE, SIDE), 12).save(tmp_path / 'valannot/0.png')
    (tmp_path / 'trainannot/1.png').unlink()
    text = refused(capsys, 'camvid', '--root', str(tmp_path))
    assert f'{tmp_path}/valannot/0.png: label 12, allowed are 0 to 11' in text
    assert f'{tmp_path}/trainannot/1.png: no such file' in text


# ---- the page's configs ----------------------------------------------------------------------------------------------

PAGE = (ROOT / 'docs/ten_minutes.md').read_text()
CONFIGS = {
    Path(name).stem: code for name, code in re.findall(r'```python\n# (configs/own/\S+\.py)\n(.*?)```', PAGE, re.DOTALL)
}
CELLS, STREETS = ('bccd', write_voc, 'coco/bbox_mAP'), ('camvid', write_camvid, 'mIoU')
#: The small ones inherit from the others; the large segmentor has another head.
LAYOUTS = {'cells_nano': CELLS, 'camvid': STREETS, 'camvid_nano': STREETS}


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('name', LAYOUTS)
def test_the_pages_configs_train(name: str, tmp_path: Path):
    pytest.importorskip('mmdet')
    from downstream import make_small
    from mmengine.config import Config

    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options

    command, write, metric = LAYOUTS[name]
    root = tmp_path / 'data'
    write(root)
    assert f'pinas prepare {command} --root data/{command}' in PAGE
    assert main(['prepare', command, '--root', str(root)]) == 0
    for stem, code in CONFIGS.items():
        code = re.sub(r"_base_ = '\.\./(.*)'", rf"_base_ = '{ROOT}/configs/\1'", code)
        (tmp_path / f'{stem}.py').write_text(re.sub(r"'data/\w+/", f"'{root}/", code))
    cfg = Config.fromfile(tmp_path / f'{name}.py')
    make_small(cfg)
    cfg.dump(tmp_path / 'small.py')
    assert train(tmp_path / 'small.py', Options(work_dir=str(tmp_path / 'run'), launcher='none')).iter == 2
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(metric in line for line in lines) and np.isfinite([x['loss'] for x in lines if 'loss' in x]).all()
