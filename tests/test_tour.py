"""examples/tour.ipynb runs from its first cell to its last, and what it shows is of the kind that is stored in it."""

import importlib.util
import json
from pathlib import Path

import pytest

import engine
from conftest import ROOT

pytestmark = pytest.mark.anyengine

TOUR = Path(ROOT, 'examples', 'tour.ipynb')
STEPS = 'STEPS = 400 '


@pytest.fixture(scope='module')
def stored():
    """The code cells as they are in the file."""
    return [cell for cell in json.loads(TOUR.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']


def kinds(cell):
    """What a cell shows: the names of its streams, and its other outputs, each by the types that it comes in."""
    outputs = cell['outputs']
    return ({output['name'] for output in outputs if output['output_type'] == 'stream'},
            [(output['output_type'], *sorted(output.get('data', {}))) for output in outputs if output['output_type'] != 'stream'])


def test_the_stored_tour_was_run_in_order_without_errors_and_is_small(stored):
    assert [cell['execution_count'] for cell in stored] == list(range(1, len(stored) + 1))
    for cell in stored:
        assert kinds(cell)[0] <= {'stdout'}, ''.join(cell['source'])
        for output in cell['outputs']:
            assert output['output_type'] != 'error'
            assert len(output.get('data', {}).get('image/png', '')) < 60_000
    assert TOUR.stat().st_size < 300_000
    shown = [kind for cell in stored for kind in kinds(cell)[1]]
    assert sum('image/png' in kind for kind in shown) == 1 and sum('text/html' in kind for kind in shown) == 4


@pytest.mark.skipif(engine.name != 'pytensor', reason='the tour is of PyTensor')
@pytest.mark.skipif(not all(map(importlib.util.find_spec, ['nbclient', 'ipykernel', 'matplotlib'])),
                    reason='nbclient, ipykernel or matplotlib is not installed (requirements-test.txt)')
def test_every_cell_of_the_tour_runs_and_shows_what_is_stored(stored, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient
    monkeypatch.setenv('PYTHONPATH', ROOT)              # the tour looks above its own directory
    for name in 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'IPYTHONDIR', 'TMPDIR':
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(TOUR, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert sum(STEPS in cell.source for cell in cells) == 1
    for cell in cells:
        cell.source, cell.outputs = cell.source.replace(STEPS, 'STEPS = 10 '), []
    NotebookClient(notebook, timeout=120, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}).execute()
    for cell, before in zip(cells, stored, strict=True):
        assert kinds(cell) == kinds(before), cell.source
