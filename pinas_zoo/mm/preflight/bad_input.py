"""Reports bad data by name: the one error, and a data set that names the file on which a sample failed."""

import os
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from pinas_zoo.data.labels import read_labels
from pinas_zoo.data.sources import BrokenImageError, BrokenRateError
from pinas_zoo.mm.engine.loop import DatasetWrapper
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.registry import DATASETS, drop_own_scope

IGNORED_LABEL = 255  # mmseg's default
#: What constructors raise for arguments that they cannot use.
_OF_BUILDING = (TypeError, ValueError, KeyError, AttributeError, IndexError, AssertionError, ZeroDivisionError)


#: Steps after which a map has no labels that it did not have before.
_KEEPS_LABELS: tuple[str, ...] = (
    'Resize',
    'RandomResize',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomFlip',
    'PhotoMetricDistortion',
)
_KEEPS_LABELS += ('CheckImage', 'PackSegInputs')

#: What a batch norm says, ours or torch's, that would normalise over one value.
_ONE_IMAGE = ('has no variance', 'Expected more than 1 value per channel when training')


def read_config(path: str | Path) -> Config:
    """Reads a config file.

    Raises:
        BadInputError: It is missing, not valid Python, or does not run; the message names file and line.
    """
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        raise unreadable_config(path, error) from error
    if '::' in cfg.text:
        drop_own_scope(cfg._cfg_dict)
    return cfg


def unreadable_config(path: str | Path, error: Exception) -> BadInputError:
    """The error for a config that cannot be read.

    Args:
        path: The file.
        error: What was raised: a config is Python, and may raise anything.
    """
    if isinstance(error, FileNotFoundError) and not os.path.exists(path):
        near = get_close_matches(str(path), [str(file) for file in Path(path).parent.glob('*.py')], 1)
        return BadInputError(f'{path}: the config does not exist' + ''.join(f'; did you mean {file}?' for file in near))
    if isinstance(error, SyntaxError):
        return BadInputError(f'{path}: not valid Python ({error.msg}, line {error.lineno})')
    kind = '' if isinstance(error, OSError) else f'{type(error).__name__}: '
    return BadInputError(f'{path}: the config cannot be read ({kind}{_first_line(error)})')


def last_line(error: Exception) -> str:
    """The line that explains an error in a training without its traceback; '' if only a traceback does.

    Args:
        error: What a run raised. The message of a `BadInputError` or a `BrokenRateError` may be wrapped in the
            traceback of a data worker.
    """
    text = str(error)
    if isinstance(error, (BadInputError, BrokenRateError)):
        marker = f'{type(error).__name__}: '
        return text.rsplit(marker, 1)[-1].strip() if marker in text else text
    if isinstance(error, ValueError) and any(known in text for known in _ONE_IMAGE):
        return (
            'a training batch has one image per device, which a batch norm cannot use: '
            f'{_first_line(error)}; raise train_dataloader.batch_size, or set drop_last=True'
        )
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, _OF_BUILDING) and any(
        frame.name.startswith('build_') or frame.name == '_init_model_weights' for frame in frames
    ):
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        place = f'{Path(frames[-1].filename).name}, line {frames[-1].lineno}'
        text = ' '.join(str(reason).split())[:500] if isinstance(error, ValueError) else _first_line(reason)
        return f'the config cannot be built: {type(error).__name__}: {text} ({place})'
    return ''


def read_image(path: str) -> np.ndarray:
    """Decode an image as the pipelines do.

    Shape: uint8 (H, W, 3).

    Raises:
        BadInputError: The file is missing or does not decode; the message names it.
    """
    import mmcv  # only mmdet's and mmseg's data come here

    content = _content(path)
    if not content:
        raise BadInputError(f'{path}: the image is an empty file')
    try:
        image = mmcv.imfrombytes(content)
    except Exception as error:  # cv2.error is not an OSError
        raise BadInputError(f'{path}: the image does not decode ({_first_line(error)})') from None
    if image is None:
        raise BadInputError(f'{path}: the image does not decode ({len(content):,} bytes){_hint(path)}')
    return image


def read_map(path: str) -> np.ndarray:
    """Decode a map of labels as mmseg does.

    Shape: (H, W).

    Raises:
        BadInputError: The file is missing, does not decode or has several channels; the message names it.
    """
    try:
        labels = read_labels(path)
    except BrokenImageError as error:
        raise BadInputError(str(error)) from None
    check_whole(path, labels)
    return labels


def check_whole(path: str, labels: np.ndarray) -> None:
    """Check that a map of floats contains whole numbers.

    Raises:
        BadInputError: It does not.
    """
    if labels.dtype.kind == 'f' and (wrong := labels[labels != np.floor(labels)]).size:  # NaN differs from itself
        raise BadInputError(f'{path}: label value {wrong[0]:g}, labels must be integers')


