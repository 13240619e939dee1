"""The space whose paths are trained stand-alone: candidates that differ in kind at equal cost."""

from __future__ import annotations

from pinas_zoo.space import Candidate, SearchSpace

__all__ = ['RANK_SPACE']

#: Six positions; see docs/ranking_truth.md for what the candidates cost and why there are these.
RANK_SPACE = SearchSpace(
    'pinas_rank',
    depths=(2, 2, 2),
    planes=(16, 32, 64),
    strides=(1, 2, 2),
    stem_widths=(16, 16, 32),
    stem_stride=2,
    stem_pool=False,
    candidates=(
        Candidate(kernel=1, base_width=128),
        Candidate(),
        Candidate(radix=2),
        Candidate(cardinality=2, base_width=28, kernel=5),
    ),
    expansion=2,
    min_attention_width=8,
    input_size=20,
)
