"""One reader of pictures, one walk through folders, one grammar of lists."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pinas_zoo.data import BrokenImageError, FolderSource, ListSource, find_images, read_picture
from pinas_zoo.data.images import suffixes

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
ALPHA = np.dstack([COLOURS, RNG.integers(0, 256, (48, 64), dtype=np.uint8)])
DEEP = RNG.integers(0, 65536, (48, 64), dtype=np.uint16)


def write(path: Path, image: Image.Image | None = None, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(COLOURS)).save(path, **settings)
    return path


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


# ---- kinds of pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_a_picture_is_read_upright(suffix: str, tmp_path: Path) -> None:
    settings = {} if suffix in ('png', 'tif') else {'quality': 95}
    upright = COLOURS.astype(int)
    for value, stored in {3: upright[::-1, ::-1], 6: np.rot90(upright), 5: upright.transpose(1, 0, 2)}.items():
        image = Image.fromarray(stored.astype(np.uint8))
        pixels, factor = read_picture(write(tmp_path / f'{value}.{suffix}', image, exif=turned(value), **settings))
        assert pixels.shape == (48, 64, 3) and factor == 1
        if suffix in ('png', 'tif'):
            assert (pixels == upright).all()


def test_reduced_decoding_of_a_turned_picture(tmp_path: Path) -> None:
    smooth = np.kron(RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    path = write(tmp_path / 'a.jpg', Image.fromarray(np.rot90(smooth)), exif=turned(6), quality=95, subsampling=0)
    asked = []
    pixels, factor = read_picture(path, lambda height, width: asked.append((height, width)) or 2.0)
    assert asked == [(96, 64)] and factor == 2 and pixels.shape == (48, 32, 3)
    assert abs(pixels[4::8, 4::8].astype(int) - smooth[8::16, 8::16]).max() < 20


def test_damaged_metadata_do_not_spoil_a_picture(tmp_path: Path) -> None:
    exif = b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + bytes(7)
    assert read_picture(write(tmp_path / 'a.png', exif=exif))[0].shape == (48, 64, 3)


def test_every_kind_has_its_rule(tmp_path: Path) -> None:
    kinds = {
        'deep.png': (Image.fromarray(DEEP), DEEP >> 8),
        'deep.tif': (Image.fromarray(DEEP), DEEP >> 8),
        'deep.pgm': (Image.fromarray(DEEP), DEEP >> 8),
        'alpha.png': (Image.fromarray(ALPHA), COLOURS),
        'alpha.webp': (Image.fromarray(ALPHA), COLOURS),
        'black.png': (Image.fromarray(COLOURS[..., 0] > 99), np.where(COLOURS[..., 0] > 99, 255, 0)),
        'grey.png': (Image.fromarray(COLOURS[..., 1]), COLOURS[..., 1]),
        'float.tif': (Image.fromarray((COLOURS[..., 0] / 255).astype(np.float32)), COLOURS[..., 0]),
    }
    for name, (image, expected) in kinds.items():
        settings = dict(lossless=True, exact=True) if name.endswith('webp') else {}
        pixels, _ = read_picture(write(tmp_path / name, image, **settings))
        expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, axis=-1)
        assert pixels.dtype == np.uint8 and (pixels == expected).all(), name
    palette = Image.fromarray(COLOURS[..., 0]).convert('P')
    palette.putpalette([value for shade in range(256) for value in (shade, 255 - shade, 7)])
    pixels, _ = read_picture(write(tmp_path / 'palette.png', palette, transparency=0))
    assert (pixels == np.dstack([COLOURS[..., 0], 255 - COLOURS[..., 0], np.full((48, 64), 7)])).all()
    film = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (10, 200)]
    first, _ = read_picture(write(tmp_path / 'film.gif', film[0], save_all=True, append_images=film[1:]))
    assert (first == 10).all()


@pytest.mark.parametrize('values', [np.float32([[0, 300]]), np.float32([[0, np.nan]]), np.int32([[0, 70000]])])
def test_an_unknown_range_is_refused(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match=r'a\.tif.*values go from'):
        read_picture(write(tmp_path / 'a.tif', Image.fromarray(values)))


def test_mmcv_reads_alike(tmp_path: Path) -> None:
    """What detection and segmentation read by OpenCV; docs/data.md names the two kinds that differ."""
    mmcv = pytest.importorskip('mmcv')
    pictures = {
        'a.jpg': (Image.fromarray(COLOURS), {}),
        'b.jpg': (Image.fromarray(COLOURS), {'exif': turned(8)}),
        'c.png': (Image.fromarray(COLOURS), {'exif': turned(3)}),
        'd.png': (Image.fromarray(DEEP), {}),
        'e.png': (Image.fromarray(ALPHA), {}),
        'f.png': (Image.fromarray(COLOURS).convert('P'), {'transparency': 3}),
        'g.png': (Image.fromarray(COLOURS).convert('1'), {}),
        'h.webp': (Image.fromarray(ALPHA), {'lossless': True, 'exact': True}),
        'i.pgm': (Image.fromarray(DEEP), {}),
        'j.png': (Image.fromarray(ALPHA).convert('LA'), {}),
        'k.tif': (Image.fromarray(COLOURS), {}),
        'l.bmp': (Image.fromarray(COLOURS), {}),
    }
    for name, (image, settings) in pictures.items():
        path = write(tmp_path / name, image, **settings)
        theirs = mmcv.imfrombytes(path.read_bytes())[..., ::-1]
        assert np.array_equal(read_picture(path)[0], theirs), name
    path = write(tmp_path / 'cmyk.jpg', Image.fromarray(COLOURS).convert('CMYK'))
    theirs = mmcv.imfrombytes(path.read_bytes())[..., ::-1]
    assert abs(read_picture(path)[0].astype(int) - theirs).max() <= 1


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_suffixes_are_what_pillow_decodes(tmp_path: Path) -> None:
    assert {'.jpg', '.jfif', '.jpe', '.gif', '.pgm', '.webp', '.tif', '.png', '.bmp'} <= suffixes()
    assert not {'.eps', '.ps', '.mpg', '.h5', '.txt', '.pdf'} & suffixes()
    for name in ('a.JPG', 'b.jfif', 'c.gif', 'd.pgm', 'e.tiff'):
        kind = {'b.jfif': 'JPEG', 'd.pgm': 'PPM'}.get(name)
        write(tmp_path / name, Image.fromarray(COLOURS[..., 0]), format=kind)
    write(tmp_path / 'k', format='PNG')
    (tmp_path / 'notes.txt').touch()
    (tmp_path / 'more.txt').touch()
    found = find_images(tmp_path)
    assert found.paths == ['a.JPG', 'b.jfif', 'c.gif', 'd.pgm', 'e.tiff']
    assert found.summary() == '2 .txt files, 1 files without suffix'


def test_what_systems_leave_behind_is_skipped_and_counted(tmp_path: Path) -> None:
    for name in ('cat', 'dog'):
        write(tmp_path / name / '1.png')
        (tmp_path / name / '._1.png').write_bytes(b'\0\5\26\7')
    for name in ('.ipynb_checkpoints/1.png', '__MACOSX/cat/1.png'):
        write(tmp_path / name)
    (tmp_path / 'cat/Thumbs.db').touch()
    source = FolderSource(tmp_path)
    assert source.classes == ('cat', 'dog') and len(source) == 2
    assert source.notes == [f'folder {str(tmp_path)!r}: left out 5 hidden or system files and folders']


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    root, store = tmp_path / 'root', tmp_path / 'store'
    for number in range(3):
        write(root / 'cat' / f'{number}.png')
        write(store / 'dogs' / f'{number}.png')
    (root / 'dog').symlink_to(store / 'dogs')
    (root / 'cat' / 'all').symlink_to(root)  # a cycle
    (store / 'dogs' / 'back').symlink_to(root / 'cat')
    (root / 'again').symlink_to(root / 'cat')
    (root / 'cat' / 'gone.png').symlink_to(tmp_path / 'nothing.png')
    (root / 'cat' / 'self.png').symlink_to(root / 'cat' / 'self.png')
    found = find_images(root)
    assert found.paths == [f'{name}/{number}.png' for name in ('cat', 'dog') for number in range(3)]
    assert found.left_out['linked folders that were read already'] == 3
    assert found.left_out['broken links or special files'] == 2
    assert find_images(root, skip=[store / 'dogs']).paths == [f'cat/{number}.png' for number in range(3)]


def test_labels_follow_a_class_list_by_name(tmp_path: Path) -> None:
    for name in ('blue', 'red'):
        write(tmp_path / name / '1.png')
    (tmp_path / 'green').mkdir()
    assert FolderSource(tmp_path).classes == ('blue', 'red')
    assert 'no image in (green)' in FolderSource(tmp_path).notes[0]
    source = FolderSource(tmp_path, ('blue', 'green', 'red'))
    assert source.labels.tolist() == [0, 2] and source.classes == ('blue', 'green', 'red')
    with pytest.raises(ValueError, match=r'\(red\) that are not among the 2 classes \(blue, green\)'):
        FolderSource(tmp_path, ('blue', 'green'))


# ---- lists -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ('a.png', 'b.png', 'my photo 3.png'):
        write(tmp_path / name)
    return tmp_path


def listed(root: Path, text: str, encoding: str = 'utf-8', **more: object) -> ListSource:
    (root / 'list.txt').write_bytes(text.encode(encoding))
    return ListSource(root, root / 'list.txt', **more)


def test_lists_that_fit(pictures: Path) -> None:
    for encoding in ('utf-8', 'utf-8-sig'):
        source = listed(pictures, 'a.png 1\r\n\nmy photo 3.png\t0\nb.png  2\n', encoding)
        assert source.labels.tolist() == [1, 0, 2] and source.load(1).shape == (3, 48, 64)
        assert source.classes == ('0', '1', '2') and not source.notes
    assert listed(pictures, 'a.png\nmy photo 3.png\n').classes == ()
    assert listed(pictures, 'a.png 1\nb.png 0\n', classes=('x', 'y', 'z')).classes == ('x', 'y', 'z')
    assert '1 lines repeat' in listed(pictures, 'a.png 1\na.png 1\n').notes[0]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('path label\na.png 0\n', "line 1: 'path label' names no file below"),
        ('a.png,0\nb.png,1\n', "line 1: 'a.png,0' names no file .* without header, quotes or comma"),
        ('a.png 0\n\nb.png\n', r"line 3: 'b\.png' has no label, earlier lines have one"),
        ('a.png\nb.png 1\n', r"line 2: 'b\.png 1' has a label, earlier lines have none"),
        ('a.png 0\nsub\\b.png 1\n', r"line 2: .* paths are written with '/'"),
        ('a.png 0\nb.png -1\n', r'line 2: .* has label -1, allowed are 0 to 999999'),
        ('a.png 0\nb.png 1000000000000\n', r'line 2: .* has label 1000000000000, allowed are 0 to 999999'),
        ('a.png 0\nb.png 1\na.png 1\n', r"line 3: .* gives 'a\.png' label 1, an earlier line gives it 0"),
        ('a.png 0\nb.png 1\n./a.png 1\n', r'line 3: .* label 1, an earlier line gives it 0'),
        ('a.png 0\nb.png 1.0\n', 'line 2: .* has no label, .*; the label is the last word, an integer'),
        ('\n\n', 'is empty'),
    ],
)
def test_lists_that_are_refused(text: str, message: str, pictures: Path) -> None:
    with pytest.raises(ValueError, match=message):
        listed(pictures, text)


def test_lines_of_a_list_that_name_no_file_are_counted_before_a_run(pictures: Path) -> None:
    source = listed(pictures, 'a.png 0\n\n"b.png" 1\nlost.png 1\n')
    with pytest.raises(ValueError, match=r"2 of its 3 lines name no file below .*, the first is line 3: '\"b\.png\"'"):
        source.look()


def test_other_refusals(pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"'b\.png' has label 5, allowed are 0 to 1, the 2 classes \(x, y\)"):
        listed(pictures, 'a.png 1\nb.png 5\n', classes=('x', 'y'))
    with pytest.raises(ValueError, match='is not UTF-8'):
        listed(pictures, 'ä.png 0\n', 'latin-1')


def test_a_picture_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / 'a.png', Image.new('L', (2000, 1200)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000)
    with pytest.raises(BrokenImageError, match=r'a\.png.*implausibly large'):
        read_picture(path)
    stream = io.BytesIO()
    Image.new('L', (3, 3)).save(stream, 'PNG')
    path.write_bytes(stream.getvalue())
    assert read_picture(path)[0].shape == (3, 3, 3)
