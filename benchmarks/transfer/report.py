"""The page of the transfer study: a table and a figure from the file with its figures."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pinas_zoo.files import write_atomic, write_text
from pinas_zoo.report.figures import LINES

__all__ = ['draw', 'is_current', 'table', 'write_page']

#: Arm -> its row, and its name in the figure.
TITLES = {
    'random': ('nano network', 'random weights', 'random\nweights'),
    'supervised': ('nano network', 'with labels', 'with\nlabels'),
    'pinas': ('nano network', "Pi-NAS supernet's weights, no labels", 'Pi-NAS,\nno labels'),
    'resnet': ('plain ResNet', 'with labels', 'plain ResNet,\nwith labels'),
}
COLUMNS = (('detection', 'box AP'), ('detection', 'mask AP'), ('segmentation', 'mIoU'))
BLOCK = re.compile(r'(<!-- table: benchmarks/transfer/results\.json -->\n).*?(<!-- end of table -->)', re.DOTALL)


def values(results: dict[str, Any], arm: str, task: str, metric: str) -> list[float]:
    """The figures of an arm, one per seed."""
    runs = [run for run in results['runs'] if (run['arm'], run['task']) == (arm, task)]
    return [run['metrics'][metric] for run in sorted(runs, key=lambda run: run['seed'])]


def _cell(results: dict[str, Any], arm: str, task: str, metric: str) -> str:
    found, base = (values(results, name, task, metric) for name in (arm, 'random'))
    if not found:
        return '-'
    spread = f' ± {stdev(found):.2f}' if len(found) > 1 else ''
    gain = f' ({fmean(found) - fmean(base):+.2f})' if base and arm != 'random' else ''
    return f'{fmean(found):.2f}{spread}{gain}'


def table(results: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, in brackets the difference to random weights; then the budget."""
    recipe = results['recipe']
    header = ['backbone', 'pre-training', 'parameters', 'MACs at 128 px', *(metric for _, metric in COLUMNS)]
    rows = [header, ['---'] * len(header)]
    for arm, (backbone, start, _) in TITLES.items():
        cost = recipe['resnet' if arm == 'resnet' else 'nano']
        figures = [_cell(results, arm, task, metric) for task, metric in COLUMNS]
        costs = [f'{cost["params"] / 1e6:.3f} M', f'{cost["macs"] / 1e6:.1f} M']
        rows.append([backbone, start, *costs, *figures])
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows) + '\n' + _budget(results) + '\n'


def _budget(results: dict[str, Any]) -> str:
    """Sentences on seeds, budget and machine."""
    recipe, runs = results['recipe'], results['runs']
    seeds = sorted({run['seed'] for run in runs})
    lines = [
        f'Points, mean ± standard deviation over seeds {", ".join(map(str, seeds))}. Architecture `{recipe["arch"]}`.'
    ]
    for task in ('detection', 'segmentation'):
        times = [run['seconds'] for run in runs if run['task'] == task and not run['continued']]
        mean, budget = f', {fmean(times):.0f} s per run' if times else '', recipe[task]
        lines.append(f'{task.capitalize()}: {budget["iterations"]} iterations of {budget["batch_size"]} images{mean}.')
    scenes = recipe['scenes']
    lines.append(f'{scenes["train"]} training and {scenes["val"]} held-out scenes of {scenes["size"]} px.')
    tops = {arm: f'{TITLES[arm][0]} {facts["top1"]:.2f} %' for arm, facts in results['pretraining'].items()}
    lines.append(f'With labels: {recipe["labels"]["recipe"]}; {recipe["labels"]["data"]}.')
    lines.append(f'Top-1 after it: {", ".join(tops.values())}.')
    versions = sorted({f'torch {run["versions"]["torch"]}, {run["versions"]["threads"]} threads' for run in runs})
    lines.append(f'CPU, {" and ".join(versions)}.')
    if recipe['quick']:
        lines.append('**A quick run of four iterations: the figures say nothing.**')
    return '\n'.join(lines) + '\n'


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws one panel per metric: a dot per seed, a bar at the mean.

    Args:
        results: The file's content.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure as Canvas  # no pyplot: no global figures, no display

    canvas = Canvas(figsize=(9.0, 3.2), layout='constrained')
    for axes, (task, metric) in zip(canvas.subplots(1, len(COLUMNS)), COLUMNS, strict=True):
        for place, (arm, color) in enumerate(zip(TITLES, LINES, strict=False)):
            found = values(results, arm, task, metric)
            if found:
                axes.hlines(fmean(found), place - 0.3, place + 0.3, color=color, linewidth=2.5)
                axes.plot([place] * len(found), found, 'o', color=color, markersize=5, alpha=0.6)
        axes.set_xticks(range(len(TITLES)), [short for *_, short in TITLES.values()], fontsize=8)
        axes.set_title(f'{task}: {metric}', fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(axis='y', alpha=0.2)
        axes.spines[['top', 'right']].set_visible(False)
    write_atomic(path, lambda temporary: canvas.savefig(temporary, format='png', dpi=160))


def _page_text(results_file: Path, page: Path) -> tuple[str, str]:
    """The page as it is and as it should be.

    Raises:
        ValueError: The page has no markers for the table.
    """
    old = page.read_text()
    if not BLOCK.search(old):
        raise ValueError(
            f'{page} needs the lines <!-- table: benchmarks/transfer/results.json --> and <!-- end of table -->'
        )
    block = f'{table(json.loads(results_file.read_text()))}\n![A dot per seed, a bar at the mean]({page.stem}.png)\n'
    return old, BLOCK.sub(lambda match: match[1] + block + match[2], old)


def is_current(results_file: Path, page: Path) -> bool:
    """Whether the page has the table of the file."""
    old, new = _page_text(results_file, page)
    return old == new


def write_page(results_file: Path, page: Path) -> str:
    """Writes the table into the page and the figure beside it; returns the table."""
    _, new = _page_text(results_file, page)
    results = json.loads(results_file.read_text())
    draw(results, page.with_suffix('.png'))
    write_text(page, new)
    return table(results)
