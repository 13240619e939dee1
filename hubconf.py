"""Entry points for `torch.hub.load`: every registered model and weights of pinas_zoo.

>>> net = torch.hub.load('FOLDER_OR_REPOSITORY', 'pinas_a', source='local', pretrained=True)
"""

from typing import Any

import timm
from torch import nn

import pinas_zoo  # noqa: F401  registers the names

dependencies = ['torch', 'torchvision', 'timm', 'numpy', 'safetensors']


def pinas_a(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pi-NAS-cls; arguments as for `timm.create_model`."""
    return timm.create_model('pinas_a', pretrained=pretrained, **kwargs)


def pinas_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pi-NAS-trans; arguments as for `timm.create_model`."""
    return timm.create_model('pinas_b', pretrained=pretrained, **kwargs)


def pinas(name: str = 'pinas', pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any registered model, weights included: ``name='pinas_nano_a.fmnist'``, or ``arch='301-3231-203213-032'``."""
    return timm.create_model(name, pretrained=pretrained, **kwargs)


def pinas_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any architecture of the nano space."""
    return timm.create_model('pinas_nano', pretrained=pretrained, **kwargs)
