"""Every reader of files against 200 damaged copies of a good one: it reads them, or says in one line what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import MUTATIONS, mutate, refusals
from PIL import Image
from tally import tally

from pinas_zoo.data.image_list import ListSource
from pinas_zoo.data.images import read_picture
from pinas_zoo.data.imports import labelme as labelme_reader
from pinas_zoo.data.imports import voc as voc_reader
from pinas_zoo.data.imports.coco_file import collect
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.weights.load import read_checkpoint, save_weights


def picture(path: Path) -> bytes:
    rng = np.random.default_rng(0)
    kind = path.suffix.removeprefix('.')
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path, {'jpg': 'JPEG'}.get(kind, kind))
    return path.read_bytes()


def image_list(path: Path) -> bytes:
    for name in ('a.png', 'b.png', 'c d.png'):
        picture(path.parent / name)
    return b'a.png 0\nb.png 1\nc d.png 1\n'


def search_log(path: Path) -> bytes:
    with SearchLog(path, {'seed': 0, 'space': 'x'}) as log:
        for index in range(4):
            log.append(SearchRecord(index, f'3-{index}', 50.0 + index, 1.0, 10, 20, 0.5, 50.0))
    return path.read_bytes()


def open_log(path: Path) -> None:
    with SearchLog(path, {'seed': 0, 'space': 'x'}) as log:
        assert [record.index for record in log.records] == list(range(len(log)))


def torch_file(path: Path) -> bytes:
    torch.save({'state_dict': {'fc.weight': torch.arange(12.0).reshape(3, 4)}, 'meta': {'seed': 0}}, path)
    return path.read_bytes()


def safetensors_file(path: Path) -> bytes:
    save_weights(path, {'fc.weight': torch.arange(12.0).reshape(3, 4)}, {'kind': 'backbone'})
    return path.read_bytes()


def voc(path: Path) -> bytes:
    (path.parent / 'JPEGImages').mkdir()
    picture(path.parent / 'JPEGImages/a.png')
    box = '<bndbox>\n<xmin>1</xmin>\n<ymin>1</ymin>\n<xmax>5</xmax>\n<ymax>6</ymax>\n</bndbox>'
    objects = f'<object>\n<name>cat</name>\n{box}\n</object>\n' * 2
    return f'<annotation>\n<filename>a.png</filename>\n{objects}</annotation>\n'.encode()


def read_voc(path: Path) -> None:
    folder = path.parent / 'Annotations'
    folder.mkdir(exist_ok=True)
    (folder / 'a.xml').write_bytes(path.read_bytes())
    collect({'train': ['a']}, lambda file, name: voc_reader._voc(file, path.parent, folder / f'{name}.xml'))


def labelme(path: Path) -> bytes:
    picture(path.parent / 'a.png')
    shape = {'label': 'cat', 'points': [[1, 1], [8, 2], [5, 9]], 'shape_type': 'polygon', 'group_id': None}
    return json.dumps({'shapes': [shape, shape], 'imagePath': 'a.png'}, indent=1).encode()


def read_labelme(path: Path) -> None:
    collect({'train': [path.name]}, lambda file, name: labelme_reader._labelme(file, path.parent, name))


READERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    'picture.png': (picture, read_picture),
    'picture.jpg': (picture, read_picture),
    'picture.tiff': (picture, read_picture),
    'picture.gif': (picture, read_picture),
    'list.txt': (image_list, lambda path: ListSource(path.parent, path)),
    'search.jsonl': (search_log, open_log),
    'weights.pth': (torch_file, read_checkpoint),
    'weights.safetensors': (safetensors_file, read_checkpoint),
    'voc.xml': (voc, read_voc),
    'labelme.json': (labelme, read_labelme),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', READERS)
def test_damaged_files_are_read_or_named(name: str, tmp_path: Path):
    make, read = READERS[name]
    path = tmp_path / name
    path.write_bytes(make(path))
    known = (path.stem, 'a.')
    assert refusals(path, lambda: read(path), lambda line: any(name in line for name in known)) > 0


CONFIG = """
_base_ = {base!r}
model = dict(model=dict(_delete_=True, model_name='pinas_nano', arch='30-32-20-03'), num_classes=2)
images = dict(kind='folder', root={root!r})
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(_delete_=True, type='pinas_zoo.SupervisedView', source=images, size=28, train=False),
)
val_dataloader = dict(num_workers=0, dataset=dict(source=images, size=28))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=2, val_interval=2)
"""


@pytest.mark.mm
@pytest.mark.filterwarnings('ignore')
def test_damaged_configs(tmp_path: Path):
    """Everything that happens before the Runner is built."""
    pytest.importorskip('mmengine')
    from pinas_zoo.mm.engine.launch import prepare_training
    from pinas_zoo.mm.engine.options import Options
    from pinas_zoo.mm.preflight.findings import BadInputError

    for name in ('a', 'b'):
        for number in range(2):
            (tmp_path / 'images' / name).mkdir(parents=True, exist_ok=True)
            picture(tmp_path / 'images' / name / f'{number}.png')
    base = Path(__file__).parents[1] / 'configs/imagenet/pinas-a_8xb32-coslr-270e_in1k.py'
    good = CONFIG.format(base=str(base), root=str(tmp_path / 'images')).encode()
    path, options = tmp_path / 'config.py', Options(work_dir=str(tmp_path / 'run'))
    path.write_bytes(good)
    assert prepare_training(path, options, []).model.num_classes == 2
    rng, refused, unreadable = np.random.default_rng(7), 0, 0
    for number in range(MUTATIONS):
        path.write_bytes(mutate(good, rng))
        before = refused
        try:
            prepare_training(path, options, [])
        except BadInputError as error:
            refused += 1
            unreadable += str(error).startswith(f'{path}: ')
            assert str(error), number
        tally('damaged config', refused > before)
    assert MUTATIONS // 4 < unreadable <= refused < MUTATIONS
    assert not (tmp_path / 'run').exists()


@pytest.mark.mm
def test_damaged_annotation_files_and_label_maps(tmp_path: Path):
    pytest.importorskip('mmdet')
    from pinas_zoo.mm.preflight.annotation_file import AnnotationFile
    from pinas_zoo.mm.preflight.bad_input import BadInputError, read_map
    from pinas_zoo.mm.preflight.findings import Findings
    from pinas_zoo.mm.preflight.objects import Objects, check_masks, check_objects

    box = {'bbox': [1, 1, 5, 5], 'area': 25, 'iscrowd': 0, 'segmentation': [[1, 1, 6, 1, 6, 6]]}
    annotations = [{'id': i, 'image_id': 1 + i % 2, 'category_id': 1, **box} for i in range(1, 5)]
    images = [{'id': i, 'file_name': f'{i}.png', 'height': 9, 'width': 9} for i in (1, 2)]
    good = {'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'cat'}]}
    content, path, rng = json.dumps(good, indent=1).encode(), tmp_path / 'coco.json', np.random.default_rng(7)
    refused = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(content, rng))
        try:
            file = AnnotationFile(str(path))
        except BadInputError as error:
            refused += str(error).startswith(str(path))
            tally('damaged annotation file', refused=True)
            continue
        lines = Findings(errors=list(file.errors))
        if not file.errors:
            known = [a for a in file.annotations if a['image_id'] in file.image_ids]
            objects = Objects(file, known)
            if check_objects(objects, True, lines):
                check_masks(objects, True, True, lines)
        refused += bool(lines.errors)
        tally('damaged annotation file', bool(lines.errors))
        assert all(line.startswith(str(path)) and '\n' not in line for line in lines.errors)
    assert refused > MUTATIONS // 2
    labels = tmp_path / 'map.png'
    Image.new('L', (9, 9), 1).save(labels)
    content = labels.read_bytes()
    for _ in range(MUTATIONS):
        labels.write_bytes(mutate(content, rng))
        fault = ''
        try:
            assert read_map(str(labels)).ndim == 2
        except BadInputError as error:
            fault = str(error)
            assert fault.startswith(str(labels))
        tally('damaged label map', bool(fault))
