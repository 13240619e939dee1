"""Predictions on an image, a folder of images or a video, drawn and as JSON lines."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from pinas_zoo.data.images import ImageFiles, find_images, read_picture, suffixes
from pinas_zoo.data.sources import BrokenImageError
from pinas_zoo.data.tiles import Tiling, open_tiled
from pinas_zoo.files import write_atomic
from pinas_zoo.mm.inference.predictors import Prediction, Predictor
from pinas_zoo.mm.inference.records import draw, line
from pinas_zoo.mm.inference.tiled import Tiled, predict_tiled

__all__ = ['UNFIT', 'VIDEOS', 'Outcome', 'infer']

#: Suffixes of videos; pictures are what `pinas_zoo.data.images` reads.
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
#: Suffixes that pictures are written with; others become PNG.
WRITTEN = ('.jpeg', '.jpg', '.png', '.webp')
#: A container's frame count may be an estimate; fewer frames than this share of it mean a damaged video.
WHOLE = 0.95
_LARGER = '--max-megapixels allows more, at 4 bytes of memory per pixel'
#: What pipelines and networks raise for an image whose sides they cannot use.
UNFIT = (cv2.error, ValueError, ZeroDivisionError)


@dataclass
class Outcome:
    """The result of a run.

    Args:
        predictions: The file of JSON lines.
        written: Number of pictures, or of frames of the video.
        failed: Reasons by the name of what could not be read.
        left_out: Other files of the folder, counted by kind; '' if there are none.
    """

    predictions: Path
    written: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: str = ''


def infer(
    source: str | Path,
    predictor: Predictor,
    out: str | Path,
    batch_size: int = 1,
    progress: bool = True,
    tiling: Tiling | None = None,
) -> Outcome:
    """Runs a predictor over everything at `source`.

    Args:
        source: An image, a folder (with its subfolders) or a video.
        predictor: The network.
        out: Folder for the pictures (named as their images), the video (as MP4) and `predictions.jsonl`.
        batch_size: Images per batch.
        progress: Show a bar.
        tiling: How pictures are cut into tiles, for large ones; None passes them whole.

    Returns:
        What was written, and what could not be read, which is skipped.

    Raises:
        ValueError: There is nothing to read at `source`, a video does not decode, `out` would overwrite `source`, or
            a video or a classifier should be tiled.
    """
    source, out = Path(source), Path(out)
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    if not source.exists():
        raise ValueError(f'{source} does not exist; give an image, a folder or a video')
    if (source if source.is_dir() else source.parent).resolve() == out.resolve():
        raise ValueError(f'{out} contains the input: pictures of the same names would overwrite it; use another folder')
    place = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    if not place.is_dir():
        raise ValueError(f'{place} is a file, but --out has to be a folder')
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f'{out} cannot be written: no permission for {place}')
    outcome = Outcome(out / 'predictions.jsonl')
    film = source.suffix.lower() in VIDEOS and source.is_file()
    if film and tiling is not None:
        raise ValueError(f'{source} is a video: only pictures are cut into tiles')
    if tiling is not None and not predictor.tileable:
        raise ValueError('tiles are for detectors and segmentors: a classifier judges the whole picture')
    with _lines(outcome.predictions) as write_line:
        handle = _video if film else _pictures
        handle(source, _Run(predictor, batch_size, tiling, progress), outcome, write_line)
    return outcome


@contextmanager
def _lines(path: Path) -> Iterator[Callable[[str], object]]:
    """Takes lines, each written at once; what was found so far becomes the file, whatever ended the run."""
    with tempfile.TemporaryFile('w+', encoding='utf-8') as stream:
        try:
            yield stream.write
        finally:
            if stream.tell():
                stream.seek(0)
                write_atomic(path, lambda part: _copy(stream, part))


def _copy(stream: IO[str], path: Path) -> None:
    with open(path, 'w', encoding='utf-8') as target:
        shutil.copyfileobj(stream, target)


def _predicted(
    named: Iterator[tuple[str, np.ndarray]], predictor: Predictor, batch_size: int, outcome: Outcome
) -> Iterator[tuple[str, np.ndarray, Prediction]]:
    while batch := list(islice(named, batch_size)):
        found: Sequence[Prediction | None]
        try:
            found = predictor.run([image for _, image in batch])
        except UNFIT:
            found = [_alone(predictor, name, image, outcome) for name, image in batch]
        for (name, image), prediction in zip(batch, found, strict=True):
            if prediction is not None:
                yield name, image, prediction


def _alone(predictor: Predictor, name: str, image: np.ndarray, outcome: Outcome) -> Prediction | None:
    """The prediction of an image whose batch failed; None, and a reason, if it failed because of this one."""
    try:
        return predictor.run([image])[0]
    except UNFIT as error:
        outcome.failed[name] = _unfit(image.shape[:2], error)
        return None


def _unfit(size: tuple[int, int], error: Exception) -> str:
    return ' '.join(f'the network cannot process its {size[1]}x{size[0]} px ({error})'.split())


# ---- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What is done with every picture; as the arguments of `infer`."""

    predictor: Predictor
    batch_size: int
    tiling: Tiling | None
    progress: bool

    def results(self, names: Iterable[str], root: Path, outcome: Outcome) -> Iterator[tuple[str, Tiled]]:
        """Names and results, one picture, or batch of pictures, after the other."""
        if self.tiling is not None:
            yield from self._tiled(names, root, self.tiling, outcome)
            return
        for name, image, found in _predicted(
            _read_images(names, root, outcome), self.predictor, self.batch_size, outcome
        ):
            yield name, Tiled(image.shape[:2], image, found, found)

    def _tiled(self, names: Iterable[str], root: Path, tiling: Tiling, outcome: Outcome) -> Iterator[tuple[str, Tiled]]:
        for name in names:
            found = None
            with _noting(name, outcome, _LARGER), open_tiled(root / name) as picture:
                try:
                    found = predict_tiled(picture, self.predictor, tiling, self.batch_size, self.progress)
                except UNFIT as error:
                    if isinstance(error, BrokenImageError):
                        raise
                    outcome.failed[name] = _unfit((picture.height, picture.width), error)
            if found is not None:
                yield name, found