def label_problem(
    path: str, label: int, classes: int, reduce_zero_label: bool, ignored: int | None = IGNORED_LABEL
) -> str:
    """The error line for a label that is not a class.

    Args:
        path: Path of the map.
        label: The label as the network would see it, after reduce_zero_label.
        classes: Number of classes of the head.
        reduce_zero_label: Whether 0 in the file is ignored and 1 is the first class.
        ignored: The label that the config ignores; None for none.
    """
    first = int(reduce_zero_label)
    more = [str(value) for value in (ignored, 0 if reduce_zero_label else None) if value is not None]
    ignoring = f' and, ignored, {", ".join(more)}' if more else ''
    hint = '; if labels begin with 1, reduce_zero_label=True in the data set makes 1 the first class and ignores 0'
    return (
        f'{path}: label value {label + first}, allowed are {first} to {classes - 1 + first} '
        f'({classes} classes){ignoring}{hint if label == classes and not reduce_zero_label else ""}'
    )


@DATASETS.register_module()
class NamedDataset(DatasetWrapper):
    """Lets a data set name the file that a sample failed on, and checks labels when they are read.

    Args:
        dataset: A data set or its config, built in the default scope.
        num_classes: Classes of a segmentation head: larger labels are an error. None does not check labels.
        ignored: The label that is neither a class nor an error; None for none.
    """

    OWN = DatasetWrapper.OWN | {'num_classes', 'ignored', 'checks_samples'}

    def __init__(self, dataset: Any, num_classes: int | None = None, ignored: int | None = IGNORED_LABEL) -> None:
        super().__init__(dataset)
        self.num_classes, self.ignored = num_classes, ignored
        self.checks_samples = num_classes is not None and not _checked_when_loaded(self.dataset, num_classes, ignored)

    def __getitem__(self, index: int) -> Any:
        """A sample of the wrapped data set.

        Raises:
            BadInputError: A file is missing or does not decode, or a label is not a class; the message names it.
            RuntimeError: Anything else failed; the message names the image.
        """
        try:
            sample = self.dataset[index]
        except BadInputError:
            raise
        except Exception as error:
            path = self._bad_file(index)
            if path is None:
                raise
            raise RuntimeError(f'{path}: {type(error).__name__}: {_first_line(error)}') from error
        if self.checks_samples and self.num_classes is not None:
            _check_sample(sample, self.num_classes, self.ignored)
        return sample

    def _bad_file(self, index: int) -> str | None:
        """The image of a sample that could not be read; None if the data set knows no files.

        Raises:
            BadInputError: The image or its label map is missing or does not decode.
        """
        known = getattr(self.dataset, 'get_data_info', None)
        info = known(index) if known else None
        if not isinstance(info, dict) or not info.get('img_path'):
            return None
        for key, read in (('img_path', read_image), ('seg_map_path', read_map)):
            if info.get(key) and '://' not in info[key]:
                read(info[key])
        return info['img_path']


def check_labels(path: str, labels: np.ndarray, classes: int, reduce_zero_label: bool, ignored: int | None) -> None:
    """Check a map, as the network sees it; fast on 8 bits.

    Args:
        path: Path of the map.
        labels: Its labels, after reduce_zero_label.
        classes: Number of classes of the head.
        reduce_zero_label: See `label_problem`.
        ignored: The label that the config ignores; None for none.

    Raises:
        BadInputError: A label is not a class.
    """
    if not labels.size or labels.max() < classes:
        return
    wrong = labels >= classes
    if ignored is not None:
        if ignored >= classes and np.count_nonzero(wrong) == np.count_nonzero(labels == ignored):
            return
        wrong &= labels != ignored
    if wrong.any():
        raise BadInputError(label_problem(path, int(labels[wrong][0]), classes, reduce_zero_label, ignored))


def _check_sample(sample: Any, classes: int, ignored: int | None) -> None:
    found = sample.get('data_samples') if isinstance(sample, dict) else None
    labels = getattr(getattr(found, 'gt_sem_seg', None), 'data', None)
    if found is not None and isinstance(labels, torch.Tensor):
        path, reduced = found.get('seg_map_path', 'label map'), bool(found.get('reduce_zero_label', False))
        check_labels(path, labels.numpy(), classes, reduced, ignored)  # numpy compares five times as fast as torch


def _checked_when_loaded(dataset: Any, classes: int, ignored: int | None) -> bool:
    """Lets our loading steps check labels, on the 8 bits of the file instead of a sample's 64.

    Returns:
        Whether that is enough: all maps come through them, and no later step is known to write other labels.
    """
    inner = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    if inner:  # a wrapper with a pipeline mixes images
        return all(_checked_when_loaded(one, classes, ignored) for one in inner) and not hasattr(dataset, 'pipeline')
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    loading = [number for number, step in enumerate(steps) if hasattr(type(step), 'known_labels')]
    for number in loading:
        steps[number].known_labels = (classes, ignored)
    return bool(loading) and all(type(step).__name__ in _KEEPS_LABELS for step in steps[loading[0] + 1 :])


def _hint(path: str) -> str:
    """Says so if a picture that mmcv does not read is one for Pillow."""
    try:
        with Image.open(path) as file:
            file.load()
            return f'; mmcv does not read {file.format} of this kind ({file.mode}): save it as PNG'
    except Exception:  # a damaged file can raise anything
        return ''


def _content(path: str) -> bytes:
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise BadInputError(f'{path}: no such file') from None
    except OSError as error:  # a folder, or no permission
        raise BadInputError(f'{path}: {error.strerror}') from None


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
