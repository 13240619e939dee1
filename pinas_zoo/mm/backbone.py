"""PiNASNet as a backbone of mmdetection and mmsegmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pinas_zoo.models.network import STAGES, PiNASNet
from pinas_zoo.registry import MODELS
from pinas_zoo.space import SearchSpace, get_space
from pinas_zoo.weights.loading import load_backbone

__all__ = ['PiNASBackbone']


@MODELS.register_module()
class PiNASBackbone(PiNASNet, BaseModule):
    """One architecture as a backbone: ``backbone=dict(type='pinas_zoo.PiNASBackbone', arch=...)``.

    Args:
        arch: Architecture by stage, one digit per block, several in brackets.
        space: Search space, its name, or its dict of fields.
        out_indices: Stages to return, from 0; later stages are not built.
        output_stride: 8, 16 or 32; 8 is the released form for segmentation.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages.
        norm_cfg: Norm layer, e.g. ``dict(type='SyncBN')``.
        norm_eval: Keep BN on its running statistics while training.
        with_cp: Recompute block activations in the backward pass; BN statistics are then updated twice per step.
        drop_path_rate: Stochastic depth of the last block.
        in_channels: Image channels.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix='')`` with a file of this project, loaded strictly.
        pretrained: Must be None; mmseg's models pass on their own argument of this name.

    Shape:
        (N, in_channels, H, W) -> one (N, C_i, H / s_i, W / s_i) for each of `out_indices`

    Raises:
        ValueError: An option is out of range, or the checkpoint does not fit the architecture.
    """

    def __init__(
        self,
        arch: str | Sequence[int | Sequence[int]],
        space: str | dict[str, Any] | SearchSpace = 'pinas',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_stride: int = 32,
        frozen_stages: int = -1,
        norm_cfg: dict[str, Any] | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        init_cfg: dict[str, Any] | None = None,
        pretrained: str | None = None,
    ) -> None:
        if pretrained is not None:
            raise ValueError(
                f'got pretrained={pretrained!r}, but PiNASBackbone loads its weights by init_cfg. If a base config of '
                'mmseg sets it on the model, write model=dict(pretrained=None, ...)'
            )
        stages = len(get_space(space).depths)
        if not out_indices or any(not 0 <= index < stages for index in out_indices):
            raise ValueError(f'out_indices must be among 0..{stages - 1}, got {tuple(out_indices)}')
        if not -1 <= frozen_stages <= stages:
            raise ValueError(f'frozen_stages must be in -1..{stages}, got {frozen_stages}')
        super().__init__(
            arch,
            space,
            num_classes=0,
            in_chans=in_channels,
            output_stride=output_stride,
            global_pool='',
            drop_path_rate=drop_path_rate,
        )
        self.out_indices, self.norm_eval = tuple(out_indices), norm_eval
        self.with_cp, self.frozen_stages = with_cp, frozen_stages
        self.init_cfg = init_cfg
        # Unused parameters would stop data-parallel training.
        self.unused = (*STAGES[max(out_indices) + 1 : stages], 'final_conv')
        for name in self.unused:
            setattr(self, name, nn.Sequential())
        if norm_cfg is not None:
            _replace_norms(self, norm_cfg)
        self._freeze()

    def init_weights(self) -> None:
        """Loads `init_cfg`'s checkpoint, strictly, and logs the report; without one, keeps the initialisation."""
        self._is_init = True
        if not self.init_cfg:
            return
        if self.init_cfg.get('type') != 'Pretrained':
            raise ValueError(f"init_cfg of PiNASBackbone must be of type 'Pretrained', got {self.init_cfg!r}")
        optional = ('fc.', *(f'{name}.' for name in self.unused))
        report = load_backbone(self, self.init_cfg['checkpoint'], self.init_cfg.get('prefix') or '', optional)
        print_log(report.summary(), logger='current')

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override] # mm's backbones give several
        x, outputs = self.forward_stem(x), []
        for index in range(max(self.out_indices) + 1):
            stage = getattr(self, STAGES[index])
            if self.with_cp and torch.is_grad_enabled():
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = stage(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> PiNASBackbone:
        """Sets the mode; frozen stages, and with `norm_eval` every BN, stay in eval mode."""
        super().train(mode)
        if mode:
            self._freeze()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def _freeze(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen += [self.conv1, self.bn1]
        frozen += [getattr(self, name) for name in STAGES[: max(self.frozen_stages, 0)]]
        for module in frozen:
            module.eval().requires_grad_(False)


def _replace_norms(module: nn.Module, norm_cfg: dict[str, Any]) -> None:
    """Replaces every BN by the configured norm layer, with the same weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            _, norm = build_norm_layer(norm_cfg, child.num_features)
            with torch.no_grad():
                norm.load_state_dict(child.state_dict(), strict=isinstance(norm, _BatchNorm))
            setattr(module, name, norm)
        else:
            _replace_norms(child, norm_cfg)
