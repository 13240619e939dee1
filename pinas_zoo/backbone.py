"""PiNASNet: one architecture of a search space as a timm model.

The network of Pi-NAS (Peng et al., ICCV 2021): a ResNeSt-50 skeleton in which every block is one of four
split-attention bottlenecks. Parameter names are those of the released classification checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_classifier
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from pinas_zoo.blocks import Skeleton, init_weights, make_block, make_shortcut
from pinas_zoo.space import PINAS, PINAS_NANO, SearchSpace, get_space
from pinas_zoo.weights.download import find_weights
from pinas_zoo.weights.load import LoadReport, load_weights, read_weights
from pinas_zoo.weights.manifest import entries
from pinas_zoo.weights.pretrained import check_pretrained, with_pretrained_file
from pinas_zoo.weights.remap import strip_module
from pinas_zoo.weights.shapes import find_arch, find_space, shapes_of

__all__ = ['PINAS_A', 'PINAS_B', 'PiNASNet', 'load_backbone', 'stage_geometry']

#: Pi-NAS-cls, the architecture searched for classification.
PINAS_A = '301-3231-203213-032'
#: Pi-NAS-trans, the architecture searched for transfer to detection and segmentation.
PINAS_B = '333-3113-330011-021'
#: What `pinas_nano` is without an arch: the paper's Pi-NAS-cls candidates where both spaces have a block.
NANO_DEFAULT = '30-32-20-03'

_logger = logging.getLogger('pinas_zoo')

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


def stage_geometry(space: SearchSpace, output_stride: int) -> list[tuple[int, int, int, int]]:
    """How each stage is strided and dilated at an output stride.

    A stage that would pass the output stride keeps its resolution and dilates instead; its first block still has the
    dilation of the stage before (as released).

    Args:
        space: The space.
        output_stride: 8, 16 or 32.

    Returns:
        Per stage (stride of the first block, dilation of the first block, dilation of the others, reduction of the
        output with respect to the image).

    Raises:
        ValueError: The output stride is not one of 8, 16, 32.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride!r}')
    reduction, dilation, geometry = space.stem_reduction, 1, []
    for stage_stride in space.strides:
        first_dilation, stride = dilation, stage_stride
        if reduction * stride > output_stride:
            dilation, stride = dilation * stride, 1
        reduction *= stride
        geometry.append((stride, first_dilation, dilation, reduction))
    return geometry


