"""Annotation files of COCO's format: every defect is a line with file, id and value; repairs are stated."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tally import tally

pytestmark = pytest.mark.mm
pytest.importorskip('mmdet')
coco_mask = pytest.importorskip('pycocotools.mask')

SIZE = 32
CLASSES = ('cat', 'dog')
MASKS = [{'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]


def document(images: int = 2) -> dict:
    """Two objects per image, as polygons."""
    found: dict = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]}
    for number in range(1, images + 1):
        found['images'].append({'id': number, 'file_name': f'{number}.png', 'height': SIZE, 'width': SIZE})
        for label, x in ((1, 2), (2, 16)):
            found['annotations'].append(
                {
                    'id': len(found['annotations']) + 1,
                    'image_id': number,
                    'category_id': label,
                    'bbox': [x, 4, 10, 12],
                    'area': 120,
                    'iscrowd': 0,
                    'segmentation': [[x, 4, x + 10, 4, x + 10, 16, x, 16]],
                }
            )
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('pets')
    for number in (1, 2):
        Image.new('RGB', (SIZE, SIZE)).save(root / f'{number}.png')
    return root


def check(folder: Path, content: Any, classes: Any = CLASSES, test: bool = False) -> tuple[list[str], list[str]]:
    """Errors and warnings of a file with this content."""
    from mmengine.config import ConfigDict

    from pinas_zoo.data.trees import Listing
    from pinas_zoo.mm.detection import CocoDataset
    from pinas_zoo.mm.preflight.coco import check_coco
    from pinas_zoo.mm.preflight.findings import Findings

    (folder / 'file.json').write_text(content if isinstance(content, str) else json.dumps(content))
    node = ConfigDict(
        type='CocoDataset',
        ann_file='file.json',
        data_root=str(folder),
        data_prefix={'img': ''},
        metainfo={'classes': classes},
        test_mode=test,
    )
    dataset = CocoDataset(**{k: v for k, v in node.items() if k != 'type'}, lazy_init=True, pipeline=[])
    findings = Findings()
    node.pipeline = MASKS
    check_coco(dataset, node, [{'metric': ['bbox', 'segm']}] if test else [], Listing(), findings)
    return findings.errors, findings.warnings


def setter(key: str, value: Any, index: int = 1, part: str = 'annotations') -> Callable[[dict], Any]:
    return lambda found: found[part][index].update({key: value})


def drop(key: str, part: str = 'annotations') -> Callable[[dict], Any]:
    return lambda found: found[part][1].pop(key)


RLE = {'size': [16, 16], 'counts': [256]}
DEFECTS = {
    'flat polygon': (setter('segmentation', [1, 2, 9, 2, 9, 9]), 'annotation 2 has a flat list of 6 numbers'),
    'polygon of four': (setter('segmentation', [[1, 2, 3, 4]]), 'annotation 2 has no polygon of at least three points'),
    'empty polygon': (setter('segmentation', [[]]), 'annotation 2 has no polygon of at least three points'),
    'text in polygon': (setter('segmentation', [[1, 2, '3', 4, 5, 6]]), 'annotation 2 has a polygon with a coordinate'),
    'far polygon': (setter('segmentation', [[1, 2, 1e9, 4, 5, 6]]), 'annotation 2 has a polygon that is not finite or'),
    'text as mask': (
        setter('segmentation', 'abc'),
        "annotation 2 has segmentation 'abc', which must be a list of polygons",
    ),
    'size of RLE': (setter('segmentation', RLE), 'annotation 2 has an RLE of size [16, 16], its image is [32, 32]'),
    'pixels of RLE': (
        setter('segmentation', {'size': [32, 32], 'counts': [9]}),
        'has an RLE of 9 px, its image has 1,',
    ),
    'damaged RLE': (
        setter('segmentation', {'size': [32, 32], 'counts': '0`0'}),
        'annotation 2 has an RLE that is damaged',
    ),
    'no area': (drop('area'), 'annotation 2 has no area'),
    'text as area': (setter('area', '9'), "annotation 2 has area '9', which must be a number"),
    'endless area': (setter('area', float('inf')), 'annotation 2 has area inf'),
    'area beyond floats': (setter('area', 10**400), 'annotation 2 has area 1000'),
    'crowd of two': (setter('iscrowd', 2), 'annotation 2 has iscrowd 2, which must be 0 or 1'),
    'box of none': (setter('bbox', []), 'annotation 2 has bbox [], which must be four numbers'),
    'box of eight': (setter('bbox', [1] * 8), 'annotation 2 has bbox [1, 1, 1, 1, 1, 1, 1, 1], which must be four'),
    'box of texts': (setter('bbox', ['1', '2', '3', '4']), "annotation 2 has bbox ['1', '2', '3', '4'], which must be"),
    'box as text': (setter('bbox', '1 2 3 4'), "annotation 2 has bbox '1 2 3 4', which must be a list"),
    'image id twice': (setter('id', 1, part='images'), 'image id 1 occurs twice'),
    'mixed image ids': (setter('id', 'b', part='images'), "image ids mix integers and texts, such as 1 and 'b'"),
    'true as id': (setter('image_id', True), 'annotation 2 has image_id True, which must be an integer or a text'),
    'annotation id twice': (setter('id', 1), 'annotation id 1 occurs twice'),
    'category twice': (setter('name', 'cat', part='categories'), "category name 'cat' occurs twice (ids 1, 2)"),
    'category id twice': (setter('id', 1, part='categories'), 'category id 1 occurs twice'),
    'nameless category': (drop('name', 'categories'), 'category 2 has no name'),
    'unknown category': (setter('category_id', 9), 'annotation 2 has category_id 9, the 2 categories are 1 to 2'),
    'no height': (drop('height', 'images'), 'image 2 has no height'),
    'size unknown': (setter('width', -1, part='images'), 'image 2 has width -1 and height 32, which must be positive'),
    'list as name': (setter('file_name', ['x'], part='images'), "image 2 has file_name ['x'], which must be a text"),
    'no entry': (lambda found: found['annotations'].append(None), 'is None, but must be an object with keys'),
    'all crowds': (
        lambda found: [a.update(iscrowd=1) for a in found['annotations']],
        'no object to learn from: of its 4 annotations 4 are crowds (iscrowd 1)',
    ),
    'shares of the size': (
        lambda found: [a.update(segmentation=[[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]) for a in found['annotations']],
        'annotation 1 has polygons within the first pixel, as most do: [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]; coordinates',
    ),
    'boxes as shares': (
        lambda found: [a.update(bbox=[0.1, 0.1, 0.8, 0.8]) for a in found['annotations']],
        'all boxes are within one pixel: COCO has pixels, not shares of the size',
    ),
    'address as picture': (
        lambda found: [i.update(file_name=f'http://x.org/{i["id"]}.png') for i in found['images']],
        "file_name 'http://x.org/1.png' is an address: download the images",
    ),
    'strangers only': (
        lambda found: [a.update(image_id=str(a['image_id'])) for a in found['annotations']],
        "none of its 4 annotations belongs to one of its images: annotation 1 has image_id '1'",
    ),
}


@pytest.mark.parametrize('name', DEFECTS)
def test_a_defect_is_named(name: str, folder: Path):
    edit, text = DEFECTS[name]
    found = document()
    edit(found)
    errors, _ = check(folder, found)
    assert any(text in line and line.startswith(f'{folder}/file.json: ') for line in errors), errors
    assert all('\n' not in line for line in errors)


def test_several_defects_at_once(folder: Path):
    found = document()
    found['annotations'][0]['segmentation'] = [1, 2, 3, 4, 5, 6]
    found['annotations'][1]['iscrowd'] = 'no'
    found['annotations'][2]['area'] = float('nan')
    errors, _ = check(folder, found)
    assert len(errors) >= 2 and 'iscrowd' in errors[0] and 'area nan' in errors[1]


def test_a_sound_file_passes_silently_for_training_and_evaluation(folder: Path):
    found = document()
    rle = coco_mask.encode(np.asfortranarray(np.eye(SIZE, dtype=np.uint8)))
    found['annotations'][0]['segmentation'] = {'size': rle['size'], 'counts': rle['counts'].decode()}
    found['annotations'][1].update(segmentation={'size': [SIZE, SIZE], 'counts': [4, SIZE * SIZE - 4]}, iscrowd=1)
    found['annotations'][2]['id'] = 0
    assert check(folder, found) == ([], []) == check(folder, found, test=True)
    text = document()
    for entry in text['images'] + text['categories']:
        entry['id'] = f'n{entry["id"]}'
    for entry in text['annotations']:
        entry.update(image_id=f'n{entry["image_id"]}', category_id=f'n{entry["category_id"]}')
    assert check(folder, text) == ([], [])


def test_paths_of_windows_and_folders_named_twice_are_recognised(folder: Path):
    for prefix, hint in (
        ('a\\', "; file_name 'a\\\\1.png' is a path of Windows: write / for \\"),
        (f'{folder.name}/', ''),
    ):
        found = document()
        for image in found['images']:
            image['file_name'] = prefix + image['file_name']
        (error,) = check(folder, found)[0]
        hint = hint or f'; data_prefix and file_name both contain {folder.name!r}'
        assert '2 of its 2 images are missing: ' in error and error.endswith(hint)


def test_repairs_are_stated(folder: Path):
    found = document()
    for annotation in found['annotations']:
        annotation.pop('iscrowd')
    found['annotations'][1]['segmentation'].append([1, 2, 3, 4])
    errors, warnings = check(folder, found)
    assert not errors
    assert warnings == [
        f'{folder}/file.json: annotation 1 has no iscrowd, which is taken as 0 (4 of 4 annotations)',
        f'{folder}/file.json: annotation 2 has a polygon of 4 numbers, which is left out; its other polygons are kept',
    ]


def test_an_area_that_leaves_an_object_out_is_stated(folder: Path):
    found = document()
    found['annotations'][1]['area'] = -5
    for training, text in ((True, 'and training leaves it out'), (False, 'and the metric leaves it out')):
        errors, warnings = check(folder, found, test=not training)
        assert not errors and any(f'annotation 2 has area -5, {text}' in line for line in warnings), warnings
    for annotation in found['annotations']:
        annotation['area'] = -1
    errors, _ = check(folder, found, test=True)
    assert 'no object to compare with: of its 4 annotations 4 have a negative area' in errors[0]


def test_a_class_without_object_is_a_warning(folder: Path):
    found = document()
    for annotation in found['annotations']:
        annotation['category_id'] = 1
    assert check(folder, found)[1] == [f"{folder}/file.json: no annotation of class 'dog'"]


@given(st.lists(st.booleans(), min_size=64, max_size=64), st.integers(0, 1))
@settings(max_examples=50, deadline=None)
def test_run_lengths_are_counted_as_pycocotools_codes_them(bits: list[bool], first: int):
    from pinas_zoo.mm.preflight.masks import wrong_counts

    pixels = np.array(bits, np.uint8).reshape(8, 8, order='F')
    masks = [coco_mask.encode(np.asfortranarray(m)) for m in (pixels, pixels * 0 + first, np.tile(pixels, (9, 90)))]
    for mask in masks:
        mask['counts'] = mask['counts'].decode()
    assert list(wrong_counts(masks, [64, 64, 51_840])) == []
    assert list(wrong_counts(masks, [64, 63, 51_841])) == [1, 2]
    assert list(wrong_counts([{'counts': ''}, *masks[:1], {'counts': 'ü'}], [64] * 3)) == [0, 2]
    tally('run lengths', refused=False)


# ---- reading ---------------------------------------------------------------------------------------------------------

TEXT = json.dumps(document())
#: What comes as an annotation file, and the error line without the path; '' for a file that is read.
FILES: dict[str, tuple[bytes, str]] = {
    'UTF-8 with BOM': (b'\xef\xbb\xbf' + TEXT.encode(), ''),
    'UTF-16': (TEXT.encode('utf-16'), ''),
    'long ids': (
        TEXT.replace('"image_id": 1', '"image_id": 1' + '0' * 30)
        .replace('[{"id": 1,', '[{"id": 1' + '0' * 30 + ',', 1)
        .encode(),
        '',
    ),
    'lists named elsewhere': (
        TEXT.replace('{', '{"info": {"images": 1, "annotations": [], "annotations": []}, ', 1).encode(),
        '',
    ),
    'incomplete': (TEXT[:200].encode(), 'not JSON (Expecting value: line 1 column 201 (char 200))'),
    'two documents': (TEXT.encode() * 2, f'not JSON (Extra data: line 1 column {len(TEXT) + 1} (char {len(TEXT)}))'),
    'JSON Lines': (
        b'{"id": 1}\n{"id": 2}\n',
        'not JSON (Extra data: line 2 column 1 (char 10)): it looks like JSON Lines',
    ),
    'gzip': (gzip.compress(TEXT.encode()), 'it is compressed; unpack it with gunzip'),
    'empty': (b'', 'not JSON (Expecting value: line 1 column 1 (char 0))'),
    'a list': (b'[1]', 'has no list of images, annotations, categories, as annotation files of COCO have'),
    'merged by hand': (
        TEXT[:-1].encode() + b', "annotations": []}',
        'has the key annotations twice, of which readers keep',
    ),
    'latin-1': (
        TEXT.replace('cat', 'ch\u00e2t').encode('latin-1'),
        "not JSON ('utf-8' codec can't decode byte 0xe2 in position",
    ),
    'latin-1 in a field that is not used': (
        TEXT.replace('{', '{"info": "\u00e2", ', 1).encode('latin-1'),
        "not JSON ('utf-8' codec can't decode byte 0xe2 in position",
    ),
    'deep': (b'{"images": ' + b'[' * 9999, 'not JSON (maximum recursion depth exceeded'),
}


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('name', FILES)
def test_files_are_read_or_refused_with_either_parser(name: str, fast: bool, tmp_path: Path, monkeypatch):
    from pinas_zoo.mm.preflight import coco_json
    from pinas_zoo.mm.preflight.annotation_file import FIELDS
    from pinas_zoo.mm.preflight.findings import BadInputError

    if not fast:
        monkeypatch.setattr(coco_json, 'msgspec', None)
    else:
        pytest.importorskip('msgspec')
    content, text = FILES[name]
    path = tmp_path / 'file.json'
    path.write_bytes(content)
    if not text:
        found = coco_json.load(str(path))
        assert found['annotations'] == json.loads(content.decode(json.detect_encoding(content)))['annotations']
        assert coco_json.read_categories(content) == found['categories']
        used, typed = coco_json.load_used(str(path), FIELDS)
        assert typed == (fast and name != 'UTF-16')
        for annotation in used['annotations']:
            annotation['segmentation'] = coco_json.opened(annotation['segmentation'])
        assert used['annotations'] == found['annotations'] and used['images'] == found['images']
        return
    for read in (coco_json.load, lambda path: coco_json.load_used(path, FIELDS)):
        with pytest.raises(BadInputError) as error:
            read(str(path))
        assert str(error.value).startswith(f'{path}: ') and text in str(error.value)


@pytest.mark.parametrize(
    'text', ['1e999', '[[1, 2, 9, 2, 9, -1e999]]', '[[1, 2, 9, 2, "9", 9]]', '[[1, true]]', '[[]]', '{}']
)
def test_masks_say_the_same_with_either_parser(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    from pinas_zoo.mm.preflight import coco_json

    found = document()
    found['annotations'][1]['segmentation'] = '@'
    content = json.dumps(found).replace('"@"', text)
    lines = check(folder, content)
    monkeypatch.setattr(coco_json, 'msgspec', None)
    assert lines == check(folder, content)
    assert 'annotation 2 ' in lines[0][0]


def test_polygons_are_plain_or_looked_at(folder: Path):
    from pinas_zoo.mm.preflight.masks import mask_fault, plain_masks

    sound = [1, 2, 9, 2, 9, 9.5]
    masks: list[Any] = [[sound], [sound, sound], [], None, {'counts': []}, sound, [sound, []], [[1, 2, 3, 4]], 'ab']
    masks += [[sound, [1, 2, 9, 2, 9, math.nan]], [[-1, *sound[1:]]], [[*sound, 65, 1]], [[*sound, 1]]]
    assert plain_masks(masks, np.full(len(masks), 32.0)).tolist() == [True, True] + [False] * 11
    assert not any(mask_fault(mask, 32, 32) for mask in masks[:2])
    assert not plain_masks([*masks, [['1', *sound[1:]]]], np.full(len(masks) + 1, 32.0)).any()  # all are looked at


# ---- properties ------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([10**30, '1', '', 'cat', [], [[]], {}, {'size': [32, 32], 'counts': '04'}, {'counts': [1024]}]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.lists(st.one_of(st.integers(-5, 40), st.floats(-50, 50), st.none(), st.just('2')), max_size=8),
    st.lists(st.lists(st.floats(-40, 60), max_size=9), max_size=3),
)
KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'segmentation', 'ignore')
KEYS += ('name', 'file_name', 'height', 'width')
PLACES = st.tuples(
    st.sampled_from(['images', 'annotations', 'annotations', 'categories']),
    st.integers(0, 3),
    st.sampled_from(KEYS),
)
EDITS = st.lists(st.tuples(PLACES, st.sampled_from(['set', 'set', 'drop', 'copy', 'delete']), VALUES), max_size=3)


def _edited(edits: list) -> dict:
    found = document()
    for (part, index, key), action, value in edits:
        entries = found[part]
        if not entries:
            continue
        entry = entries[index % len(entries)]
        if action == 'set':
            entry[key] = value
        elif action == 'drop':
            entry.pop(key, None)
        elif action == 'copy':
            entries.append(dict(entry))
        else:
            entries.remove(entry)
    return found


def _use(folder: Path) -> None:
    """Reads every sample as training does, and evaluates a prediction per image with and without masks."""
    from mmdet.datasets.transforms import LoadAnnotations

    from pinas_zoo.mm.detection import CocoDataset, CocoMetric

    path = str(folder / 'file.json')
    load = LoadAnnotations(with_bbox=True, with_mask=True)
    dataset = CocoDataset(
        ann_file=path,
        data_prefix={'img': str(folder)},
        metainfo={'classes': CLASSES},
        pipeline=[],
        serialize_data=False,
    )
    assert len(dataset)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        load(info | {'ori_shape': (SIZE, SIZE), 'img_shape': (SIZE, SIZE)})
    metric = CocoMetric(ann_file=path, metric=['bbox', 'segm'])
    metric.dataset_meta = {'classes': CLASSES}
    mask = coco_mask.encode(np.asfortranarray(np.eye(SIZE, dtype=np.uint8)))
    for image in metric._coco_api.dataset['images']:
        result = {
            'img_id': image['id'],
            'bboxes': np.array([[2.0, 4, 12, 16]]),
            'scores': np.array([0.5]),
            'labels': np.array([0]),
            'masks': [dict(mask)],
        }
        metric.results.append(({'img_id': image['id'], 'width': SIZE, 'height': SIZE}, result))
    metrics = metric.compute_metrics(metric.results)
    assert metrics['bbox_mAP'] >= 0 and metrics['segm_mAP'] >= 0


@given(EDITS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_passes_can_be_trained_and_evaluated(folder: Path, edits: list):
    """A generated defect is reported in a line, or training and evaluation succeed."""
    found = _edited(edits)
    lines = check(folder, found), check(folder, found, test=True)
    with mock.patch('pinas_zoo.mm.preflight.coco_json.msgspec', None):
        assert lines == (check(folder, found), check(folder, found, test=True))
    errors = lines[0][0] + lines[1][0]
    assert all(isinstance(line, str) and '\n' not in line for line in errors)
    if not errors:
        _use(folder)
    tally('annotation file with random defects', bool(errors))


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_and_metric_follow_classes(folder: Path):
    """Categories in another order than `classes`, with descending ids: perfect predictions score 1, class by class."""
    from pinas_zoo.mm.detection import CocoDataset, CocoMetric

    found = document()
    found['categories'] = [{'id': 2, 'name': 'dog'}, {'id': 1, 'name': 'cat'}]
    found['annotations'][0]['iscrowd'] = 1
    (folder / 'file.json').write_text(json.dumps(found))
    path, names = str(folder / 'file.json'), ('dog', 'cat')
    for classes in (names, names[::-1]):
        dataset = CocoDataset(ann_file=path, data_prefix={'img': ''}, metainfo={'classes': classes}, pipeline=[])
        labels = [i['bbox_label'] for i in dataset.get_data_info(1)['instances']]
        assert [classes[label] for label in labels] == ['cat', 'dog']
        metric = CocoMetric(ann_file=path, metric='bbox', classwise=True)
        metric.dataset_meta = {'classes': classes}
        for image in (1, 2):
            info = dataset.get_data_info(image - 1)
            kept = [i for i in info['instances'] if i['bbox_label'] == classes.index('dog')]
            result = {
                'img_id': image,
                'bboxes': np.array([i['bbox'] for i in kept], float),
                'scores': np.full(len(kept), 0.9),
                'labels': np.array([i['bbox_label'] for i in kept]),
            }
            metric.results.append(({'img_id': image, 'width': SIZE, 'height': SIZE}, result))
        metrics = metric.compute_metrics(metric.results)
        assert metrics['dog_precision'] == 1 and metrics['cat_precision'] == 0, classes


def test_a_class_without_ground_truth_is_named_beside_the_mean(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from pinas_zoo.mm import detection

    said: list[str] = []
    logger = SimpleNamespace(warning=said.append, info=lambda _: None)
    monkeypatch.setattr(detection, 'MMLogger', SimpleNamespace(get_current_instance=lambda: logger))
    found = document()
    for annotation in found['annotations']:
        annotation['category_id'] = 1
    (folder / 'file.json').write_text(json.dumps(found))
    metric = detection.CocoMetric(ann_file=str(folder / 'file.json'), metric='bbox')
    metric.dataset_meta = {'classes': CLASSES}
    result = {'img_id': 1, 'bboxes': np.array([[2.0, 4, 12, 16]]), 'scores': np.ones(1), 'labels': np.zeros(1, int)}
    metric.results.append(({'img_id': 1, 'width': SIZE, 'height': SIZE}, result))
    metric.compute_metrics(metric.results)
    assert said == ["the mean is over 1 of 2 classes: no object of 'dog'"]
