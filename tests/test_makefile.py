"""What the Makefile says and does where an environment can't be made, or has become useless; Python is a stand-in."""

import os
import shutil
import subprocess

import pytest

from conftest import ROOT

pytestmark = [pytest.mark.anyengine, pytest.mark.skipif(not shutil.which('make'), reason='needs make')]


@pytest.fixture
def make(tmp_path):
    """make(python, pip): the outcome of making .venv/ready in a directory with a space in its name, where `python -m venv` runs the shell
    command `python`, and its environment's pip the command `pip`."""
    place = tmp_path / 'a place'
    place.mkdir()
    for name in 'Makefile', 'requirements.txt':
        shutil.copy(os.path.join(ROOT, name), place)

    def run(python, pip, *options):
        for name, command in ('python', python), ('inner', pip):
            (place / name).write_text(f'#!/bin/sh\ncase "$1" in -c) exit 0;; esac\n{command}\n')
            (place / name).chmod(0o755)
        return subprocess.run(['make', *options, '.venv/ready', 'PYTHON=./python'], cwd=place, capture_output=True, text=True, timeout=60)
    run.place = place
    return run


MADE = 'mkdir -p .venv/bin && ln -sf ../../inner .venv/bin/python'


def test_an_environment_is_made_once(make):
    assert make(MADE, 'exit 0').returncode == 0 and (make.place / '.venv' / 'ready').exists()
    assert 'Installing' not in make('exit 1', 'exit 1').stdout


def test_what_cannot_be_installed_is_said_in_a_sentence_and_tried_again_next_time(make):
    for _ in range(2):
        done = make(MADE, 'exit 1')
        assert done.returncode and 'this needs a network' in done.stderr and not (make.place / '.venv' / 'ready').exists()
    assert make(MADE, 'exit 0').returncode == 0


def test_an_environment_that_cannot_be_made_is_said_in_a_sentence_and_leaves_nothing(make):
    done = make('mkdir .venv; echo no ensurepip >&2; exit 1', '')
    assert done.returncode and 'no ensurepip' in done.stderr and 'python3-venv' in done.stderr and not (make.place / '.venv').exists()


@pytest.mark.parametrize('state, anew', [('whole', False), ('python is gone', True), ('packages are gone', True), ('being made', False)])
def test_an_environment_that_an_upgrade_of_python_broke_is_made_anew(make, state, anew):
    venv = make.place / '.venv'
    assert make(MADE, 'exit 0').returncode == 0
    (venv / 'mine').touch()
    if state == 'python is gone':
        (venv / 'bin' / 'python').unlink()
        (venv / 'bin' / 'python').symlink_to('/no/such/python')
    if state in ('packages are gone', 'being made'):
        (venv / 'bin' / 'python').unlink()
        (make.place / 'other').write_text('#!/bin/sh\nexit 1\n')
        (make.place / 'other').chmod(0o755)
        (venv / 'bin' / 'python').symlink_to('../../other')
    if state == 'being made':
        (venv / 'ready').unlink()
    make(MADE, 'exit 0')
    assert (venv / 'mine').exists() is not anew and (venv / 'ready').exists()
