"""Registries of pinas_zoo below mmengine's, scope `pinas_zoo`.

`type='pinas_zoo.X'` makes mmengine import this module, so configs of any default scope (mmdet, mmseg, ours) find our
classes without custom_imports. Modules are imported when a registry is first asked for a name, never here; modules
whose packages are not installed are not listed at all.
"""

from importlib.util import find_spec
from typing import Any

from mmengine import registry as parents
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

# `_base_ = 'pinas_zoo::...'`: mmengine looks a package up by this table and takes the folder of its module. The name of
# the package itself would be searched in site-packages, which does not contain an editable install.
MODULE2PACKAGE['pinas_zoo'] = 'pinas_zoo.registry'

# Where the members of a registry are defined, by module of pinas_zoo.mm.
_HOMES: dict[str, tuple[str, ...]] = {
    'MODELS': ('checkpoint_loader', 'engine.averaging', 'backbone', 'pretrain', 'classify', 'heads'),
    'DATASETS': ('engine.loop', 'preflight.bad_input', 'pretrain', 'classify'),
    'DATA_SAMPLERS': ('engine.batches', 'engine.batch_samplers'),
    'TRANSFORMS': ('pretrain', 'classify'),
    'LOOPS': ('engine.loop',),
    'HOOKS': ('engine.hooks', 'engine.checkpoint_hook', 'engine.knn_hook', 'pretrain', 'classify'),
    'METRICS': ('classify',),
    'FUNCTIONS': ('engine.batch_samplers', 'pretrain', 'classify'),
    'OPTIM_WRAPPERS': ('pretrain',),
    'OPTIM_WRAPPER_CONSTRUCTORS': ('pretrain',),
    'OPTIMIZERS': ('pretrain', 'classify'),
    'MODEL_WRAPPERS': ('pretrain',),
}
# Packages without which a module cannot be imported.
_NEEDS: dict[str, tuple[str, ...]] = {'backbone': ('mmcv',), 'heads': ('mmcv', 'mmseg')}


def type_name(cfg: dict[str, Any]) -> str:
    """The class name of a config's `type`, without scope; '' if there is none."""
    kind = cfg.get('type', '')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else kind.__name__


def drop_own_scope(node: Any) -> None:
    """Removes our scope from a config, in place: `_base_ = 'pinas_zoo::...'` then gives what the base's path gives.

    mmengine marks every typed dict of such a base with the scope. mmdet's and mmseg's classes are not found in ours,
    and a collate function gets the mark as an argument. Our configs write `pinas_zoo.` before their own types instead.

    Args:
        node: The config's dict; a ConfigDict is not asked for its values, since it would import those of lazy configs.
    """
    if isinstance(node, dict):
        if dict.get(node, '_scope_') == 'pinas_zoo':
            dict.pop(node, '_scope_')
        node = dict.values(node)
    elif not isinstance(node, (list, tuple)):
        return
    for value in node:
        drop_own_scope(value)


def _locations(name: str) -> list[str]:
    """Modules to import for the registry `name`: those that exist and whose packages are installed."""
    found = []
    for home in _HOMES.get(name, ()):
        module = f'pinas_zoo.mm.{home}'
        if all(find_spec(package) for package in _NEEDS.get(home, ())) and find_spec(module):
            found.append(module)
    return found


def _child(name: str) -> Registry:
    parent = getattr(parents, name)
    # Without locations mmengine would import pinas_zoo.utils, which does not exist, and warn that pinas_zoo is not
    # installed: a registry whose members need no import names this module, which is loaded by then.
    return Registry(parent.name, parent=parent, scope='pinas_zoo', locations=_locations(name) or [__name__])


RUNNERS = _child('RUNNERS')
LOOPS = _child('LOOPS')
HOOKS = _child('HOOKS')
DATASETS = _child('DATASETS')
DATA_SAMPLERS = _child('DATA_SAMPLERS')
TRANSFORMS = _child('TRANSFORMS')
MODELS = _child('MODELS')
MODEL_WRAPPERS = _child('MODEL_WRAPPERS')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS')
OPTIMIZERS = _child('OPTIMIZERS')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS')
METRICS = _child('METRICS')
EVALUATOR = _child('EVALUATOR')
TASK_UTILS = _child('TASK_UTILS')
VISUALIZERS = _child('VISUALIZERS')
VISBACKENDS = _child('VISBACKENDS')
LOG_PROCESSORS = _child('LOG_PROCESSORS')
FUNCTIONS = _child('FUNCTIONS')
