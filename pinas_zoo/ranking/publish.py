"""Writes the results of `report`: report.json, the pictures, and the block in docs/ranking.md."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinas_zoo.files import write_text
from pinas_zoo.ranking.choice import choice_markdown, choices, chosen_from
from pinas_zoo.ranking.contestants import GROUP_WORDS, GROUPS
from pinas_zoo.ranking.curves import curves, trials
from pinas_zoo.ranking.figures import SHIFT_PANELS, TAU_PANELS, curves_figure, forest_figure, scatter_figure
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.registered import registered, registered_markdown
from pinas_zoo.ranking.report import VIEWS, compute, of_recipe
from pinas_zoo.ranking.tables import markdown, trials_markdown
from pinas_zoo.ranking.transfer import DESIGNS, read_transfer
from pinas_zoo.ranking.truth import Truth

__all__ = ['fill_page', 'write_block', 'write_report', 'write_transfer']

TAU_CAPTION = (
    "Kendall's tau over training, on paths of the tuning half (before the end the linear head has had fewer steps)"
)
#: Views of the transfer truth's tables.
TRANSFER_VIEWS = ('loss_to_accuracy',)
#: The text between the marker lines of a block in a page is generated here.
BLOCK = '(<!-- {0} written by tools/rank.py report -->\n).*?(<!-- end of {0} -->)'


def write_report(
    folder: str | Path,
    truth: Truth,
    rows: Sequence[Mapping[str, Any]],
    recipe: SupernetRecipe,
    half: str = 'reporting',
    page: str | Path | None = None,
    searches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Computes the report of one half and writes it.

    Args:
        folder: Folder for report.json and the pictures; for the tuning half, their names begin with 'tuning_'.
        truth: The truth table.
        rows: Lines of scores.jsonl.
        recipe: Whose lines count.
        half: 'reporting' or 'tuning'.
        page: Markdown page whose block is rewritten; None changes no page.
        searches: Result of `choice.read_searches`.

    Returns:
        The report.

    Raises:
        ValueError: The page has no block; also see `report.compute`.
    """
    folder, prefix = Path(folder), 'tuning_' if half == 'tuning' else ''
    report = compute(truth, rows, recipe, half)
    lines, moved = of_recipe(rows, truth, recipe.id), curves(truth, rows, recipe)
    report['curves'] = moved
    report['choice'] = choices(truth, chosen_from(lines, searches), half)
    report['registered'] = registered(truth, lines) if half == 'reporting' else {}
    figures = {'forest': forest_figure(report, next(iter(VIEWS)))} if lines else {}
    for group, names in GROUPS.items():
        # Pi-NAS and SPOS are in every group: a picture of those two alone is drawn once.
        if not (set(names) - set(GROUPS['']) if group else set(names)) & set(lines):
            continue
        for view in VIEWS:
            figures[f'scatter_{view}{group}'] = scatter_figure(report, truth, lines, view, group)
        for name, panels, caption in (
            ('tau', TAU_PANELS, TAU_CAPTION),
            ('shifts', SHIFT_PANELS, 'Both shifts over training'),
        ):
            caption = f'{GROUP_WORDS[group]}. {caption}; mean and range of the seeds.'
            if any(set(names) & set(moved.get(panel, ())) for panel in panels):
                figures[name + group] = curves_figure(moved, panels, report['labels'], caption, group)
    for name, figure in figures.items():
        figure.save(folder / f'{prefix}{name}.png')
    write_text(folder / f'{prefix}report.json', json.dumps(report, indent=1, allow_nan=False) + '\n')
    if page is not None:
        pictures = {figure.caption: folder / f'{prefix}{name}.png' for name, figure in figures.items()}
        links = ''.join(
            f'\n![{caption}]({os.path.relpath(path, Path(page).parent)})\n\n{caption}\n'
            for caption, path in pictures.items()
        )
        blocks = {'result': markdown(report) + links, 'trials': trials_markdown(trials(truth, rows))}
        blocks['choice'] = choice_markdown(report['choice'])
        blocks['registered'] = registered_markdown(report['registered'])
        fill_page(page, blocks)
    return report


def write_block(
    page: str | Path, name: str, file: str | Path, report: dict[str, Any], views: Sequence[str], words: str = ''
) -> None:
    """Writes another report beside the main one: its JSON, and its tables of some views into a block of the page.

    Args:
        page: The page.
        name: Name of the block.
        file: File of the JSON.
        report: Result of `report.compute`.
        views: Keys of `VIEWS`.
        words: Text before the tables.

    Raises:
        ValueError: The page has no such block.
    """
    write_text(file, json.dumps(report, indent=1, allow_nan=False) + '\n')
    fill_page(page, {name: words + markdown(report, views)})


def write_transfer(
    page: str | Path, file: str | Path, truth: Truth, rows: Sequence[Mapping[str, Any]], recipe: SupernetRecipe
) -> None:
    """Writes the reports against the transfer truth, one per design that has paths, beside its table and into the page.

    Args:
        page: The page; its block is 'transfer'.
        file: The transfer table.
        truth: The source truth.
        rows: Lines of scores.jsonl, and of the training-free scores.
        recipe: Whose lines count.
    """
    texts, reports = [], {}
    for name, design in DESIGNS.items():
        target = read_transfer(file, design, truth)
        known = {row.path for row in target.rows}
        if len(known) < 8:
            continue
        source = [row for row in truth.half('reporting') if row.path in known]
        reports[name] = compute(target, rows, recipe, 'reporting', source)
        texts.append(f'Design *{name}*; true accuracy is the mean IoU.\n\n' + markdown(reports[name], TRANSFER_VIEWS))
    write_text(Path(file).with_name('transfer_report.json'), json.dumps(reports, indent=1, allow_nan=False) + '\n')
    fill_page(page, {'transfer': '\n'.join(texts)})


def _between(block: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f'{match[1]}\n{block}\n{match[2]}'


def fill_page(page: str | Path, blocks: Mapping[str, str]) -> None:
    """Writes texts between the markers of a page, by the name of the block.

    Raises:
        ValueError: A marker is missing.
    """
    text = Path(page).read_text()
    for name, block in blocks.items():
        pattern = BLOCK.format(name)
        text, found = re.subn(pattern, _between(block), text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f'{page} lacks the marker lines of the block {name}, pattern: {pattern}')
    write_text(page, text)
