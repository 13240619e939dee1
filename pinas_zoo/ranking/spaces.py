"""The space whose paths are trained stand-alone: candidates of different kinds, three of them at equal cost."""

from dataclasses import replace

from pinas_zoo.space import PINAS_PATCH

__all__ = ['RANK_SPACE']

#: `PINAS_PATCH` for images that the study has already cut into patches (`ranking.task.to_patches`).
RANK_SPACE = replace(PINAS_PATCH, name='pinas_rank', stem_patch=1)
