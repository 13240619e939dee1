"""The regret of choosing rules, by hand; further seeds of the truth: resumed, copied, merged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from serial_pool import use_serial_pool

from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.ranking import further_seeds
from pinas_zoo.ranking.choice import RULES, choice_markdown, choices, chosen_from, read_searches, regrets
from pinas_zoo.ranking.further_seeds import extend_seeds, with_further_seeds
from pinas_zoo.ranking.report import true_values
from pinas_zoo.ranking.standalone import Recipe, train_path
from pinas_zoo.ranking.task import PairTask
from pinas_zoo.ranking.transfer import TransferStudy
from pinas_zoo.ranking.truth import Study, Truth, TruthRow
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.space import SearchSpace

SPACE = SearchSpace('small', (1, 1), (16, 16), (1, 2), (8, 8, 8), 1, False, stem_kernel=1, expansion=1, input_size=4)
STUDY = Study(
    SPACE, PairTask(item=8, patch=2, train=64, heldout=8, test=32), Recipe(steps=3, batch=8, warmup=1, calibration=2)
)
ARCHS = [SPACE.parse(f'{a}-{b}') for a, b in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2))]


def truth() -> Truth:
    rows = tuple(
        TruthRow(i, arch, (50.0 + i, 51.0 - i), (2.0, 2.1), 10 + i, 5, (1.0, 1.0)) for i, arch in enumerate(ARCHS)
    )
    return Truth({'space': SPACE.to_dict(), 'task': {}, 'data': 'x'}, STUDY, rows)


def test_regrets_by_hand() -> None:
    """Means 60, 61, 59, 64: path 3 is the best. A shortlist of two by loss has 1 and 2; each seed selects one."""
    seeds = [[60, 63, 58, 65], [60, 59, 60, 63]]
    found = regrets(seeds, accuracy=[9, 1, 2, 3], loss=[3.0, 1.0, 2.0, 4.0], shortlist=2)
    # seed 0 selects path 1, which seed 1 gives 59 (63 for the best); seed 1 selects 2, which seed 0 gives 58 (of 65)
    assert found == {'accuracy': 64 - 60, 'loss': 64 - 61, 'listed': 64 - 60, 'shortlist': (63 - 59 + 65 - 58) / 2}
    assert regrets(seeds, [0, 0, 0, 1], [4, 3, 2, 1], 1) == dict.fromkeys(RULES, 0)


def test_the_table_of_choices(tmp_path: Path) -> None:
    """A search's log counts as a supernet; contestants outside the table do not."""
    with SearchLog(tmp_path / 'quickstart_1.jsonl', {'seed': 4}) as log:
        for i, arch in enumerate(ARCHS):
            log.append(SearchRecord(i, SPACE.format(arch), -float(i), loss=float(i), top1=10.0 * i))
    scores = {SPACE.format(arch): [1.0, 2.0] for arch in ARCHS}
    rows = {'pinas': [{'seed': s, 'scores': scores} for s in (0, 1)], 'bnnas': [{'seed': 0, 'scores': scores}]}
    table = choices(truth(), chosen_from(rows, read_searches(tmp_path)), 'both')
    assert list(table) == ['pinas', 'quickstart'] and table['quickstart']['seeds'] == [4]
    # All paths have the same mean, and a seed that selects the best of three is judged by the opposite one.
    assert set(table['pinas']) == {'seeds', *RULES} and table['pinas']['loss'] == [0, 0]
    assert table['quickstart']['accuracy'] == [0] and table['quickstart']['shortlist'][0] > 1
    assert "| Pi-NAS, the quickstart's supernet | 1 | " in choice_markdown(table)


def test_further_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_serial_pool(monkeypatch, further_seeds)
    design = TransferStudy(STUDY)
    monkeypatch.setattr(further_seeds, 'DESIGNS', {'one': design})
    file, transfer = tmp_path / 'seeds.jsonl', tmp_path / 'transfer.jsonl'
    line: dict[str, Any] = {'design': design.id, 'path': 3, 'arch': '1-1', 'seed': 3, 'source_top1': 7.5}
    line |= {'source_loss': 3.25, 'seconds': [1, 2], 'code': 'c', 'torch': 't'}
    append_lines(transfer, [line, line | {'design': 'another', 'seed': 2}])
    extend_seeds(file, truth(), 1)
    first = read_lines(file)
    assert [(one['path'], one['seed']) for one in first] == [(1, 2), (1, 3)]
    result = train_path(SPACE, STUDY.task, STUDY.recipe, ARCHS[1], 2)
    assert (first[0]['top1'], first[0]['loss']) == (round(result.top1, 4), round(result.loss, 6))
    assert with_further_seeds(truth(), file) == truth()  # two paths are missing
    extend_seeds(file, truth(), 3, transfer=transfer)
    lines = {(one['path'], one['seed']): one for one in read_lines(file)}
    assert read_lines(file)[:2] == first and len(lines) == 6
    copied = {
        'path': 3,
        'arch': '1-1',
        'seed': 3,
        'top1': 7.5,
        'loss': 3.25,
        'code': 'c',
        'torch': 't',
        'from': 'transfer',
    }
    assert [one for one in lines.values() if 'from' in one] == [copied]
    merged = with_further_seeds(truth(), file)
    rows = merged.half('reporting')
    assert rows[1].top1 == (53.0, 48.0, lines[3, 2]['top1'], 7.5) and merged.half('tuning') == truth().half('tuning')
    assert true_values(rows, 'accuracy')[1] == pytest.approx(sum(rows[1].top1) / 4)
    assert true_values(merged.rows, 'accuracy')[3] == pytest.approx(50.5)  # both halves: the seeds that all have
    file.write_text(json.dumps(first[0] | {'arch': '0-0'}) + '\n')
    with pytest.raises(ValueError, match='disagree on path 1: 0-0'):
        with_further_seeds(truth(), file)
    with pytest.raises(ValueError, match=r'paths in 1\.\.3'):
        extend_seeds(file, dataclasses.replace(truth()), 4)
