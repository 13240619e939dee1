"""The loop of a search: ask, evaluate, record, tell; path by path or by racing."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from pinas_zoo.search.evaluate import PathScore
from pinas_zoo.search.log import score_of
from pinas_zoo.search.racing import Race, group_of
from pinas_zoo.search.searcher import Searcher
from pinas_zoo.search.strategies import random_records
from pinas_zoo.space import Arch

__all__ = ['Told', 'best_told', 'run_race', 'run_search']

#: An evaluation: architecture, score, and the images that it was scored on (None: all).
Told: TypeAlias = tuple[Arch, float, int | None]
#: Scores paths, in their order.
Evaluate: TypeAlias = Callable[[Sequence[Arch]], list[PathScore]]
#: Called after every evaluation, before the searcher is told: the new scores, and how many paths were evaluated.
Record: TypeAlias = Callable[[Sequence[PathScore], int], None]


def run_search(
    searcher: Searcher, evaluate: Evaluate, budget: int, objective: str, wanted: int, record: Record
) -> None:
    """Evaluates every path on all images until the budget is used.

    Args:
        searcher: The search, continued where it is.
        evaluate: Scores the paths.
        budget: Evaluations in all.
        objective: See `score_of`.
        wanted: Paths at a time, as long as nothing has to be told first; later asks stop at the block's end.
        record: See `Record`.
    """
    while (left := budget - len(searcher.history)) > 0 and (archs := searcher.ask(min(wanted, left))):
        paths = evaluate(archs)
        record(paths, len(paths))
        searcher.tell(archs, [score_of(objective, path.top1, path.loss) for path in paths])


def run_race(
    searcher: Searcher, race: Race, budget: int, objective: str, told: Sequence[Told], record: Record
) -> list[Told]:
    """Races whole groups of proposals against the best path so far until the budget is used.

    A group depends on the history before it only. If a search was stopped within one, or its budget ends within one,
    the whole group is raced, so that neither changes a score.

    Args:
        searcher: The search, continued where it is.
        race: Scores the groups.
        budget: As for `run_search`.
        objective: As for `run_search`; the race itself compares losses.
        told: What the searcher was told so far.
        record: As for `run_search`.

    Returns:
        What the searcher was told, with the new evaluations.

    Raises:
        ValueError: The race's group is not a multiple of the search's block.
    """
    told = list(told)
    initial = random_records(searcher.header(''))
    while (done := len(told)) < budget:
        begin, end = group_of(done, initial, searcher.block, race.settings.group)
        new = searcher.ask(end - done)
        if not new:
            break
        known = [arch for arch, _, _ in told[begin:]]
        rival = best_told(told[:begin])
        paths = race([*known, *new], None if rival is None else rival[0])
        fresh = paths[len(known) :][: budget - done]
        record(fresh, len(paths))
        scores = [score_of(objective, path.top1, path.loss) for path in fresh]
        searcher.tell([path.arch for path in fresh], scores)
        told += [(path.arch, score, path.images) for path, score in zip(fresh, scores, strict=True)]
    return told


def best_told(told: Sequence[Told]) -> Told | None:
    """The best of the evaluations on the most images, the first of equal ones; None if there is none."""
    most = max((images or 0 for _, _, images in told), default=0)
    return max((one for one in told if (one[2] or 0) == most), key=lambda one: one[1], default=None)
