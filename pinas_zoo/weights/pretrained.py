"""timm's `pretrained=True`: downloads the file of a weight row, and refuses weights that do not fit."""

import logging
from typing import Any

from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from pinas_zoo.models.network import PiNASNet
from pinas_zoo.weights.download import fetch
from pinas_zoo.weights.manifest import entries

__all__ = ['check_pretrained', 'with_pretrained_file']

#: BN's count of batches: without meaning for the outputs, and frozen BN has none.
COUNTER = 'num_batches_tracked'

_logger = logging.getLogger('pinas_zoo')


def with_pretrained_file(variant: str, kwargs: dict[str, Any], sha256: str | None = None) -> dict[str, Any]:
    """Passes the downloaded file of one of our weight rows to timm; rows given by the caller are left to timm.

    Args:
        variant: Registered name of the model.
        kwargs: Arguments of the entry point.
        sha256: Hash that the downloaded file must have (`fetch`).

    Raises:
        ValueError: A hash is given for weights that are not fetched here.
        RuntimeError: This name has no weights (never random ones), or they could not be obtained.
    """
    overlay = dict(kwargs.get('pretrained_cfg_overlay') or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), overlay)
    name = f'{variant}.{cfg.tag}'
    elsewhere = bool(cfg.file or cfg.state_dict or cfg.hf_hub_id or cfg.source or overlay.get('url'))
    if sha256 is not None and (elsewhere or name not in entries()):
        raise ValueError(f'pretrained_sha256 pins the weights of pinas download --list, and {name} are loaded by timm')
    if elsewhere:
        return kwargs
    if name not in entries():
        if cfg.url:
            return kwargs
        known = ', '.join(entry.name for entry in entries().values() if entry.timm)
        if cfg.tag == 'untrained':
            raise RuntimeError(
                f'{variant} has no pretrained weights: use pretrained=False, or checkpoint=FILE for your own. '
                f'These have: {known}'
            )
        raise RuntimeError(f'unknown pretrained weights {name}; known: {known}')
    return dict(kwargs, pretrained_cfg_overlay=dict(overlay, file=str(fetch(name, sha256=sha256))))


def check_pretrained(state: dict[str, Tensor], net: PiNASNet) -> dict[str, Tensor]:
    """Refuses pretrained weights that would leave something random; timm itself is not strict in every case.

    The classifier may differ (other classes), and so may the first convolution's inputs, which timm adapts. Another
    activation has no tensors that could differ, so it is only logged.

    Raises:
        ValueError: Features are missing, unexpected or mismatched.
    """
    own, faults = net.state_dict(), []
    for name in dict.fromkeys([*own, *state]):
        if name.startswith('fc.') or ((name not in state or name not in own) and name.endswith(COUNTER)):
            continue
        if name not in state or name not in own:
            faults.append(f'{name} is {"missing" if name in own else "unexpected"}')
            continue
        came, wanted = list(state[name].shape), list(own[name].shape)
        if name == 'conv1.0.weight':
            came[1:2] = wanted[1:2]
        if came != wanted:
            faults.append(f'{name} has shape {tuple(came)}, expected {tuple(wanted)}')
    if not isinstance(net.act1, nn.ReLU):
        act = type(net.act1).__name__
        _logger.warning('the pretrained weights belong to a network with ReLU; act_layer is %s: fine-tune it', act)
    if faults:
        arch = net.space.format(net.arch)
        raise ValueError(f'the pretrained weights do not fit architecture {arch}: {"; ".join(faults[:5])}')
    return {name: value for name, value in state.items() if name in own or not name.endswith(COUNTER)}
