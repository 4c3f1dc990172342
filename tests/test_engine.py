"""Which Theano is chosen and how it is set up: each test imports engine.py in a process of its own."""

import os
import pwd
import subprocess
import sys
import tempfile

import pytest

import engine
from conftest import ROOT

OTHER = {'pytensor': 'theano', 'theano': 'pytensor'}[engine.name]
FLAGS, RC = f'{engine.name.upper()}_FLAGS', f'{engine.name.upper()}RC'
LDFLAGS = 'blas__ldflags' if engine.name == 'pytensor' else 'blas.ldflags'
SETTINGS = "print(theano.config.floatX, repr(getattr(theano.config, 'blas__ldflags', None) if engine.name == 'pytensor' " \
           "else theano.config.blas.ldflags), theano.config.base_compiledir, sep='\\n')"
COMPILE = '''
import numpy as np
x = T.vector(dtype='float32')
f = engine.compilefunction([x], [T.sum(x * x)])
assert f(np.array([1, 2, 3], 'float32'))[0] == 14
'''


def run(code, **environment):
    """A finished process that imports engine and then runs the code; environment: what differs from ours (None: unset)."""
    env = {key: value for key, value in os.environ.items() if key not in ('RN_GRU_ENGINE', FLAGS, RC)}
    env.update(PYTHONPATH=ROOT)
    for key, value in environment.items():
        env.pop(key, None)
        if value is not None:
            env[key] = str(value)
    return subprocess.run([sys.executable, '-c', f'import engine\nfrom engine import theano, T\n{code}'], env=env, cwd='/',
                          capture_output=True, text=True, timeout=120)


