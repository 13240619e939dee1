"""PiNASNet: one architecture of a search space, with timm's model contract.

The network of Pi-NAS (Peng et al., ICCV 2021): a ResNeSt-50 skeleton in which every block is one of four
split-attention bottlenecks. Parameter names are those of the released classification checkpoint.
"""

# No postponed annotations here: torch.fx writes the annotations of `forward` into the code that TorchScript reads.
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from pinas_zoo.models.blocks import Skeleton, init_weights, make_final, make_shortcut
from pinas_zoo.models.layers import Layers, named_layers
from pinas_zoo.models.mixed import make_block
from pinas_zoo.space import PINAS, SearchSpace, get_space

__all__ = ['PINAS_A', 'PINAS_B', 'STAGES', 'PiNASNet', 'stage_geometry']

#: Pi-NAS-cls, the architecture searched for classification.
PINAS_A = '301-3231-203213-032'
#: Pi-NAS-trans, the architecture searched for transfer to detection and segmentation.
PINAS_B = '333-3113-330011-021'

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


def stage_geometry(space: SearchSpace, output_stride: int) -> list[tuple[int, int, int, int]]:
    """Stride and dilation of each stage at an output stride.

    A stage that would exceed the output stride keeps its resolution and dilates instead; its first block still has the
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
        arch: Architecture by stage, one digit per block, or a sequence of candidate indices. A position in brackets
            adds up the candidates in it, each with a trainable factor (`MixedBottleneck`).
        space: Search space, its name, or its dict of fields.
        num_classes: Classes; 0 leaves the classifier out.
        in_chans: Image channels.
        output_stride: 8, 16 or 32; below 32 the late stages are dilated as in the released segmentation networks.
        global_pool: timm's pooling type; '' leaves the pooling out (then num_classes must be 0).
        drop_rate: Dropout before the classifier while training.
        drop_path_rate: Stochastic depth of the last block; it increases linearly from 0 over the blocks.
        act_layer: Activation, as timm takes it: a name of timm.layers or a class. Pretrained weights load and are those
            of a ReLU network (logged).
        norm_layer: Normalisation, likewise. Weights load only into layers with BN's tensors (BN, SyncBN, frozen BN).
        device: Device to build on; None for torch's default.
        dtype: Type of the parameters; None for torch's default.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes)

    Raises:
        ValueError: The architecture is malformed or an option is out of range.

    Examples:
        >>> net = PiNASNet('301-3231-203213-032')
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """

    if TYPE_CHECKING:  # TorchScript evaluates a class's annotations and does not know modules among them
        layer1: nn.Sequential
        layer2: nn.Sequential
        layer3: nn.Sequential
        layer4: nn.Sequential

    def __init__(
        self,
        arch: str | Sequence[int | Sequence[int]] = PINAS_A,
        space: str | dict[str, Any] | SearchSpace = PINAS,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        norm_layer: str | Callable[..., nn.Module] = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        space = get_space(space)
        # The device context applies to every submodule, without a device argument in each constructor.
        with nullcontext() if device is None else torch.device(device):
            layers = named_layers(act_layer, norm_layer)
            super().__init__(space, in_chans, layers)
            self.arch = space.parse(arch)
            self.num_classes, self.drop_rate = num_classes, drop_rate
            self.grad_checkpointing = False
            self._build_stages(output_stride, drop_path_rate, layers)
            self.final_conv = make_final(space, layers)  # after the stages: timm reads children in order
            self.num_features = self.head_hidden_size = space.num_features
            self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
            init_weights(self)
        if dtype is not None:
            self.to(dtype=dtype)

    def _build_stages(self, output_stride: int, drop_path_rate: float, layers: Layers) -> None:
        space, last = self.space, max(self.space.num_positions - 1, 1)
        self.feature_info: list[dict[str, Any]] = [
            dict(num_chs=space.stem_widths[-1], reduction=space.stem_patch * space.stem_stride, module='act1')
        ]
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
                        shortcut=make_shortcut(space, position, stride, layers) if block == 0 else None,
                        stride=stride if block == 0 else 1,
                        dilation=first_dilation if block == 0 else dilation,
                        drop_path=drop_path_rate * position / last,
                        layers=layers,
                    )
                )
                position += 1
            setattr(self, name, nn.Sequential(*blocks))
            self.feature_info.append(dict(num_chs=planes * space.expansion, reduction=reduction, module=name))
        # A space with fewer stages still gets the four attributes, so that forward_features can be scripted.
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
        """Recomputes each block's activations in the backward pass instead of storing them."""
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
            stages = [self.layer1, self.layer2, self.layer3, self.layer4]
            return self.final_conv(checkpoint_seq(stages, x, flatten=True))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return self.final_conv(self.layer4(x))

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
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stem (index 0) and of each stage.

        Args:
            x: Images, (N, in_chans, H, W).
            indices: Last n if an int, all if None, else the indices to return.
            norm: Has no effect; every stage ends in a normalised block.
            stop_early: Leave out the stages after the last index.
            output_fmt: 'NCHW' only.
            intermediates_only: Return only the list.

        Raises:
            ValueError: Another output format was requested.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        x = self.act1(self.bn1(self.conv1(self.patchify(x))))
        intermediates = [x] if 0 in take else []
        x = self.maxpool(x)
        stages = STAGES[: len(self.feature_info) - 1]
        for index, name in enumerate(stages[:last] if stop_early else stages, start=1):
            stage = getattr(self, name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in take:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return (x if stop_early and last < len(stages) else self.final_conv(x)), intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the stages that the given features do not need, and the classifier."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for name in STAGES[last:]:
            setattr(self, name, nn.Sequential())
        if last == 0:
            self.maxpool = nn.Identity()
        prune_head = prune_head or last < len(self.feature_info) - 1
        if prune_head:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
            self.final_conv = nn.Identity()
            self.reset_classifier(0, '')
        return take
