"""The space whose paths are trained stand-alone: candidates that differ in kind, three of them at equal cost."""

from __future__ import annotations

from pinas_zoo.space import Candidate, SearchSpace

__all__ = ['RANK_SPACE']

#: Four positions, 625 paths. The stem sees single patches, so that how neighbours are mixed is up to the candidates:
#: two narrow ones with kernels of 1 and 3, and three of about equal cost with kernels of 1, 3 and 5. None is a skip,
#: which not every method can rank. See docs/ranking_truth.md for what was tried before.
RANK_SPACE = SearchSpace(
    'pinas_rank',
    depths=(2, 2),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(16, 16, 16),
    stem_stride=1,
    stem_pool=False,
    stem_kernel=1,
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
