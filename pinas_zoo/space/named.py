"""The spaces that configs and checkpoints refer to by name."""

from __future__ import annotations

from pinas_zoo.space.candidates import Identity, InvertedResidual
from pinas_zoo.space.search_space import SPACES, Candidate, SearchSpace

__all__ = ['NAS_BENCH_MACRO', 'PINAS', 'PINAS_NANO', 'PINAS_PATCH', 'PINAS_TINY']

#: The paper's space: 4^16 architectures on the ResNeSt-50 skeleton.
PINAS = SearchSpace('pinas')
#: A space for CPUs: 28-32 px images, 4^8 architectures, well under 1 M parameters per path.
PINAS_NANO = SearchSpace(
    'pinas_nano',
    depths=(2, 2, 2, 2),
    planes=(16, 32, 64, 96),
    stem_widths=(16, 16, 32),
    stem_pool=False,
    input_size=28,
)
#: The paper's depths at a quarter of its width, for golden tensors and tests.
PINAS_TINY = SearchSpace('pinas_tiny', planes=(16, 32, 64, 128), stem_widths=(8, 8, 16), input_size=64)

#: The ranking study's space behind a patch stem, for plain images: 4 positions, 625 architectures of different kinds,
#: three of the candidates at equal cost. The stem sees single patches, so that only the candidates mix neighbours:
#: two narrow ones with kernels of 1 and 3, and three of about equal cost with kernels of 1, 3 and 5. None
#: is a skip, which not every method can rank. docs/ranking_truth.md describes the designs that were tried.
PINAS_PATCH = SearchSpace(
    'pinas_patch',
    depths=(2, 2),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(16, 16, 16),
    stem_stride=1,
    stem_pool=False,
    stem_kernel=1,
    stem_patch=4,
    candidates=(
        Candidate(kernel=1, base_width=16),
        Candidate(base_width=16),
        Candidate(kernel=1, base_width=128),
        Candidate(),
        Candidate(cardinality=2, base_width=28, kernel=5),
    ),
    expansion=2,
    min_attention_width=8,
    input_size=20,
)

#: NAS-Bench-Macro (Su et al., CVPR 2021): 3^8 architectures of inverted residuals for CIFAR-10, whose published
#: accuracies are a truth for ranking. Parameters and MACs of all of them equal those of the published table.
NAS_BENCH_MACRO = SearchSpace(
    'nas_bench_macro',
    depths=(2, 3, 3),
    planes=(64, 128, 256),
    strides=(2, 2, 2),
    stem_widths=(32,),
    stem_stride=1,
    stem_pool=False,
    candidates=(Identity(), InvertedResidual(kernel=3, expansion=3), InvertedResidual(kernel=5, expansion=6)),
    expansion=1,
    input_size=32,
    final_width=1280,
)

SPACES.update({space.name: space for space in (NAS_BENCH_MACRO, PINAS, PINAS_NANO, PINAS_PATCH, PINAS_TINY)})
