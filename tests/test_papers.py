"""What CONTRIBUTING.md and the other papers say of the code is so."""

import ast
import graphlib
import importlib.util
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import engine
import rn_rnn_char
from conftest import ROOT, perform
from engine import T, theano

ROOT = Path(ROOT)
PAPERS = [path for path in (*ROOT.glob('*.md'), *ROOT.glob('*/*.md')) if not path.parts[len(ROOT.parts)].startswith('.')]


def examples(start):
    """The indented examples of CONTRIBUTING.md from a line that begins with `start`, as code."""
    lines = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip() == start)
    indent = re.match(' *', lines[first]).group()
    last = next(i for i in range(first, len(lines)) if lines[i] and not lines[i].startswith(indent))
    return textwrap.dedent('\n'.join(lines[first:last]))


@pytest.fixture
def example():
    """The names of the example of an Op."""
    names = {}
    exec(examples('import numpy as np'), names)
    return names


def test_the_example_of_an_op_computes_what_it_says_and_its_gradient(example):
    S = np.array([[[-3, -1, 0, 0.25, 1e30]]], 'float32')
    np.testing.assert_allclose(perform(example['Softsign'](), S)[0], [[[-0.75, -0.5, 0, 0.2, 1]]], rtol=1e-6)
    point = np.array([[[-3, -0.5, 0.3, 2]]])
    theano.gradient.verify_grad(example['Softsign'](), [point], rng=np.random.RandomState(0), n_tests=1, abs_tol=1e-6, rel_tol=1e-6,
                                mode=theano.compile.mode.Mode(linker='py', optimizer=None))


@pytest.mark.skipif(engine.name != 'pytensor' or importlib.util.find_spec('jax') is None, reason='needs PyTensor and JAX')
def test_the_example_of_an_op_runs_on_jax(example):
    exec(examples('import jax.numpy as jnp'), example)
    S = T.tensor3(dtype='float32')
    f = theano.function([S], example['Softsign']()(S), mode='JAX')
    np.testing.assert_allclose(f(np.array([[[-3, 0, 1]]], 'float32')), [[[-0.75, 0, 0.5]]], rtol=1e-6)


@pytest.mark.anyengine
def test_every_module_has_its_room_in_contributing_and_every_room_is_there():
    table = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').split('## The rooms')[1].split('\nPublic is')[0]
    rooms = re.findall(r'`(\w+\.py)`', ''.join(line.split('|')[1] for line in table.splitlines() if line.startswith('|')))
    assert sorted(rooms) == sorted(path.name for path in ROOT.glob('*.py'))


def imports(path):
    """Names of the modules that one imports when it is imported: not in a function, not for its types alone."""
    nodes = ast.parse(path.read_text(encoding='utf-8')).body
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, (ast.If, ast.Try, ast.With)) and 'TYPE_CHECKING' not in ast.unparse(node)[:20]:
            nodes += node.body


@pytest.mark.anyengine
def test_imports_go_one_way_and_what_reads_files_knows_no_theano():
    known = {path.stem: set(imports(path)) for path in ROOT.glob('*.py')}
    assert 'engine' in known['ops'] and 'model' not in known['generate']            # which names it in its types alone
    order = list(graphlib.TopologicalSorter(known).static_order())         # CycleError where two need each other
    assert order.index('engine') < order.index('ops') < order.index('layers') < order.index('model') < order.index('rn_rnn_char')
    needed = {'dataset', 'encode', 'checkpoint', 'history', 'reading', 'inside'}
    while needed != (needed := needed.union(*(known.get(name, ()) for name in needed))):
        pass
    assert 'numpy' in needed and not needed & {'engine', 'pytensor', 'theano', 'jax'}


@pytest.mark.anyengine
def test_public_names_are_those_that_the_papers_tell_of():
    page = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert re.findall(r'`(\w+)`', page.split('in `__all__`:')[1].split(';')[0]) == rn_rnn_char.__all__
    imports = [names for paper in PAPERS for names in re.findall(r'from rn_rnn_char import (.+)', paper.read_text(encoding='utf-8'))]
    assert imports and {name.strip() for names in imports for name in names.split(',')} <= set(rn_rnn_char.__all__)


@pytest.mark.anyengine
def test_every_benchmark_has_its_section():
    text = (ROOT / 'benchmarks' / 'README.md').read_text(encoding='utf-8')
    assert sorted(re.findall(r'^## (\w+\.py)', text, re.MULTILINE)) == sorted(path.name for path in (ROOT / 'benchmarks').glob('*.py'))


@pytest.mark.anyengine
def test_figures_in_the_readmes_tables_stand_in_the_page_of_benchmarks():
    text, page = ((ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'benchmarks/README.md'))
    tables = [line for line in text.split('## Faster than')[1].split('\n## ')[0].splitlines() if line.startswith('|')]
    assert tables and not set(tables) - set(page.splitlines())


@pytest.mark.anyengine
@pytest.mark.parametrize('paper', PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(paper):
    for target in re.findall(r'\]\(([^)]+)\)', paper.read_text(encoding='utf-8')):
        assert target.startswith('https://') or (paper.parent / target.split('#')[0]).exists(), target


@pytest.mark.anyengine
@pytest.mark.parametrize('paper', PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_papers_name_are_there(paper):
    """`name.py` at the top level, in tests or benchmarks, or beside the paper; the example's own excepted."""
    for name in set(re.findall(r'[\w./]*\w\.(?:py|cpp|hpp|cu|md)\b', paper.read_text(encoding='utf-8'))):
        if 'softsign' not in name and 'lstm' not in name:
            assert any((base / name).exists() for base in (ROOT, paper.parent, ROOT / 'kernels')), name
