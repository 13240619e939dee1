"""The released networks, written a second time: names and shapes of their checkpoints, naive forward passes in torch.

Only the numbers of the space are taken from pinas_zoo, so that a mistake there cannot hide here.
"""

import torch
import torch.nn.functional as F
from golden import fill_value
from torch import Tensor

# radix, cardinality, base width of the four candidates
CANDIDATES = ((1, 1, 64), (2, 1, 64), (1, 2, 42), (2, 2, 40))


def norm(name: str, channels: int) -> dict:
    return {f'{name}.{kind}': (channels,) for kind in ('weight', 'bias', 'running_mean', 'running_var')} | {
        f'{name}.num_batches_tracked': ()
    }


def fill(shapes: dict) -> dict[str, Tensor]:
    """Deterministic weights for released names."""
    return {
        name: torch.tensor(0) if name.endswith('num_batches_tracked') else fill_value(name, tuple(shape))
        for name, shape in shapes.items()
    }


def backbone_blocks(space, arch: str):
    """(stage from 1, block, in channels, planes, candidate) of every block."""
    digits, channels = iter(arch.replace('-', '')), space.stem_widths[2]
    for stage, (depth, planes) in enumerate(zip(space.depths, space.planes), start=1):
        for block in range(depth):
            yield stage, block, channels, planes, CANDIDATES[int(next(digits))]
            channels = planes * 4


