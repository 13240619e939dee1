"""Which keys a dict of a config may have: the parameters of the class that will be built from it.

They are those of its `__init__`, through `**kwargs` and base classes. If nothing defines what a dict may contain
(`metainfo`, a detector's `test_cfg`), every key is accepted.
"""

import inspect
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

__all__ = ['TYPED', 'allowed_keys', 'require_settings']

#: Keys that builders remove before they call the class.
TYPED = {'type', '_scope_', '_delete_'}
#: Parts of models whose builders remove further keys.
_OWN_BUILDERS = {'custom_keys', 'metainfo', 'upsample_cfg', 'dcn', 'plugins'}
_PARAMWISE = {
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
}
_PARAMWISE |= {'dcn_offset_lr_mult', 'bypass_duplicate'}
_ENVIRONMENT = {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'}
_LOADER = {'dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn', 'num_batch_per_epoch'}
#: A call of a base class's __init__ that passes on **kwargs; the class that super() names.
_FORWARDED = re.compile(r'super\((\w*)[^)]*\)\.__init__\((?:[^()]|\([^()]*\))*\*\*')
#: Hooks that the Runner registers under these names even if the config does not list them.
_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def allowed_keys(cfg: Config, node: dict[str, Any], path: str) -> set[str] | None:
    """Keys that the dict at `path` may have; None if that cannot be determined."""
    name = path.rpartition('.')[2]
    if (known := _untyped(cfg, node, path)) is not None:
        return known | TYPED
    if not node.get('type') or name in _OWN_BUILDERS:
        return None
    found = [_parameters(cls) for cls in _classes(node['type'], cfg.get('default_scope') or 'pinas_zoo')]
    if not found or None in found:
        return None
    allowed = set[str]().union(*(parameters for parameters in found if parameters)) | TYPED
    extra = {
        'norm_cfg': {'requires_grad'},
        'init_cfg': {'override'},
        'optim_wrapper': {'constructor', 'paramwise_cfg'},
        'train_cfg': {'by_epoch'},
    }
    allowed |= extra.get(name, set())
    if name.startswith('loss'):
        allowed |= {'bg_cls_weight'}  # DETR's heads take it out
    if path.startswith(('default_hooks.', 'custom_hooks.')):
        allowed |= {'priority'}
    if path.startswith('param_scheduler'):
        allowed |= {'convert_to_iter_based', 'epoch_length', 'by_epoch', 'begin', 'end'}
    return allowed


def require_settings(kind: type, values: Any, key: str, own: Collection[str] = ()) -> None:
    """Check that a part of a config has the arguments of the class that it is for.

    Args:
        kind: The class.
        values: The part.
        key: Its key, for the message.
        own: Arguments that the config does not set.

    Raises:
        ValueError: It is not a dict, lacks an argument, or has another one.
    """
    parameters = {name: p for name, p in inspect.signature(kind).parameters.items() if name not in own}
    if not isinstance(values, Mapping):
        raise ValueError(f'the config has {"no" if values is None else f"{values!r} as"} {key}, which must be a dict')
    needed = [name for name, p in parameters.items() if p.default is p.empty and name not in values]
    unknown = [name for name in values if name not in parameters]
    if needed or unknown:
        fault = f'has no setting {unknown[0]!r}' if unknown else f'lacks {", ".join(needed)}'
        raise ValueError(f'{key} {fault}; allowed: {", ".join(parameters)}')


def _untyped(cfg: Config, node: dict[str, Any], path: str) -> set[str] | None:
    """Keys of the dicts that mmengine reads itself; None for all others."""
    top = path.split('.')[0]
    if path == 'train_cfg' and not node.get('type'):
        epochs = node.get('by_epoch') or 'max_epochs' in node
        return (_parameters(EpochBasedTrainLoop if epochs else IterBasedTrainLoop) or set()) | {'by_epoch'}
    if path == 'optim_wrapper.paramwise_cfg':
        constructor = str(cfg.optim_wrapper.get('constructor') or 'DefaultOptimWrapperConstructor')
        return _PARAMWISE if constructor == 'DefaultOptimWrapperConstructor' else None
    if path.startswith('optim_wrapper.paramwise_cfg.custom_keys.'):
        return {'lr_mult', 'decay_mult'}
    if path == 'default_hooks':
        return {*_HOOKS, *(name for name, hook in node.items() if isinstance(hook, dict) and hook.get('type'))}
    if node.get('type') or (path == 'optim_wrapper' and 'optimizer' not in node):  # several optimisers
        return None
    if path == top and re.fullmatch(r'(train|val|test)_dataloader', top):
        return set(inspect.signature(DataLoader.__init__).parameters) | _LOADER
    plain = {'optim_wrapper': OptimWrapper, 'val_cfg': ValLoop, 'test_cfg': TestLoop, 'log_processor': LogProcessor}
    if path in plain:
        return (_parameters(plain[path]) or set()) | (
            {'constructor', 'paramwise_cfg'} if top == 'optim_wrapper' else set()
        )
    tables = {
        'optim_wrapper.clip_grad': {'type', 'clip_value', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach'},
        'randomness': set(inspect.signature(Runner.set_randomness).parameters) - {'self'},
        'env_cfg': _ENVIRONMENT,
        'auto_scale_lr': {'enable', 'base_batch_size'},
    }
    return tables.get(path)


def _classes(kind: Any, scope: str) -> list[Any]:
    """What a `type` may mean: the registries do not say which of them builds an entry."""
    if not isinstance(kind, str):
        return [kind]
    with suppress(ImportError):  # what mmengine does when it first builds something of that scope
        import_module(f'{scope}.registry')
    roots = [value for value in vars(registries).values() if isinstance(value, Registry)]
    found = []
    for root in roots:
        child = root._search_child(scope)
        with suppress(Exception):  # a registry that raises does not know the name
            found.append((root if child is None else child).get(kind))
    return [cls for cls in dict.fromkeys(found) if cls is not None]


def _parameters(cls: Any) -> set[str] | None:
    """Names that a class or function accepts by keyword; None for any."""
    if not inspect.isclass(cls):
        parameters = inspect.signature(cls).parameters
        return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else set(parameters)
    names: set[str] = set()
    after = ''  # `super(A, self)` continues after A in the method resolution order
    for base in cls.__mro__:
        if after:
            after = '' if base.__name__ == after else after
            continue
        if '__init__' not in vars(base):
            continue
        if base is object:
            return None
        parameters = inspect.signature(vars(base)['__init__']).parameters
        names |= set(parameters) - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return names
        if base is CheckpointHook:  # which passes the others to save_checkpoint
            return names | set(inspect.signature(Runner.save_checkpoint).parameters)
        # Only keywords that are passed on to the base class are its own.
        call = re.search(_FORWARDED, inspect.getsource(vars(base)['__init__']))
        if call is None:
            return None
        after = call[1] if call[1] and call[1] != base.__name__ else ''
    return None
