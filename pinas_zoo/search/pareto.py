"""The evaluations of a search that no other one beats in both score and cost. No torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pinas_zoo.search.log import SearchRecord, finished, objective_of

__all__ = ['COSTS', 'front_of', 'pareto_front', 'table_of']

#: Costs that a log may have: the unit in a table, and its size in the log's unit.
COSTS = {'macs': ('M MACs', 1e6), 'params': ('M parameters', 1e6), 'latency': ('ms', 1e-3)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Finds the points that no other point beats in both cost (lower) and score (higher).

    Args:
        points: Pairs of (cost, score).

    Returns:
        Indices into `points`, by ascending cost; the first of equal points.

    Raises:
        ValueError: A number is not finite.

    Examples:
        >>> pareto_front([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7)])
        [1, 3, 0]
    """
    for cost, score in points:
        if not (math.isfinite(cost) and math.isfinite(score)):
            raise ValueError(f'a Pareto front needs finite points, got {(cost, score)}')
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def front_of(header: Mapping[str, Any], records: Sequence[SearchRecord], cost: str) -> list[dict[str, Any]]:
    """The Pareto front of a search's log, by ascending cost.

    A path that a race dropped early is not on it, since its score is an estimate from fewer images.

    Args:
        header: Header of the log.
        records: Its records.
        cost: A key of `COSTS`.

    Returns:
        Per architecture 'arch', 'score', 'loss', 'top1', 'images' and the costs that are known.

    Raises:
        ValueError: The cost is unknown, or the log does not have it.
    """
    if cost not in COSTS:
        raise ValueError(f'cost {cost!r} is unknown, allowed: {", ".join(COSTS)}')
    known = [record for record in finished(records) if getattr(record, cost) is not None]
    if not known:
        hint = '; search with limits.latency_table' if cost == 'latency' else ''
        raise ValueError(f'none of the {len(records)} evaluations of the log states its {cost}{hint}')
    front = [known[index] for index in pareto_front([(getattr(r, cost), r.score) for r in known])]
    names = ('arch', 'score', 'loss', 'top1', 'images', *COSTS)
    rows = [{name: getattr(record, name) for name in names} for record in front]
    if objective_of(header) == 'top1':  # a log that ranked by accuracy
        rows = [row | {'top1': row['score']} for row in rows]
    return rows


def table_of(front: Sequence[Mapping[str, Any]], cost: str) -> str:
    """The front as lines of text: architecture, cost, score, loss and top-1."""
    unit, scale = COSTS[cost]
    width = max(len('arch'), *(len(row['arch']) for row in front))
    lines = [f'{"arch":{width}}  {unit:>12}  {"score":>9}  {"loss":>7}  {"top-1 %":>7}']
    for row in front:
        loss = '' if row['loss'] is None else f'{row["loss"]:.4f}'
        top1 = '' if row['top1'] is None else f'{row["top1"]:.2f}'
        lines.append(f'{row["arch"]:{width}}  {row[cost] / scale:>12.4g}  {row["score"]:>9.4f}  {loss:>7}  {top1:>7}')
    return '\n'.join(lines)