class PiNASNet(Skeleton):
    """One architecture of a search space, with timm's model contract.

    Args:
        arch: Architecture by stage, one digit a block, or a sequence of candidate indices.
        space: Search space, its name, or its dict of fields.
        num_classes: Classes; 0 leaves the classifier out.
        in_chans: Image channels.
        output_stride: 8, 16 or 32; below 32 the late stages are dilated as in the released segmentation networks.
        global_pool: timm's pooling type; '' leaves the pooling out (then num_classes must be 0).
        drop_rate: Dropout before the classifier while training.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over the blocks.
        device: Device to build on; None for torch's default.
        dtype: Type of the parameters; None for torch's default.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes)

    Raises:
        ValueError: The architecture is malformed or an option is out of range.

    Example:
        >>> net = PiNASNet('301-3231-203213-032')
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """

    def __init__(
        self,
        arch: str | Sequence[int] = PINAS_A,
        space: str | dict[str, Any] | SearchSpace = PINAS,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        space = get_space(space)
        # The device context reaches every submodule, without a device argument in each constructor.
        with nullcontext() if device is None else torch.device(device):
            super().__init__(space, in_chans)
            self.arch = space.parse(arch)
            self.num_classes, self.drop_rate = num_classes, drop_rate
            self.grad_checkpointing = False
            self._build_stages(output_stride, drop_path_rate)
            self.num_features = self.head_hidden_size = space.num_features
            self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
            init_weights(self)
        if dtype is not None:
            self.to(dtype=dtype)

    def _build_stages(self, output_stride: int, drop_path_rate: float) -> None:
        space, last = self.space, max(self.space.num_positions - 1, 1)
        self.feature_info = [dict(num_chs=space.stem_widths[-1], reduction=space.stem_stride, module='act1')]
        position = 0
        geometry = stage_geometry(space, output_stride)
        for name, (stride, first_dilation, dilation, reduction), depth, planes in zip(
            STAGES, geometry, space.depths, space.planes, strict=False
        ):
            blocks = []
            for block in range(depth):
                blocks.append(
                    make_block(
                        space,
                        position,
                        self.arch[position],
                        shortcut=make_shortcut(space, position, stride) if block == 0 else None,
                        stride=stride if block == 0 else 1,
                        dilation=first_dilation if block == 0 else dilation,
                        drop_path=drop_path_rate * position / last,
                    )
                )
                position += 1
            setattr(self, name, nn.Sequential(*blocks))
            self.feature_info.append(dict(num_chs=planes * space.expansion, reduction=reduction, module=name))
        # A space of fewer stages keeps the four attributes, so that forward_features can be scripted.
        for name in STAGES[len(space.depths) :]:
            setattr(self, name, nn.Sequential())

    # ---- timm's contract ------------------------------------------------------------------------

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that group parameters by stem and by stage or block, for layer-wise learning rates."""
        blocks = r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'
        return dict(stem=r'^conv1|^bn1', blocks=blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier module, or its name."""
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; `global_pool` None keeps the pooling."""
        reference = next(self.parameters())
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=pool,
            device=reference.device,
            dtype=reference.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Shape: (N, in_chans, H, W) -> (N, num_features, H / stride, W / stride)"""
        x = self.forward_stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return self.layer4(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies; `pre_logits` returns the pooled features."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stem (index 0) and of each stage.

        Args:
            x: Images, (N, in_chans, H, W).
            indices: Last n if an int, all if None, else the indices to return.
            norm: Without effect here; every stage ends in a normalised block.
            stop_early: Leave out the stages after the last index.
            output_fmt: 'NCHW' only.
            intermediates_only: Return only the list.

        Raises:
            ValueError: Another output format was asked for.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take else []
        x = self.maxpool(x)
        stages = STAGES[: len(self.feature_info) - 1]
        for index, name in enumerate(stages[:last] if stop_early else stages, start=1):
            stage = getattr(self, name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the stages that the given features do not need, and the classifier."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for name in STAGES[last:]:
            setattr(self, name, nn.Sequential())
        if last == 0:
            self.maxpool = nn.Identity()
        if last < len(self.feature_info) - 1:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
            prune_head = True
        if prune_head:
            self.reset_classifier(0, '')
        return take


# ---- weight rows and entry points ---------------------------------------------------------------


def _cfg(space: SearchSpace = PINAS, url: str = '', **kwargs: Any) -> dict[str, Any]:
    side = space.input_size
    reduction = stage_geometry(space, 32)[-1][-1]
    return {
        'url': url,
        'num_classes': 1000,
        'input_size': (3, side, side),
        'pool_size': (-(-side // reduction),) * 2,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1.0',
        'classifier': 'fc',
        'paper_ids': 'Pi-NAS, ICCV 2021',
        **kwargs,
    }


def _rows() -> dict[str, dict[str, Any]]:
    """timm's weight rows: the manifest's, and one without weights for the names that have none."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries().values():
        if entry.timm:
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.preprocess.items()}
            settings |= dict(num_classes=entry.num_classes, license=entry.licence)
            rows[entry.name] = _cfg(get_space(entry.space), entry.url, **settings)
    nano = _cfg(PINAS_NANO, num_classes=10, crop_pct=1.0)
    for name, row in (('pinas_b', _cfg()), ('pinas', _cfg()), ('pinas_nano', nano)):
        rows[f'{name}.untrained'] = row
    return rows


default_cfgs = generate_default_cfgs(_rows())


def _network(checkpoint: str | Path | None = None, **kwargs: Any) -> PiNASNet:
    net = PiNASNet(**kwargs)
    if checkpoint is not None:
        load_backbone(net, checkpoint)
    return net


def load_backbone(
    net: PiNASNet, checkpoint: str | Path, prefix: str = '', optional: tuple[str, ...] = ('fc.',)
) -> LoadReport:
    """Loads a weight file into a network; its features have to fit exactly.

    The classifier is loaded where the file has one of the same shape; the report says when it was left as it is.

    Args:
        net: The network.
        checkpoint: `.safetensors` or `.pth` file, the authors' classifier included, or ``pinas://NAME``.
        prefix: What stands before the network's names in the file; other names are then left alone.
        optional: Prefixes of the network's names that need not fit.

    Returns:
        The load report, which is also logged.

    Raises:
        ValueError: The file is of another architecture or space, or some feature weight is missing, left over or
            misshapen.
    """
    checkpoint = find_weights(checkpoint)
    state, metadata = read_weights(checkpoint)
    if 'space' in metadata and (space := SearchSpace.from_dict(json.loads(metadata['space']))) != net.space:
        raise ValueError(f'{checkpoint} is of another space: {space}, the network of {net.space}')
    old = {k.removeprefix(prefix): name for k, name in zip(strip_module(state), state) if k.startswith(prefix)}
    bare = {name: state[full] for name, full in old.items()}
    if not bare:
        raise ValueError(f'{checkpoint}: no name begins with {prefix!r}; there are: {", ".join(list(state)[:5])}')
    came = metadata.get('arch') or _arch_of_shapes(bare, net)
    wanted = net.space.format(net.arch)
    if came is not None and came != wanted:
        raise ValueError(f'{checkpoint} holds architecture {came}, the network is {wanted}')
    report = load_weights(net, bare, str(checkpoint), optional, old)
    unfilled = any(name.startswith('fc.') for name in report.skipped) and net.num_classes > 0
    _logger.log(logging.WARNING if unfilled else logging.INFO, report.summary())
    return report


def _arch_of_shapes(state: dict[str, Tensor], net: PiNASNet) -> str | None:
    """The architecture of a file that does not say it; None where its shapes do not tell or stages are left out."""
    built = [name for name in STAGES[: len(net.space.depths)] if len(getattr(net, name))]
    if len(built) < len(net.space.depths):
        return None
    try:
        return net.space.format(find_arch(shapes_of(state), net.space))
    except ValueError:
        return None  # the load report will say what does not fit


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    if pretrained:
        if kwargs.get('checkpoint') is not None:
            raise ValueError(f'pretrained=True and checkpoint={kwargs["checkpoint"]}: give one of them')
        kwargs = with_pretrained_file(variant, kwargs)
    depths = get_space(kwargs.get('space', PINAS)).depths
    feature_cfg = dict(out_indices=tuple(range(len(depths) + 1)))
    build: Callable[..., PiNASNet] = _network
    return build_model_with_cfg(
        build, variant, pretrained, feature_cfg=feature_cfg, pretrained_filter_fn=check_pretrained, **kwargs
    )


def _with_checkpoint_arch(kwargs: dict[str, Any], default: str, space: SearchSpace | None = None) -> dict[str, Any]:
    """Fills in architecture and space: those asked for, else the checkpoint's (said or found), else the default."""
    checkpoint, metadata = kwargs.get('checkpoint'), {}
    if checkpoint is not None:
        kwargs['checkpoint'] = checkpoint = find_weights(checkpoint)
        metadata = read_weights(checkpoint, tensors=False)[1]
        if 'arch' not in metadata and kwargs.get('arch') is None:
            shapes = shapes_of(strip_module(read_weights(checkpoint)[0]))
            found = space or (get_space(kwargs['space']) if 'space' in kwargs else find_space(shapes))
            metadata['arch'] = found.format(find_arch(shapes, found))
            kwargs['space'] = found
    if kwargs.get('arch') is None:
        kwargs['arch'] = metadata.get('arch', default)
    if 'space' in metadata:
        kwargs.setdefault('space', SearchSpace.from_dict(json.loads(metadata['space'])))
    return kwargs


@register_model
def pinas_a(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pi-NAS-cls: 27.05 M parameters, 5.33 GMACs at 224 px."""
    return _create('pinas_a', pretrained, **dict(kwargs, arch=PINAS_A))


@register_model
def pinas_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pi-NAS-trans: 27.04 M parameters, 5.25 GMACs at 224 px."""
    return _create('pinas_b', pretrained, **dict(kwargs, arch=PINAS_B))


@register_model
def pinas(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any architecture: ``timm.create_model('pinas', arch='301-3231-203213-032', space='pinas')``."""
    return _create('pinas', pretrained, **_with_checkpoint_arch(kwargs, PINAS_A))


@register_model
def pinas_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any architecture of the nano space, for 28-32 px images on a CPU."""
    kwargs = _with_checkpoint_arch(kwargs, NANO_DEFAULT, PINAS_NANO)
    return _create('pinas_nano', pretrained, **dict(kwargs, space=PINAS_NANO))
