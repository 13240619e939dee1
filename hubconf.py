"""Entry points for `torch.hub.load`: every network that pinas_zoo registers with timm, by its name.

>>> net = torch.hub.load('FOLDER_OR_REPOSITORY', 'pinas_a', source='local', pretrained=True)
>>> net = torch.hub.load('FOLDER_OR_REPOSITORY', 'pinas', source='local', arch='333-3113-330011-021')
"""

# Modules only: `torch.hub.list` takes every callable for an entry point.
import typing
from collections import abc

import timm
from torch import nn

import pinas_zoo  # noqa: F401  registers the names

dependencies = ['torch', 'torchvision', 'timm', 'numpy', 'safetensors']


def _entry(model: str) -> abc.Callable[..., nn.Module]:
    def create(pretrained: bool = False, name: str = model, **kwargs: typing.Any) -> nn.Module:
        return timm.create_model(name, pretrained=pretrained, **kwargs)

    create.__name__ = create.__qualname__ = model
    create.__doc__ = (
        f'{timm.models.model_entrypoint(model).__doc__}\n\nArguments as for `timm.create_model`; `name` may add a '
        f'tag: {model}.TAG.'
    )
    return create


globals().update({_name: _entry(_name) for _name in timm.list_models('pinas*')})
