"""What a search ends with: the regret of its first choice, by accuracy and by loss, and of a shortlist trained alone.

The candidates are random halves of the paths, as a search sees some of its space: a regret over all paths would hang on
one or two of them. A rule that trains networks alone selects by one seed of the truth and is judged by the other seeds,
in all roles in turn, so that the choice does not profit from the noise that it selected.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pinas_zoo.ranking.contestants import CONTESTANTS
from pinas_zoo.ranking.report import scores_of, seeds_of, true_values
from pinas_zoo.ranking.truth import Truth
from pinas_zoo.search.log import SearchLog

__all__ = ['CHOOSERS', 'RULES', 'SHORTLIST', 'choice_markdown', 'choices', 'chosen_from', 'read_searches', 'regrets']

#: Networks of a shortlist, as in the quickstart.
SHORTLIST = 5
#: The rules, in words: what is released, the default of a search, a random one of the shortlist, and its choice.
RULES = {
    'accuracy': 'first by accuracy (as released)',
    'loss': 'first by loss',
    'listed': f'mean of the first {SHORTLIST} by loss',
    'shortlist': f'best of these {SHORTLIST}, trained alone',
}
#: Random draws of half of the paths.
DRAWS = 500
#: Contestants of the table, and the quickstart's supernet, with their names.
CHOOSERS = {name: CONTESTANTS[name].label for name in ('pinas', 'no_cross_path', 'moco', 'spos', 'fairnas')}
CHOOSERS['quickstart'] = "Pi-NAS, the quickstart's supernet"

Floats = NDArray[np.float64]


def regrets(truth: ArrayLike, accuracy: ArrayLike, loss: ArrayLike, shortlist: int = SHORTLIST) -> dict[str, float]:
    """The regret of every rule, in points of accuracy.

    Args:
        truth: True accuracies, one row per seed of the truth.
        accuracy: Estimated accuracy of each path; of equal ones the first counts.
        loss: Estimated loss of each path.
        shortlist: Networks that are trained alone.

    Shape:
        truth: (seeds, paths), with two seeds or more
        accuracy, loss: (paths,)

    Returns:
        By key of `RULES`: the accuracy of the path that is best by the mean of the seeds, minus that of the chosen
        path, by the seeds that did not select it; mean over the roles of the seeds.
    """
    truth = np.asarray(truth, dtype=float)
    best = int(truth.mean(axis=0).argmax())
    by_loss = np.argsort(np.asarray(loss), kind='stable')
    found: dict[str, list[float]] = {rule: [] for rule in RULES}
    for selects in range(len(truth)):
        judge = np.delete(truth, selects, axis=0).mean(axis=0)
        listed = by_loss[:shortlist]
        chosen = {
            'accuracy': judge[int(np.argmax(accuracy))],
            'loss': judge[by_loss[0]],
            'listed': judge[listed].mean(),
            'shortlist': judge[listed[truth[selects, listed].argmax()]],
        }
        for rule, value in chosen.items():
            found[rule].append(float(judge[best] - value))
    return {rule: float(np.mean(values)) for rule, values in found.items()}


def read_searches(folder: str | Path) -> list[dict[str, Any]]:
    """Searches of quickstart supernets over all paths, `quickstart_*.jsonl`, as lines of scores have them."""
    rows = []
    for file in sorted(Path(folder).glob('quickstart_*.jsonl')):
        header, records = SearchLog.read(file)
        rows.append({'seed': header['seed'], 'scores': {one.arch: [one.top1, one.loss] for one in records}})
    return rows


def chosen_from(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], searches: Sequence[Mapping[str, Any]]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The supernets of the table, of those in the report and of the quickstart."""
    everyone = {**lines, 'quickstart': searches}
    return {name: everyone[name] for name in CHOOSERS if everyone.get(name)}


def choices(truth: Truth, rows: Mapping[str, Sequence[Mapping[str, Any]]], half: str) -> dict[str, Any]:
    """The regrets of the contestants.

    Args:
        truth: The truth table.
        rows: Lines with 'seed' and 'scores' by contestant, see `report.of_recipe`.
        half: Whose paths are the candidates.

    Returns:
        By contestant 'seeds', and by key of `RULES` a list, one value per seed: the mean over the draws, which are
        the same for all.
    """
    paths = truth.half(half)
    true = np.stack([true_values(paths, 'accuracy', seed) for seed in range(seeds_of(paths))])
    rng, table = np.random.default_rng(0), dict[str, Any]()
    draws = [rng.choice(len(paths), len(paths) // 2, replace=False) for _ in range(DRAWS)]
    for name, lines in rows.items():
        accuracy, minus_loss = (scores_of(truth, {name: lines}, half, q)[name] for q in ('accuracy', 'minus_loss'))
        table[name] = {'seeds': [row['seed'] for row in lines]} | {rule: [] for rule in RULES}
        for a, b in zip(accuracy, minus_loss, strict=True):
            found = [regrets(true[:, draw], a[draw], -b[draw]) for draw in draws]
            for rule in RULES:
                table[name][rule].append(float(np.mean([one[rule] for one in found])))
    return table


def choice_markdown(table: Mapping[str, Any]) -> str:
    """The table of `choices`: the mean of the seeds, then each of them in their order."""
    lines = [f'| supernet | seeds | {" | ".join(RULES.values())} |', f'|{"---|" * (2 + len(RULES))}']
    for name, entry in table.items():
        cells = [f'**{np.mean(entry[rule]):.2f}** ({", ".join(f"{x:.2f}" for x in entry[rule])})' for rule in RULES]
        lines.append(f'| {CHOOSERS[name]} | {len(entry["seeds"])} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'
