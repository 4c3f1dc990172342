"""The rules of pyproject.toml, kept by the whole tree."""

import importlib.util
import os
import shutil
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


@pytest.mark.skipif(not shutil.which('git') or not os.path.exists(os.path.join(ROOT, '.git')), reason='no checkout of git here')
def test_every_checkout_has_line_ends_that_make_and_sh_read():
    """With core.autocrlf git would write CRLF, and `.ci/run` end at once. What is binary stays as it is."""
    told = subprocess.run(['git', 'ls-files', '--eol', 'Makefile', '.ci/run', 'tests/fixtures'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout
    for line in told.stdout.splitlines():
        assert 'attr/text=auto eol=lf' in line and not line.startswith(('i/crlf', 'i/mixed')), line
