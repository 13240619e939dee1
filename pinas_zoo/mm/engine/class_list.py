"""One class list per training.

The list is that of the training source, or the one that a config names (`classes` of a source). It is written into
every checkpoint and passed to all other sources of folders and lists: validation, test, search, k-nearest neighbours.
So a class that is missing in a split does not change the numbers of the others.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from pinas_zoo.data.sources import few_names, find_views, open_source
from pinas_zoo.mm.preflight.findings import BadInputError, repeated

__all__ = ['class_counts', 'pin_classes', 'views']

#: Where the class list is looked for, in this order.
_ORDER = ('train_dataloader', 'calibration', 'evaluation', 'custom_hooks', 'val_dataloader', 'test_dataloader')


def views(cfg: Config, keys: Sequence[str] = _ORDER) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every part of a config, in our format, that reads images from a source.

    Args:
        cfg: Config of a training, a test or a search.
        keys: Parts of it.

    Yields:
        Its dotted key, its config, and whether labels are needed.
    """
    for path, node, labelled in find_views(cfg._cfg_dict, keys):
        yield path, node, labelled and not path.startswith('calibration')


def class_counts(cfg: Config) -> dict[str, int]:
    """Number of classes of the model in a config, by dotted key."""
    model = cfg._cfg_dict.get('model')
    method = model.get('method') if isinstance(model, dict) else None
    places = {'num_classes': cfg._cfg_dict, 'model.num_classes': model, 'model.method.num_classes': method}
    found = {key: node.get('num_classes') for key, node in places.items() if isinstance(node, dict)}
    return {key: count for key, count in found.items() if isinstance(count, int)}


def pin_classes(cfg: Config, known: Sequence[str] | None = None) -> None:
    """Write the class list of a training into every labelled source of folders and lists.

    Args:
        cfg: Changed in place.
        known: The class list of the checkpoint that is continued, tested or searched.

    Raises:
        BadInputError: A source names other classes than the checkpoint.
    """
    sources = [(f'{path}.source', node['source']) for path, node, _ in views(cfg) if _in_files(node['source'])]
    if not sources:
        return
    known = list(known or ())
    for path, source in sources:
        if isinstance(names := source.get('classes'), str):
            raise BadInputError(f'{path}.classes is the text {names!r}: write a tuple, ({names!r},)')
        given = list(names or known)
        if wrong := [name for name in given if not isinstance(name, str)]:
            raise BadInputError(
                f'{path}.classes contains {wrong[0]!r}: class names are texts, such as {str(wrong[0])!r}'
            )
        if twice := repeated(given):
            raise BadInputError(f'{path}.classes names {twice[0]!r} more than once')
        if known and given != known:
            raise BadInputError(
                f'{path}.classes {few_names(given)} are not the classes that the checkpoint was trained on, '
                f'{few_names(known)}'
            )
    names = known or _names(cfg)
    for _, source in sources if names else ():
        source.setdefault('classes', names)


def _in_files(source: dict[str, Any]) -> bool:
    return source['kind'] in ('folder', 'list', 'shards')


def _names(cfg: Config) -> list[str]:
    """Classes of the first source that has some; none if it does not open, which is reported later."""
    for path, node, labelled in views(cfg):
        source = node['source']
        if not labelled and not path.startswith('calibration'):
            continue
        if not _in_files(source):
            return []
        if source.get('classes'):
            return list(source['classes'])
        try:
            names = list(open_source(source).classes)
        except (OSError, ValueError):
            return []
        if source['kind'] in ('list', 'shards') and names:  # numbers, of which the highest need not occur
            names = [str(label) for label in range(max(len(names), *class_counts(cfg).values(), 0))]
        if names:
            return names
    return []
