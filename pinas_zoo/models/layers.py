"""Which activation and which normalisation the blocks use; the networks of a space have ReLU and BN."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import create_act_layer, get_act_layer, get_norm_layer
from torch import nn

__all__ = ['DEFAULT_LAYERS', 'Layers', 'named_layers']


@dataclass(frozen=True)
class Layers:
    """Builders of the layers between the convolutions.

    Args:
        act: Builds an activation.
        norm: Builds a normalisation, from the number of channels; methods read the tensors of BN.
    """

    act: Callable[[], nn.Module]
    norm: Callable[[int], Any]


#: ReLU and BN.
DEFAULT_LAYERS = Layers(partial(nn.ReLU, inplace=True), nn.BatchNorm2d)


def named_layers(act_layer: str | Callable[..., nn.Module], norm_layer: str | Callable[..., nn.Module]) -> Layers:
    """From timm's arguments: names of timm.layers ('silu', 'groupnorm1') or classes.

    Activations are in place if their class can.

    Raises:
        ValueError: timm has no layer of that name.
    """
    try:
        act, norm = get_act_layer(act_layer), get_norm_layer(norm_layer)
    except (KeyError, AssertionError) as error:
        raise ValueError(
            f'act_layer={act_layer!r}, norm_layer={norm_layer!r}: give classes or names of timm.layers, such as '
            "'silu' and 'groupnorm1'"
        ) from error
    return Layers(partial(create_act_layer, act, inplace=True), partial(_normalisation, norm))


def _normalisation(norm: Callable[[int], nn.Module], channels: int) -> nn.Module:
    try:
        return norm(channels)
    except ValueError as error:
        raise ValueError(
            f'norm_layer does not take the {channels} channels of a block: {error}; take a layer for any '
            "width, such as 'groupnorm1' or 'layernorm2d'"
        ) from error
