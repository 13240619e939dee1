"""The peers of Pi-NAS, one file each; `base` says what a method is."""

from pinas_zoo.methods.attentivenas import AttentiveNAS
from pinas_zoo.methods.base import ArchitectureMethod, Method, SupervisedMethod, decay_groups, restrict_gradient
from pinas_zoo.methods.bnnas import BNNAS
from pinas_zoo.methods.entrannas import EnTranNAS
from pinas_zoo.methods.fairnas import FairNAS
from pinas_zoo.methods.fpnas import FPNAS
from pinas_zoo.methods.linear import LinearHead
from pinas_zoo.methods.pada import PADA
from pinas_zoo.methods.proximal import AdamProximal, ProximalGradient
from pinas_zoo.methods.rlnas import RLNAS
from pinas_zoo.methods.sparse import SparseSupernet
from pinas_zoo.methods.spos import SPOS

#: Every peer by the name that configs and tools use (`type='pinas_zoo.SPOS'`).
METHODS = {
    method.__name__: method
    for method in (SPOS, FairNAS, BNNAS, AttentiveNAS, FPNAS, SparseSupernet, EnTranNAS, RLNAS, PADA)
}
#: Optimisers of architecture parameters beside torch's, by their names in configs.
ARCH_OPTIMISERS = {optimiser.__name__: optimiser for optimiser in (ProximalGradient, AdamProximal)}

__all__ = [
    'ARCH_OPTIMISERS',
    'BNNAS',
    'FPNAS',
    'METHODS',
    'PADA',
    'RLNAS',
    'SPOS',
    'AdamProximal',
    'ArchitectureMethod',
    'AttentiveNAS',
    'EnTranNAS',
    'FairNAS',
    'LinearHead',
    'Method',
    'ProximalGradient',
    'SparseSupernet',
    'SupervisedMethod',
    'decay_groups',
    'restrict_gradient',
]
