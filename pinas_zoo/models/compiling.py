"""Compiled blocks: `torch.compile` merges their normalisation and element-wise kernels."""

from __future__ import annotations

import torch._dynamo.config as dynamo_config
import torch._functorch.config as functorch_config
from torch import nn

from pinas_zoo.models.kinds import Block, Skip

__all__ = ['compile_blocks']


def compile_blocks(net: nn.Module, backend: str = 'inductor') -> int:
    """Has every block of a network compiled when it first runs; blocks of equal shapes share one compilation.

    Captured blocks contain the compiled kernels. Results equal those of eager blocks up to rounding, not bit for bit.

    Args:
        net: Network, or a method with its networks.
        backend: Backend of `torch.compile`.

    Returns:
        The number of blocks.
    """
    blocks = [module for module in net.modules() if isinstance(module, Block) and not isinstance(module, Skip)]
    # Beyond the limit a shape would silently run eagerly; every block may need four: with gradients and without, its
    # own parameters and a capture's aliases.
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, 4 * len(blocks))
    dynamo_config.accumulated_recompile_limit = max(dynamo_config.accumulated_recompile_limit, 4 * len(blocks))
    functorch_config.donated_buffer = False  # a captured backward pass runs more than once
    for block in blocks:
        # Dynamic shapes, which torch tries once sizes differ between blocks, give slower kernels.
        block.compile(backend=backend, dynamic=False)
    return len(blocks)
