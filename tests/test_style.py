"""The rules of pyproject.toml, kept by the whole tree."""

import importlib.util
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.anyengine


@pytest.mark.skipif(importlib.util.find_spec('ruff') is None, reason='ruff is not installed (requirements-test.txt)')
def test_the_tree_keeps_the_rules_of_pyproject():
    told = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', '.'], cwd=ROOT,
                          capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
