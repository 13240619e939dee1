"""The search space: candidates, positions and architectures. Pure Python and numpy, no torch.

`search_space` defines the paper's candidates and the space, `candidates` the other kinds, `notation` how architectures
are written, `named` the spaces that have a name. An architecture (`Arch`) is a tuple with one candidate index per
position. A space is data: the paper's is the value `PINAS`, and any other skeleton or candidate list is another
`SearchSpace` value.
"""

from pinas_zoo.space.candidates import CandidateKind, Identity, InvertedResidual
from pinas_zoo.space.named import NAS_BENCH_MACRO, PINAS, PINAS_NANO, PINAS_PATCH, PINAS_TINY
from pinas_zoo.space.notation import Arch, kept
from pinas_zoo.space.search_space import PAPER_CANDIDATES, SPACES, Candidate, SearchSpace, get_space

__all__ = [
    'NAS_BENCH_MACRO',
    'PAPER_CANDIDATES',
    'PINAS',
    'PINAS_NANO',
    'PINAS_PATCH',
    'PINAS_TINY',
    'SPACES',
    'Arch',
    'Candidate',
    'CandidateKind',
    'Identity',
    'InvertedResidual',
    'SearchSpace',
    'get_space',
    'kept',
]