def settings(**environment):
    """[floatX, repr of blas.ldflags, base_compiledir] in such a process."""
    process = run(SETTINGS, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.fixture
def stub(tmp_path):
    """A directory that holds an empty package by the other engine's name: to choose it shows in an error that names it."""
    (tmp_path / OTHER).mkdir()
    (tmp_path / OTHER / '__init__.py').write_text(f"raise RuntimeError('{OTHER} was chosen')")
    return f'{ROOT}{os.pathsep}{tmp_path}'


def test_importing_and_compiling_print_nothing():
    process = run('import ops, layers' + COMPILE)
    assert (process.returncode, process.stdout, process.stderr) == (0, '', '')


def test_importing_engine_alone_prints_nothing():
    process = run('')
    assert (process.returncode, process.stdout, process.stderr) == (0, '', '')


@pytest.mark.parametrize('wanted', [engine.name, None])
def test_the_installed_engine_is_used_by_name_and_by_default_with_float32_and_no_blas(wanted):
    process = run('print(engine.name, theano.__name__, T.__name__)\n' + SETTINGS, RN_GRU_ENGINE=wanted)
    assert process.stdout.split()[:5] == [engine.name, engine.name, f'{engine.name}.tensor', 'float32', "''"]


def test_rn_gru_engine_forces_the_other(stub):
    process = run('', RN_GRU_ENGINE=OTHER, PYTHONPATH=stub)
    assert process.stderr.endswith(f'RuntimeError: {OTHER} was chosen\n')


def test_rn_gru_engine_forces_ours_where_both_are(stub):
    assert run('print(engine.name)', RN_GRU_ENGINE=engine.name, PYTHONPATH=stub).stdout == f'{engine.name}\n'


def test_pytensor_comes_first_where_both_are(stub):
    process = run('print(engine.name)', PYTHONPATH=stub)
    assert 'pytensor' in (process.stdout or process.stderr.splitlines()[-1])


@pytest.mark.parametrize('wanted', ['jax', 'PyTensor', 'theano '])
def test_an_engine_that_is_none_gives_one_sentence(wanted):
    process = run('', RN_GRU_ENGINE=wanted)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1 and last.startswith('ImportError: ')
    assert repr(wanted) in last and "'pytensor'" in last and "'theano'" in last


def test_an_engine_that_is_not_installed_gives_one_sentence():
    process = run('', RN_GRU_ENGINE=OTHER)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1 and last.startswith('ModuleNotFoundError: ') and OTHER in last.lower()


def test_flags_of_the_user_stand(tmp_path):
    flags = {FLAGS: f'floatX=float64,{LDFLAGS}=-lm,base_compiledir={tmp_path}'}
    assert settings(**flags) == ['float64', "'-lm'", str(tmp_path)]


def test_a_flag_of_the_user_leaves_the_others_to_us():
    assert settings(**{FLAGS: 'floatX=float64'})[:2] == ['float64', "''"]
    assert settings(**{FLAGS: f'{LDFLAGS}=-lm'})[:2] == ['float32', "'-lm'"]


def test_the_rc_file_of_the_user_stands(tmp_path):
    home, compiledir = tmp_path / 'home', tmp_path / 'compiled'
    home.mkdir()
    (home / f'.{engine.name}rc').write_text(f'[global]\nfloatX = float64\nbase_compiledir = {compiledir}\n')
    assert settings(HOME=home) == ['float64', "''", str(compiledir)]
    elsewhere = tmp_path / 'rc'
    elsewhere.write_text(f'[global]\nbase_compiledir = {compiledir}\n[blas]\nldflags = -lm\n')
    assert settings(HOME=home, **{RC: elsewhere}) == ['float32', "'-lm'", str(compiledir)]


def test_the_flags_come_before_the_rc_file(tmp_path):
    rc = tmp_path / 'rc'
    rc.write_text('[global]\nfloatX = float32\n')
    assert settings(**{RC: rc, FLAGS: 'floatX=float64'})[0] == 'float64'


@pytest.mark.parametrize('home', ['a file', 'an executable file', 'nowhere'])
def test_a_home_that_cannot_be_written_still_compiles(tmp_path, home):
    file, temporary = tmp_path / 'file', tmp_path / 'temporary'
    file.write_text('')
    file.chmod(0o755 if home == 'an executable file' else 0o644)
    temporary.mkdir()
    # One of them compiles; for the others it is enough that the engine's compile directory is one that could be made.
    code = COMPILE if home == 'a file' else 'theano.config.compiledir'
    process = run(code, HOME=tmp_path / 'no' / 'such' if home == 'nowhere' else file, TMPDIR=temporary)
    assert (process.returncode, process.stdout, process.stderr) == (0, '', '')
    assert list(temporary.iterdir()) and not (tmp_path / 'no').exists()


def test_a_bare_environment_gets_a_path_and_a_user_without_a_name_a_home(monkeypatch):
    """As of `env -i`, and of a container's `--user 12345`; who has them keeps them."""
    monkeypatch.setenv('HOME', '/some/home')
    monkeypatch.setenv('PATH', '/some/path')
    engine._setenvironment()
    assert (os.environ['HOME'], os.environ['PATH']) == ('/some/home', '/some/path')
    monkeypatch.delenv('HOME')
    monkeypatch.delenv('PATH')
    engine._setenvironment()
    assert 'HOME' not in os.environ and '/usr/bin' in os.environ['PATH'].split(os.pathsep)

    def nobody(uid):
        raise KeyError(uid)
    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    engine._setenvironment()
    assert os.path.expanduser('~') == '/'


def test_where_nothing_can_be_written_one_sentence_says_so_and_a_directory_of_the_user_is_taken(monkeypatch, tmp_path):
    """As in a container whose every file system is read-only."""
    def nowhere():
        raise FileNotFoundError(2, 'No usable temporary directory found')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    monkeypatch.setattr(tempfile, 'gettempdir', nowhere)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv(RC, str(tmp_path / 'norc'))
    monkeypatch.setenv(FLAGS, '')
    with pytest.raises(ImportError, match=f'neither {tmp_path} nor a temporary directory can be written.*set TMPDIR') as error:
        engine._setflags(engine.name)
    assert '\n' not in str(error.value) and error.value.name is None       # so the front door says it without a traceback
    monkeypatch.setenv(FLAGS, 'base_compiledir=/some/volume')
    assert engine._setflags(engine.name) == '' and os.environ[FLAGS].count('base_compiledir') == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere the engines look for clang++ themselves')
@pytest.mark.parametrize('there, taken', [('g++ clang++', ''), ('clang++ c++', 'clang++'), ('c++', 'c++'), ('', '')])
def test_clang_compiles_where_there_is_no_gcc(monkeypatch, tmp_path, there, taken):
    """On a PATH of these compilers only; g++ the engine finds by itself. What the user says, that there be none too, stands."""
    for name in there.split():
        (tmp_path / name).write_text('')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv(RC, str(tmp_path / 'norc'))
    for theirs in ('', 'cxx=', 'cxx=/some/compiler'):
        monkeypatch.setenv(FLAGS, theirs)
        engine._setflags(engine.name)
        given = [item for item in os.environ[FLAGS].split(',') if item.startswith('cxx=')]
        assert given == ([theirs] if theirs else [f'cxx={tmp_path / taken}'] if taken else [])


def test_a_home_that_is_read_only_gets_a_compile_directory_among_the_temporary_files(monkeypatch, tmp_path):
    """Root may write anywhere, so os.access says here what it says to others."""
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv(RC, str(tmp_path / 'norc'))
    monkeypatch.setenv(FLAGS, 'floatX=float64')
    engine._setflags(engine.name)
    flags = dict(item.split('=') for item in os.environ[FLAGS].split(','))
    assert flags['base_compiledir'].startswith(f'{tmp_path}{os.sep}') and flags['floatX'] == 'float64'
