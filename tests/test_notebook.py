"""examples/tour.ipynb: its cells run in order, and it is stored with the outputs of a run."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / 'examples/tour.ipynb'


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']


def percent(text: str, before: str) -> float:
    return float(re.search(rf'{before}: ([\d.]+)%', text)[1])


@pytest.mark.slow
def test_cells_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With scikit-learn's digits, which every machine has."""
    pytest.importorskip('sklearn')
    monkeypatch.setenv('PINAS_FASHION_MNIST', 'digits')
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for number, cell in enumerate(code_cells()):
            exec(compile(''.join(cell['source']), f'{NOTEBOOK.name}, code cell {number}', 'exec'), names)
    text = out.getvalue()
    assert '5.3323 GMACs' in text and 'stride 32: (1, 2048, 2, 2)' in text
    assert percent(text, 'after 10 steps') > percent(text, 'before') + 20
    searcher = names['searcher']
    assert len(searcher.history) == 32 and all(names['cost'].of(arch).macs <= 14e6 for arch, _ in searcher.history)
    assert names['backbone'].arch == names['arch'] and names['difference'] < 1e-4


def test_it_is_stored_with_outputs_of_a_run() -> None:
    for cell in code_cells():
        assert cell['execution_count'] and cell['outputs']
        assert {output['output_type'] for output in cell['outputs']} == {'stream'}
    assert not re.search(r'/(root|home|work|tmp)/', NOTEBOOK.read_text()), 'a path of a machine'
