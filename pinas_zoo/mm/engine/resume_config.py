"""Continuing a run with another config: compares the parts that the checkpoint's state would override.

Learning rates, momenta and schedules come from the checkpoint, and the draws of the samples belong to its data: changes
of these in a config would have no effect, or a different one than it says.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from pinas_zoo.mm.checkpoint_loader import load_from_local
from pinas_zoo.mm.engine.rewrite import changes
from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.weights.loading import stated_facts

__all__ = ['compare_config', 'compared_parts', 'require_fit', 'take_config']

_OPTIMISER = ('optimizer', 'paramwise_cfg', 'constructor')
#: Entries of a data set: where images are finished, and the seed, which is compared separately.
_FREE = ('finish', 'seed')


def compared_parts(cfg: Config) -> str:
    """The parts of a config that a checkpoint's state overrides, and the training data, as JSON."""
    loader = cfg.get('train_dataloader') or {}
    parts = {
        'optim_wrapper': _only_optimisers(cfg.get('optim_wrapper')),
        'param_scheduler': cfg.get('param_scheduler'),
        'auto_scale_lr': cfg.get('auto_scale_lr'),
        'train_dataloader.dataset': _without(loader.get('dataset')),
    }
    return json.dumps(parts, default=str, sort_keys=True)


def compare_config(cfg: Config, checkpoint: str, take_new: bool, notes: list[str]) -> None:
    """Compare the config of a run with the one with which its checkpoint was written.

    Args:
        cfg: The config as it will run; its `resume_with_config` is set.
        checkpoint: Path of the checkpoint.
        take_new: Whether to use the new values (--resume-with-config).
        notes: Receives the changes if the new values are used.

    Raises:
        BadInputError: Something changed and the new values are not to be used, or they cannot be used.
    """
    cfg.pop('resume_with_config', None)
    if take_new:  # otherwise the dumped config is that of an uninterrupted run
        cfg.resume_with_config = True
    saved = load_from_local(checkpoint, mmap=True).get('engine', {}).get('config')
    if saved is None:
        notes.append(f'--resume: {checkpoint} does not say with which config it was written')
        return
    old, new = json.loads(saved), json.loads(compared_parts(cfg))
    lines = [line for key in new for line in changes(old.get(key), new[key], key)]
    if not lines:
        return
    if not take_new:
        raise BadInputError(
            f'--resume: the config changed since {checkpoint} was written, whose state has the old values:\n'
            + '\n'.join(lines)
            + '\n--resume-with-config uses the new ones; or undo the changes'
        )
    if kinds := [line for line in lines if line.startswith('optim_wrapper') and '.type: ' in line]:
        raise BadInputError(
            f'--resume-with-config: the state of one optimiser does not fit another ({"; ".join(kinds)}): start a new '
            f'run with --cfg-options load_from={checkpoint}'
        )
    notes += [f'--resume-with-config: {line}' for line in lines]


def require_fit(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Check weights before they are loaded; mmengine would leave those of the model that are missing as they are.

    A checkpoint that is resumed has to contain all weights of the model. One that a training starts from must have the
    model's architecture, and may lack some weights, such as those of another head, which mmengine's log lists.

    Raises:
        BadInputError: The config has another model.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    wanted, found = _shapes(model.state_dict()), _shapes(checkpoint.get('state_dict', checkpoint))
    wrong = [name for name, shape in wanted.items() if found.get(name) != shape]
    if runner._resume and wrong:
        raise BadInputError(
            f'--resume: the model of the config is not that of {runner.cfg.load_from}: {len(wrong)} of {len(wanted)} '
            f'weights are missing or have another shape, such as {wrong[0]}: {found.get(wrong[0], "none")} in the '
            f'checkpoint, {wanted[wrong[0]]} in the model; undo the change, or start a new run'
        )
    came, arch = (checkpoint.get('meta') or {}).get('arch'), stated_facts(model).get('arch')
    if came and arch and came != arch:
        raise BadInputError(f'load_from: {runner.cfg.load_from} has architecture {came}, but the model has {arch}')
    if wrong and all(name in wrong or not shape for name, shape in wanted.items()):  # counters of BN fit everywhere
        raise BadInputError(
            f'load_from: none of the weights of {runner.cfg.load_from} fits the model: they are '
            f'{", ".join(found)[:60]}..., those of the model {", ".join(wanted)[:60]}...; a backbone alone is loaded '
            'by its init_cfg'
        )


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names, without the prefix of a wrapper as mmengine reads them, and shapes."""
    return {
        name.removeprefix('module.'): tuple(value.shape) for name, value in weights.items() if hasattr(value, 'shape')
    }


def take_config(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Put the config's optimiser and schedule settings into a checkpoint that is about to be resumed.

    The schedules are stepped to the iteration of the checkpoint; momenta and other state tensors are kept.

    Args:
        runner: The runner, with its optimiser and schedules built.
        checkpoint: Changed in place.

    Raises:
        BadInputError: The optimiser has other groups of parameters.
    """
    by_name = runner.param_schedulers
    schedulers = [s for part in by_name.values() for s in part] if isinstance(by_name, dict) else list(by_name or ())
    length = runner.train_loop.epoch_length
    for number in range(1, checkpoint['meta']['iter'] + 1):
        for scheduler in schedulers:
            if not scheduler.by_epoch or (length and number % length == 0):
                scheduler.step()
    if 'param_schedulers' in checkpoint:
        checkpoint['param_schedulers'] = (
            {name: [s.state_dict() for s in part] for name, part in by_name.items()}
            if isinstance(by_name, dict)
            else [s.state_dict() for s in schedulers]
        )
    if 'optimizer' in checkpoint:
        _take_groups(checkpoint['optimizer'], runner.optim_wrapper.state_dict())


def _take_groups(saved: dict[str, Any], new: dict[str, Any]) -> None:
    if 'param_groups' not in saved:  # several optimisers by name
        for name in saved:
            _take_groups(saved[name], new.get(name, {}))
        return
    old, now = saved['param_groups'], new.get('param_groups', [])
    if [len(group['params']) for group in old] != [len(group['params']) for group in now]:
        raise BadInputError('--resume-with-config: the optimiser groups its parameters differently: start a new run')
    saved['param_groups'] = [{**group, 'params': before['params']} for before, group in zip(old, now, strict=True)]
    if 'base_param_settings' in new:
        saved['base_param_settings'] = new['base_param_settings']


def _only_optimisers(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if 'optimizer' in node:
        return {key: node[key] for key in _OPTIMISER if node.get(key) is not None}
    return {key: _only_optimisers(child) for key, child in node.items() if isinstance(child, dict)}


def _without(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without(child) for key, child in _items(node)}
    return [_without(child) for child in node] if isinstance(node, (list, tuple)) else node


def _items(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, child) for key, child in node.items() if key not in _FREE)
