"""The rules of pyproject.toml, kept by the whole tree."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.anyengine

# Graphs, Ops and what is compiled of them: they deal in the engine's expressions, pointers and JAX's arrays, whose types mypy doesn't know.
UNTYPED = {'engine', 'compiled', 'ops', 'update', 'sampling', 'dropout', 'layernorm', 'stack', 'native', 'ops_jax', 'gru_jax',
           'sampling_jax', 'stack_jax', 'stack_cuda', 'sharding'}


@pytest.mark.skipif(importlib.util.find_spec('ruff') is None, reason='ruff is not installed (requirements-test.txt)')
def test_the_tree_keeps_the_rules_of_pyproject():
    told = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', '.'], cwd=ROOT,
                          capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def untyped(body):
    """Names of the public functions and methods of a module's or a class's body whose signatures leave a type out."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            yield from (f'{node.name}.{name}' for name in untyped(node.body))
        elif isinstance(node, ast.FunctionDef) and (node.name == '__init__' or not node.name.startswith('_')):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            if not node.returns or any(each and not each.annotation and each.arg not in ('self', 'cls') for each in given):
                yield node.name


@pytest.mark.parametrize('path', [path for path in sorted(Path(ROOT).glob('*.py')) if path.stem not in UNTYPED], ids=lambda path: path.stem)
def test_every_public_signature_has_types(path):
    assert not list(untyped(ast.parse(path.read_text(encoding='utf-8')).body))


@pytest.mark.skipif(importlib.util.find_spec('mypy') is None, reason='mypy is not installed (requirements-test.txt)')
def test_types_agree():
    told = subprocess.run([sys.executable, '-m', 'mypy'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.skipif(not shutil.which('git') or not os.path.exists(os.path.join(ROOT, '.git')), reason='no checkout of git here')
def test_every_checkout_has_line_ends_that_make_and_sh_read():
    """With core.autocrlf git would write CRLF, and `.ci/run` end at once. What is binary stays as it is."""
    told = subprocess.run(['git', 'ls-files', '--eol', 'Makefile', '.ci/run', 'tests/fixtures'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout
    for line in told.stdout.splitlines():
        assert 'attr/text=auto eol=lf' in line and not line.startswith(('i/crlf', 'i/mixed')), line