def attention_shapes(prefix: str, width: int, radix: int, groups: int) -> dict:
    hidden = max(width * radix // 4, 32)
    return {
        f'{prefix}.conv.weight': (width * radix, width // (groups * radix), 3, 3),
        **norm(f'{prefix}.bn0', width * radix),
        f'{prefix}.fc1.weight': (hidden, width // groups, 1, 1),
        f'{prefix}.fc1.bias': (hidden,),
        **norm(f'{prefix}.bn1', hidden),
        f'{prefix}.fc2.weight': (width * radix, hidden // groups, 1, 1),
        f'{prefix}.fc2.bias': (width * radix,),
    }


def deeplab_shapes_released(space, arch: str, classes: int) -> dict:
    """Names and shapes of PiNAS_trans_ade.pth.tar and PiNAS_trans_citys.pth.tar."""
    first, second, third = space.stem_widths
    out = {'conv1.0.weight': (first, 3, 3, 3), **norm('conv1.1', first), 'conv1.3.weight': (second, first, 3, 3)}
    out |= {**norm('conv1.4', second), 'conv1.6.weight': (third, second, 3, 3), **norm('bn1', third)}
    for stage, block, channels, planes, (radix, groups, base) in backbone_blocks(space, arch):
        p, width = f'layer{stage}.{block}', int(planes * base / 64) * groups
        out |= {f'{p}.conv1.weight': (width, channels, 1, 1), **norm(f'{p}.bn1', width)}
        out |= attention_shapes(f'{p}.conv2', width, radix, groups)
        out |= {f'{p}.conv3.weight': (planes * 4, width, 1, 1), **norm(f'{p}.bn3', planes * 4)}
        if block == 0:
            out |= {f'{p}.downsample.1.weight': (planes * 4, channels, 1, 1), **norm(f'{p}.downsample.2', planes * 4)}
    out = {f'pretrained.{name}': shape for name, shape in out.items()}
    last, before = space.planes[-1] * 4, space.planes[-2] * 4
    for index in range(4):
        side = 1 if index == 0 else 3
        out |= {f'head.aspp.b{index}.0.weight': (256, last, side, side), **norm(f'head.aspp.b{index}.1', 256)}
    out |= {'head.aspp.b4.gap.1.weight': (256, last, 1, 1), **norm('head.aspp.b4.gap.2', 256)}
    out |= {'head.aspp.project.0.weight': (256, 1280, 1, 1), **norm('head.aspp.project.1', 256)}
    out |= {'head.block.0.weight': (256, 256, 3, 3), **norm('head.block.1', 256)}
    out |= {'head.block.4.weight': (classes, 256, 1, 1), 'head.block.4.bias': (classes,)}
    out |= {'auxlayer.conv5.0.weight': (256, before, 3, 3), **norm('auxlayer.conv5.1', 256)}
    return out | {'auxlayer.conv5.4.weight': (classes, 256, 1, 1), 'auxlayer.conv5.4.bias': (classes,)}


def mask_rcnn_shapes_released(space, arch: str, classes: int) -> dict:
    """Names and shapes of PiNAS_trans_COCO.pth (detectron2)."""
    first, second, third = space.stem_widths
    stem, out = 'backbone.bottom_up.stem.conv1', {}
    for index, shape in enumerate(((first, 3, 3, 3), (second, first, 3, 3), (third, second, 3, 3))):
        out |= {f'{stem}.{index}.weight': shape, **norm(f'{stem}.{index}.norm', shape[0])}
    for stage, block, channels, planes, (radix, groups, base) in backbone_blocks(space, arch):
        p, width = f'backbone.bottom_up.res{stage + 1}.{block}', int(planes * base / 64) * groups
        out |= {f'{p}.conv1.weight': (width, channels, 1, 1), **norm(f'{p}.conv1.norm', width)}
        out |= attention_shapes(f'{p}.conv2', width, radix, groups)
        out |= {f'{p}.conv3.weight': (planes * 4, width, 1, 1), **norm(f'{p}.conv3.norm', planes * 4)}
        if block == 0:
            out |= {f'{p}.shortcut.weight': (planes * 4, channels, 1, 1), **norm(f'{p}.shortcut.norm', planes * 4)}
    for level, planes in enumerate(space.planes, start=2):
        out |= {f'backbone.fpn_lateral{level}.weight': (256, planes * 4, 1, 1)}
        out |= norm(f'backbone.fpn_lateral{level}.norm', 256)
        out |= {f'backbone.fpn_output{level}.weight': (256, 256, 3, 3), **norm(f'backbone.fpn_output{level}.norm', 256)}
    convs = [('conv', 256, 3), ('objectness_logits', 3, 1), ('anchor_deltas', 12, 1)]
    for name, channels, side in convs:
        p = f'proposal_generator.rpn_head.{name}'
        out |= {f'{p}.weight': (channels, 256, side, side), f'{p}.bias': (channels,)}
    for index in range(1, 5):
        for p in (f'roi_heads.box_head.conv{index}', f'roi_heads.mask_head.mask_fcn{index}'):
            out |= {f'{p}.weight': (256, 256, 3, 3), **norm(f'{p}.norm', 256)}
    linear = (('box_head.fc1', 1024, 12544), ('box_predictor.cls_score', classes + 1, 1024))
    for name, channels, inner in (*linear, ('box_predictor.bbox_pred', 4 * classes, 1024)):
        out |= {f'roi_heads.{name}.weight': (channels, inner), f'roi_heads.{name}.bias': (channels,)}
    out |= {'roi_heads.mask_head.deconv.weight': (256, 256, 2, 2), 'roi_heads.mask_head.deconv.bias': (256,)}
    p = 'roi_heads.mask_head.predictor'
    return out | {f'{p}.weight': (classes, 256, 1, 1), f'{p}.bias': (classes,)}


# ---- naive forward passes -------------------------------------------------------------------------------------------


class Released:
    """Forward passes over a released state dict, written as plain functions."""

    def __init__(self, state: dict[str, Tensor], prefix: str = ''):
        self.state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}

    def conv(self, x: Tensor, name: str, **kwargs) -> Tensor:
        return F.conv2d(x, self.state[f'{name}.weight'], self.state.get(f'{name}.bias'), **kwargs)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = self.state[f'{name}.running_mean'], self.state[f'{name}.running_var']
        return F.batch_norm(x, mean, var, self.state[f'{name}.weight'], self.state[f'{name}.bias'])

    def attention(self, x: Tensor, name: str, radix: int, groups: int, dilation: int) -> Tensor:
        x = self.conv(x, f'{name}.conv', padding=dilation, dilation=dilation, groups=groups * radix)
        x = F.relu(self.norm(x, f'{name}.bn0'))
        splits = x.chunk(radix, dim=1)
        gap = sum(splits).mean((2, 3), keepdim=True)
        gap = F.relu(self.norm(self.conv(gap, f'{name}.fc1', groups=groups), f'{name}.bn1'))
        logits = self.conv(gap, f'{name}.fc2', groups=groups)
        if radix == 1:
            return x * logits.sigmoid()
        batch, channels = logits.shape[:2]
        inner = channels // (groups * radix)
        weights = torch.empty_like(logits)
        for g in range(groups):  # fc2's channels: (group, radix, inner); the splits': (radix, group, inner)
            part = logits[:, g * radix * inner : (g + 1) * radix * inner].view(batch, radix, inner, 1, 1).softmax(1)
            for r in range(radix):
                start = r * groups * inner + g * inner
                weights[:, start : start + inner] = part[:, r]
        return sum(split * weight for split, weight in zip(splits, weights.chunk(radix, dim=1)))

    def stem(self, x: Tensor, convs: tuple[str, ...], norms: tuple[str, ...]) -> Tensor:
        for index, (conv, norm) in enumerate(zip(convs, norms)):
            x = F.relu(self.norm(self.conv(x, conv, stride=2 if index == 0 else 1, padding=1), norm))
        return F.max_pool2d(x, 3, 2, 1)

    def block(
        self, x: Tensor, names: dict[str, str], candidate: tuple, stride: int, dilation: int, pool: bool
    ) -> Tensor:
        """A bottleneck; `names` gives conv1, bn1, conv2, conv3, bn3 and, in a stage's first block, the shortcut."""
        radix, groups, _ = candidate
        out = F.relu(self.norm(self.conv(x, names['conv1']), names['bn1']))
        out = self.attention(out, names['conv2'], radix, groups, dilation)
        if pool:
            out = F.avg_pool2d(out, 3, stride, 1)
        out = self.norm(self.conv(out, names['conv3']), names['bn3'])
        if 'shortcut' in names:
            if stride > 1:
                x = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
            x = self.norm(self.conv(x, names['shortcut']), names['shortcut_bn'])
        return F.relu(out + x)

    def deeplab_features(self, x: Tensor, space, arch: str) -> list[Tensor]:
        """Stages 3 and 4 of the dilated backbone (prefix `pretrained.`)."""
        convs, norms = ('conv1.0', 'conv1.3', 'conv1.6'), ('conv1.1', 'conv1.4', 'bn1')
        x = self.stem(x, tuple(f'pretrained.{n}' for n in convs), tuple(f'pretrained.{n}' for n in norms))
        outs: dict[int, Tensor] = {}
        for stage, block, _, _, candidate in backbone_blocks(space, arch):
            p = f'pretrained.layer{stage}.{block}.'
            names = {kind: p + kind for kind in ('conv1', 'bn1', 'conv2', 'conv3', 'bn3')}
            if block == 0:
                names |= {'shortcut': f'{p}downsample.1', 'shortcut_bn': f'{p}downsample.2'}
            dilation = {3: 1 if block == 0 else 2, 4: 2 if block == 0 else 4}.get(stage, 1)
            stride = 2 if (stage, block) == (2, 0) else 1
            outs[stage] = x = self.block(x, names, candidate, stride, dilation, pool=block == 0 and stage > 1)
        return [outs[3], outs[4]]

    def deeplab_head(self, x: Tensor) -> Tensor:
        branches = [F.relu(self.norm(self.conv(x, 'head.aspp.b0.0'), 'head.aspp.b0.1'))]
        for index, rate in ((1, 12), (2, 24), (3, 36)):
            out = self.conv(x, f'head.aspp.b{index}.0', padding=rate, dilation=rate)
            branches.append(F.relu(self.norm(out, f'head.aspp.b{index}.1')))
        pooled = self.conv(x.mean((2, 3), keepdim=True), 'head.aspp.b4.gap.1')
        branches.append(F.relu(self.norm(pooled, 'head.aspp.b4.gap.2')).expand_as(branches[0]))
        x = F.relu(self.norm(self.conv(torch.cat(branches, 1), 'head.aspp.project.0'), 'head.aspp.project.1'))
        x = F.relu(self.norm(self.conv(x, 'head.block.0', padding=1), 'head.block.1'))
        return self.conv(x, 'head.block.4')

    def deeplab_auxiliary(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x, 'auxlayer.conv5.0', padding=1), 'auxlayer.conv5.1'))
        return self.conv(x, 'auxlayer.conv5.4')

    def rcnn_features(self, x: Tensor, space, arch: str) -> list[Tensor]:
        """The five levels of detectron2's FPN, finest first."""
        stem = tuple(f'backbone.bottom_up.stem.conv1.{index}' for index in range(3))
        x = self.stem(x, stem, tuple(f'{name}.norm' for name in stem))
        stages: dict[int, Tensor] = {}
        for stage, block, _, _, candidate in backbone_blocks(space, arch):
            p = f'backbone.bottom_up.res{stage + 1}.{block}.'
            names = {'conv2': f'{p}conv2', 'conv1': f'{p}conv1', 'bn1': f'{p}conv1.norm'}
            names |= {'conv3': f'{p}conv3', 'bn3': f'{p}conv3.norm'}
            if block == 0:
                names |= {'shortcut': f'{p}shortcut', 'shortcut_bn': f'{p}shortcut.norm'}
            strided = block == 0 and stage > 1
            stages[stage] = x = self.block(x, names, candidate, 2 if strided else 1, 1, pool=strided)
        levels: list[Tensor] = []
        above = torch.zeros(())
        for level in (5, 4, 3, 2):
            name = f'backbone.fpn_lateral{level}'
            lateral = self.norm(self.conv(stages[level - 1], name), f'{name}.norm')
            above = lateral + (0 if level == 5 else F.interpolate(above, scale_factor=2, mode='nearest'))
            name = f'backbone.fpn_output{level}'
            levels.insert(0, self.norm(self.conv(above, name, padding=1), f'{name}.norm'))
        return [*levels, levels[-1][:, :, ::2, ::2]]

    def rpn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits and anchor deltas of one level."""
        p = 'proposal_generator.rpn_head.'
        x = F.relu(self.conv(x, f'{p}conv', padding=1))
        return self.conv(x, f'{p}objectness_logits'), self.conv(x, f'{p}anchor_deltas')

    def boxes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores and box deltas from (R, 256, 7, 7)."""
        for index in range(1, 5):
            name = f'roi_heads.box_head.conv{index}'
            x = F.relu(self.norm(self.conv(x, name, padding=1), f'{name}.norm'))
        linear = lambda x, name: F.linear(x, self.state[f'{name}.weight'], self.state[f'{name}.bias'])  # noqa: E731
        x = F.relu(linear(x.flatten(1), 'roi_heads.box_head.fc1'))
        return linear(x, 'roi_heads.box_predictor.cls_score'), linear(x, 'roi_heads.box_predictor.bbox_pred')

    def masks(self, x: Tensor) -> Tensor:
        """Mask logits from (R, 256, 14, 14)."""
        for index in range(1, 5):
            name = f'roi_heads.mask_head.mask_fcn{index}'
            x = F.relu(self.norm(self.conv(x, name, padding=1), f'{name}.norm'))
        p = 'roi_heads.mask_head.'
        x = F.conv_transpose2d(x, self.state[f'{p}deconv.weight'], self.state[f'{p}deconv.bias'], stride=2)
        return self.conv(F.relu(x), f'{p}predictor')


def detectron2_anchors(height: int, width: int, stride: int, size: float) -> Tensor:
    """detectron2's anchors of one level, (height * width * 3, 4): its rows, then columns, then the three ratios."""
    rows = []
    for y in range(height):
        for x in range(width):
            for ratio in (0.5, 1.0, 2.0):
                w = (size * size / ratio) ** 0.5
                h = w * ratio
                rows.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    return torch.tensor(rows)


def detectron2_decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """detectron2's box coding, (N, 4) deltas onto (N, 4) boxes."""
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    cx, cy = boxes[:, 0] + w / 2, boxes[:, 1] + h / 2
    dx, dy, dw, dh = (deltas[:, i] / weights[i] for i in range(4))
    limit = torch.tensor(1000 / 16).log().item()
    cx, cy = cx + dx * w, cy + dy * h
    w, h = w * dw.clamp(max=limit).exp(), h * dh.clamp(max=limit).exp()
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=1)
