"""The instruments: a space with its truth, and the budget of the supernets that are measured with it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from pinas_zoo.ranking.pictures import PictureTask
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.ranking.standalone import Recipe
from pinas_zoo.ranking.truth import Study
from pinas_zoo.space import NAS_BENCH_MACRO, Candidate

__all__ = ['INSTRUMENTS', 'Instrument']


@dataclass(frozen=True)
class Instrument:
    """One ranking problem.

    Args:
        folder: Folder below benchmarks/ with truth.jsonl, scores.jsonl and the report.
        study: Space, images and training of the truth.
        recipe: Budget and training of the supernets.
        paths: Number of paths of the truth.
        half: The paths that are reported, see `truth.Truth.half`.
        seeds: Supernets per contestant.
        published: Whether the truth is the published table of NAS-Bench-Macro, which is not below benchmarks/.
    """

    folder: str
    study: Study = field(default_factory=Study)
    recipe: SupernetRecipe = field(default_factory=SupernetRecipe)
    paths: int = 192
    half: str = 'reporting'
    seeds: int = 3
    published: bool = False

    @property
    def truth(self) -> Path:
        """File of the truth, relative to a clone."""
        return Path('benchmarks', self.folder, 'truth.jsonl')


#: As `RANK_SPACE` with eight positions; two of five candidates mix neighbours, one of them weakly.
EIGHT_SPACE = replace(
    RANK_SPACE,
    name='pinas_rank_eight',
    depths=(2, 2, 2, 2),
    planes=(16, 16, 32, 32),
    strides=(1, 1, 2, 1),
    candidates=(
        Candidate(kernel=1, base_width=16),
        Candidate(kernel=1, base_width=64),
        Candidate(base_width=16),
        Candidate(kernel=1, base_width=128),
        Candidate(cardinality=2, base_width=28, kernel=5),
    ),
)

#: By name. In 'eight' a block of SPOS gets 150 updates where a training alone has 600 steps; its settings are those of
#: 'four', nothing is tuned, so that all of its paths are reported. So it is in 'macro', whose budget is what some
#: minutes of a CPU allow.
INSTRUMENTS = {
    'four': Instrument('rank'),
    'eight': Instrument(
        'rank_eight',
        Study(space=EIGHT_SPACE, recipe=Recipe(steps=600)),
        SupernetRecipe(units=750, linear_steps=450, calibration_batches=16, held_out=2000, probes=4, checkpoints=0),
        paths=96,
        half='both',
        seeds=5,
    ),
    'macro': Instrument(
        'rank_macro',
        Study(space=NAS_BENCH_MACRO, task=PictureTask(side=16, train=10_000, heldout=1_000), seeds=3),
        SupernetRecipe(units=300, linear_steps=200, calibration_batches=4, held_out=500, probes=0, checkpoints=0),
        paths=200,
        half='both',
        seeds=1,
        published=True,
    ),
}
