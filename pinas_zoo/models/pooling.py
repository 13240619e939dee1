"""Average pools in operators that export with any size of the input."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['AveragePool', 'BinPool', 'with_dynamic_pooling']


class BinPool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, since ONNX has no such operator for a dynamic size.

    Args:
        bins: Height and width of the output.

    Shape:
        (N, C, H, W) -> (N, C, bins, bins)
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return self.weights(height, x) @ x @ self.weights(width, x).T

    def weights(self, size: int, like: Tensor) -> Tensor:
        """(bins, size): the share of each pixel in each bin, from floor(i size / bins) to ceil((i + 1) size / bins)."""
        place, index = torch.arange(size, device=like.device), torch.arange(self.bins, device=like.device)[:, None]
        start, end = index * size // self.bins, ((index + 1) * size + self.bins - 1) // self.bins
        return ((place >= start) & (place < end)).to(like) / (end - start).to(like)


class AveragePool(nn.Module):
    """`nn.AvgPool2d` with ceil_mode, for which torch.export needs to know whether the size is even.

    Args:
        side: Kernel and stride.

    Shape:
        (N, C, H, W) -> (N, C, ceil(H / side), ceil(W / side)); averages are over the pixels inside the image
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        # What is too much falls off. The output's size is then the same expression as that of a strided convolution.
        border = (0, self.side - 1, 0, self.side - 1)
        inside = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), border), self.side)
        return F.avg_pool2d(F.pad(x, border), self.side) / inside


def with_dynamic_pooling(module: nn.Module, ceil: bool = True) -> nn.Module:
    """A copy in eval mode whose average pools export with any size.

    Args:
        module: Network.
        ceil: Whether pools with ceil_mode are replaced; ONNX has an operator for them.

    Raises:
        ValueError: A pool has a form that neither replacement covers.
    """
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                if not isinstance(child.output_size, int):
                    raise ValueError(f'{name}: only square adaptive pools can be exported, got {child.output_size}')
                setattr(parent, name, BinPool(child.output_size))
            elif ceil and isinstance(child, nn.AvgPool2d) and child.ceil_mode and child.stride != 1:
                side = child.kernel_size
                if not isinstance(side, int) or side != child.stride or child.padding != 0 or child.count_include_pad:
                    raise ValueError(f'{name}: {child} cannot be exported with any size')
                setattr(parent, name, AveragePool(side))
    return module
