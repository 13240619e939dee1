"""--cfg-options that have no effect are errors: keys that nothing reads, variables of the config file, dropped values.

mmengine merges any key into a config. Whether something reads it follows from the class that will be built
(`allowed_keys`).
"""

import copy
import difflib
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner

from pinas_zoo.mm.engine import rewrite
from pinas_zoo.mm.engine.allowed_keys import TYPED, allowed_keys
from pinas_zoo.mm.engine.from_data import FROM_DATA
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.registry import type_name

__all__ = ['override', 'top_level_keys']

#: Top-level keys that mmengine's Runner reads from its config besides its arguments, and those that our tools read.
_OF_RUNNER = {'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'model_wrapper_cfg'}
_OF_RUNNER |= {'find_unused_parameters', 'runner_type', 'sync_bn'}
_OF_TOOLS = {'label_names', 'preflight', 'resume_with_config', 'tta_model', 'tta_pipeline'}
#: Texts that stand for a number, and the smallest numbers that make sense.
_WORDS = ('auto', FROM_DATA)
_LEAST = {'batch_size': 1, 'num_workers': 0, 'max_iters': 1, 'max_epochs': 1, 'val_interval': 1, 'lr': 0}
_LEAST |= {'seed': 0, 'budget': 1, 'batches': 1, 'size': 1}
#: Keys that are True or False, also where the config does not have them.
_SWITCHES = ('preflight', 'auto_scale_lr.enable')
#: Keys whose values are integers, if they are numbers at all.
_WHOLE = {*_LEAST, 'interval', 'num_classes', 'queue_length'} - {'lr'}
#: Keys of dicts that may have any.
_FREE_DICTS = {
    'filter_cfg': ('filter_empty_gt', 'min_size'),
    'metainfo': ('classes', 'palette'),
    'data_prefix': ('img', 'img_path', 'seg', 'seg_map_path'),
}
#: Settings of a search and of a shortlist that their configs may leave out.
_OF_SEARCH = {
    'arch',
    'channels_last',
    'default_scope',
    'limits',
    'objective',
    'race',
    'paths_per_pass',
    'precision',
    'seed',
    'size',
    'work_dir',
}
_OF_SEARCH |= {'arch_key', 'metric', 'processes', 'search', 'search_options', 'training_options', 'workers'}


def override(cfg: Config, options: dict[str, Any]) -> None:
    """Merge --cfg-options into a config.

    Args:
        cfg: Changed in place.
        options: Values by dotted key.

    Raises:
        BadInputError: Some have no effect, or a value that does not fit; one line per key, with the nearest key that
            has an effect.
    """
    if not options:
        return
    before = copy.deepcopy(cfg)
    if unfit := [line for key, value in options.items() if (line := _unfit(before, key, value))]:
        raise BadInputError('\n'.join(unfit))
    cfg.merge_from_dict(options)
    problems = [problem for key in options if (problem := _problem(before, cfg, key))]
    if not problems and 'train_cfg' in cfg and 'train_dataloader' in cfg:
        problems = list(_dropped(before, cfg, options))
    if problems:
        raise BadInputError('\n'.join(problems))


def _unfit(before: Config, key: str, value: Any) -> str:
    """Why a value cannot be where it should be written, as far as the value there tells; '' if it can."""
    node: Any = before._cfg_dict
    path = ''
    for name in key.split('.'):
        if isinstance(node, (list, tuple)) and not (name.isdigit() and int(name) < len(node)):
            return f'--cfg-options {key}: {path} is a list of {len(node)} entries, 0 to {len(node) - 1}, not {name!r}'
        node, path = _child(node, name), f'{path}.{name}'.lstrip('.')
    is_number = isinstance(node, (int, float)) and not isinstance(node, bool)
    if is_number and isinstance(value, str) and value not in _WORDS:
        return f'--cfg-options {key}={value}: the config has {node} there, which a number replaces'
    if isinstance(node, dict) and 'type' in node and value is not None and not isinstance(value, dict):
        return (
            f'--cfg-options {key}={value}: the config has a {node["type"]} there; set one of its keys, {key}.KEY=VALUE'
        )
    last = key.rpartition('.')[2]
    if (isinstance(node, bool) or key in _SWITCHES) and isinstance(value, str) and value not in _WORDS:
        return f'--cfg-options {key}={value}: must be True or False'
    if last in _WHOLE and isinstance(value, (bool, float, str)) and value not in _WORDS:
        return f'--cfg-options {key}={value}: must be an integer'
    least = _LEAST.get(last, -math.inf)
    if isinstance(value, (int, float)) and not value >= least:  # NaN neither
        return f'--cfg-options {key}={value}: must be at least {least}'
    if key.endswith('optimizer.type') and isinstance(value, str) and OPTIMIZERS.get(value) is None:
        names = {name.lower(): name for name in OPTIMIZERS.module_dict}
        near = difflib.get_close_matches(value.lower(), names, 1)
        return f'--cfg-options {key}={value}: no such optimizer' + (f'; did you mean {names[near[0]]}?' if near else '')
    return ''


def _problem(before: Config, cfg: Config, key: str) -> str:
    """Why an override has no effect; '' if it has one, or if that cannot be determined."""
    top, *rest = key.split('.')
    if top not in top_level_keys(before):
        if _imports_others(cfg):
            return ''  # their code may read anything
        if top not in before:
            return f'--cfg-options {key}: nothing reads {top!r}{_hint(before, key)}'
        leaves = _leaves({name: part for name, part in _plain(before).items() if name in top_level_keys(before)}, '')
        places = [place for place, value in leaves if _is(value, before[top])]
        uses = f'; entries with its value: {", ".join(places[:4])}' if places else _hint(before, key)
        return f'--cfg-options {key}: {top!r} is only a variable of the config file, nothing reads it afterwards{uses}'
    node: Any = cfg._cfg_dict
    path = ''
    for name in (top, *rest):
        new = not _has(before, f'{path}{name}')
        if new and path and isinstance(node, dict):
            allowed = allowed_keys(cfg, node, path.rstrip('.'))
            if allowed is not None and name not in allowed:
                parent = path.rstrip('.') + (f' ({node["type"]})' if node.get('type') else '')
                return f'--cfg-options {key}: {parent} does not take {name!r}{_hint(before, key, path, name, allowed)}'
            if allowed is None and (near := _sibling(path, name, node)):
                return f'--cfg-options {key}: {path}{name} is not read; did you mean {path}{near}?'
        node, path = _child(node, name), f'{path}{name}.'
    return ''


def _sibling(path: str, name: str, node: dict[str, Any]) -> str:
    """The key for which a new one in a dict of any keys is a misspelling; '' for none."""
    part = path.rstrip('.').rpartition('.')[2]
    if part == 'custom_keys':  # names of modules, which may be alike
        return ''
    known = {other for other in node if other != name} | set(_FREE_DICTS.get(part, ()))
    near = difflib.get_close_matches(name, sorted(known - {name}), 1, 0.85) if name not in known else []
    return near[0] if near and re.sub(r'\d', '', near[0]) != re.sub(r'\d', '', name) else ''


def _hint(before: Config, key: str, path: str = '', name: str = '', allowed: set[str] | None = None) -> str:
    """The nearest key that exists, or that the owner of `name` takes at `path`."""
    if allowed and not name.isdigit() and (near := difflib.get_close_matches(name, sorted(allowed), 1)):
        return f'; did you mean {path}{near[0]}{key.removeprefix(path + name)}?'
    wanted, rest = (path + name, key.removeprefix(path + name)) if name else (key, '')
    top, last = wanted.split('.')[0], wanted.rpartition('.')[2]
    keys = [place for place, _ in _leaves(_plain(before), '') if place.split('.')[0] in top_level_keys(before)]
    keys += [] if name or '.' in key else sorted(top_level_keys(before))
    keys = [] if last.isdigit() else [place for place in keys if _likeness(place.rpartition('.')[2], last) >= 0.8]
    tops = ('', 'train_dataloader', top)  # rather the training's loader than another one
    nearest = max(
        keys, key=lambda k: (tops.index(t) if (t := k.split('.')[0]) in tops else 0, _likeness(k, wanted)), default=''
    )
    if nearest:
        return f'; did you mean {nearest}{rest}?'
    return f'; it takes: {", ".join(sorted(allowed - TYPED))}' if allowed else ''


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


# ---- walking a config ------------------------------------------------------------------------------------------------


def _plain(cfg: Config) -> dict[str, Any]:
    return cfg._cfg_dict.to_dict()


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every entry, dicts and lists included."""
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    for name, value in items:
        yield f'{path}{name}', value
        yield from _leaves(value, f'{path}{name}.')


def _is(value: Any, other: Any) -> bool:
    """Whether an entry has the value of a variable, except numbers and switches, which are equal by chance."""
    if isinstance(value, str) and isinstance(other, str):
        return bool(other) and value.startswith(other)
    return isinstance(value, (dict, list)) and bool(value) and value == other


def _child(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if isinstance(node, (list, tuple)) and re.fullmatch(r'-?\d+', name) and -len(node) <= int(name) < len(node):
        return node[int(name)]
    return None


def _has(cfg: Config, key: str) -> bool:
    node: Any = cfg._cfg_dict
    for name in key.split('.'):
        if isinstance(node, dict) and name not in node:
            return False
        if not isinstance(node, (dict, list, tuple)):
            return False
        node = _child(node, name)
    return True


def top_level_keys(cfg: Config) -> set[str]:
    """Top-level keys that something reads."""
    if 'model' not in cfg:  # of a search: every entry is a setting
        return set(cfg) | _OF_SEARCH
    return set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | _OF_RUNNER | _OF_TOOLS


def _imports_others(cfg: Config) -> bool:
    """Whether the config imports code from outside the project."""
    modules = (cfg.get('custom_imports') or {}).get('imports') or []
    modules = [modules] if isinstance(modules, str) else modules
    return any(not module.startswith('pinas_zoo') for module in modules)


# ---- what is rewritten -----------------------------------------------------------------------------------------------


def _dropped(before: Config, cfg: Config, options: dict[str, Any]) -> Iterator[str]:
    """Overrides that `rewrite.make_exact` would undo: a loop counts epochs or iterations, samplers are replaced."""
    train = cfg.train_cfg
    if 'train_cfg.max_iters' in options and 'max_epochs' in train:
        yield (
            '--cfg-options train_cfg.max_iters: this config counts epochs; did you mean train_cfg.max_epochs? (or '
            'train_cfg._delete_=True train_cfg.by_epoch=False train_cfg.max_iters=N)'
        )
    if 'train_cfg.max_epochs' in options and 'max_iters' in train:
        yield '--cfg-options train_cfg.max_epochs: this config counts iterations; did you mean train_cfg.max_iters?'
    if 'launcher' in options:
        yield f'--cfg-options launcher={options["launcher"]}: the option --launcher sets it'
    for key, value in options.items():
        if not key.startswith(
            ('train_dataloader.sampler.', 'log_processor.by_epoch', 'default_hooks.logger.log_metric')
        ):
            continue
        final = copy.deepcopy(cfg)
        rewrite.make_exact(final, 0, [])
        node: Any = final._cfg_dict
        for name in key.split('.'):
            node = _child(node, name)
        if node != value and not (key.endswith('.type') or type_name(node if isinstance(node, dict) else {})):
            yield f'--cfg-options {key}={value}: training sets it to {"nothing" if node is None else node} itself'