def _pictures(source: Path, run: _Run, outcome: Outcome, write_line: Callable[[str], object]) -> None:
    out = outcome.predictions.parent
    root = source if source.is_dir() else source.parent
    found = find_images(source, skip=[out]) if source.is_dir() else ImageFiles([source.name])
    outcome.left_out = found.summary()
    if not found.paths or (source.is_file() and source.suffix.lower() not in suffixes()):
        left_out = f'; left out: {outcome.left_out}' if outcome.left_out else ''
        raise ValueError(
            f'{source} contains no image ({" ".join(sorted(suffixes()))}) and is not a video '
            f'({" ".join(VIDEOS)}){left_out}'
        )
    pictures = _picture_names(found.paths)
    names = tqdm(found.paths, disable=not run.progress, unit='image')
    for name, result in run.results(names, root, outcome):
        path = out / pictures[name]
        picture = draw(result.image, result.shown, run.predictor)
        write_atomic(path, _saver(picture, path.suffix))
        facts = {'image': name, 'picture': str(path.relative_to(out))}
        write_line(line(facts, result.size, result.prediction, run.predictor.classes))
        outcome.written += 1


def _picture_names(names: Sequence[str]) -> dict[str, str]:
    """Names of pictures by the names of their images: the same, or with .png, or with a number if that is taken."""
    pictures = {name: name for name in names if Path(name).suffix.lower() in WRITTEN}
    taken = {name.lower() for name in pictures}
    for name in names:
        if name not in pictures:
            tries = chain([f'{name}.png'], (f'{name}.{number}.png' for number in count(2)))
            pictures[name] = next(picture for picture in tries if picture.lower() not in taken)
            taken.add(pictures[name].lower())
    return pictures


def _read_images(names: Iterable[str], root: Path, outcome: Outcome) -> Iterator[tuple[str, np.ndarray]]:
    """Names and BGR images."""
    for name in names:
        pixels = None
        with _noting(name, outcome, f'--tile 1024 cuts it, {_LARGER}'):
            pixels, _ = read_picture(root / name)
        if pixels is not None:
            yield name, np.ascontiguousarray(pixels[..., ::-1])


@contextmanager
def _noting(name: str, outcome: Outcome, if_large: str) -> Iterator[None]:
    """Notes why a picture is skipped, and what helps if it is too large."""
    try:
        yield
    except BrokenImageError as error:
        large = isinstance(error.__cause__, Image.DecompressionBombError)
        hint = f'; {if_large}' if large else ''
        outcome.failed[name] = ' '.join(f'{error}{hint}'.split())


def _saver(picture: Image.Image, suffix: str) -> Callable[[Path], None]:
    kind = Image.registered_extensions()[suffix.lower()]
    return lambda path: picture.save(path, kind, quality=92)


# ---- video -----------------------------------------------------------------------------------------------------------


def _video(source: Path, run: _Run, outcome: Outcome, write_line: Callable[[str], object]) -> None:
    video = cv2.VideoCapture(str(source))
    try:
        ok, first = video.read() if video.isOpened() else (False, None)
        if not ok:
            raise ValueError(f'{source} cannot be decoded as a video; OpenCV reads the formats of FFmpeg')
        rate, count = video.get(cv2.CAP_PROP_FPS) or 25.0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        bar = tqdm(total=max(count, 0) or None, disable=not run.progress, unit='frame')

        def frames() -> Iterator[tuple[str, np.ndarray]]:
            number, frame = 0, first
            while frame is not None:
                yield str(number), frame
                number += 1
                bar.update()
                _, frame = video.read()
            if number < WHOLE * count:
                outcome.failed[source.name] = f'only {number} of {count} frames decode'

        def pictures() -> Iterator[Image.Image]:
            for number, image, prediction in _predicted(frames(), run.predictor, run.batch_size, outcome):
                facts = {'video': source.name, 'frame': int(number), 'second': round(int(number) / rate, 3)}
                write_line(line(facts, image.shape[:2], prediction, run.predictor.classes))
                outcome.written += 1
                yield draw(image, prediction, run.predictor)

        with bar:
            target = outcome.predictions.with_name(f'{source.stem}.mp4')
            write_atomic(target, lambda path: _write_mp4(path, pictures(), rate))
    finally:
        video.release()


def _write_mp4(path: Path, pictures: Iterator[Image.Image], rate: float) -> None:
    """Writes pictures of one size as MPEG-4; OpenCV chooses the container by the suffix."""
    part, writer = path.with_suffix('.mp4'), None
    try:
        for picture in pictures:
            if writer is None:
                # The codec halves the colour planes: an odd last row or column is left out.
                size = (picture.width // 2 * 2, picture.height // 2 * 2)
                writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*'mp4v'), rate, size)
                if not writer.isOpened():
                    raise ValueError(f'OpenCV cannot write MP4 of {size[0]} x {size[1]} at {rate} frames/s here')
            writer.write(np.ascontiguousarray(np.asarray(picture)[: size[1], : size[0], ::-1]))
        if writer is not None:
            writer.release()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
