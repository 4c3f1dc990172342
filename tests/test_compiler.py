"""The kernels' library: for which instruction set it is compiled, when it is compiled again, and what happens where it can't be."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import compiler
import engine
import native
import report
from conftest import ROOT
from kernelcases import CXX, finished, needscompiler, process

# --- The cache, with a stand-in for the kernels that compiles at once -------------------------------------------

STANDIN = '''
#include <stdint.h>
#include "standin.h"
#define API extern "C" __attribute__((visibility("default")))
API int rngru_gru_forward(void*) { return 0; }
API int rngru_gru_backward(void*) { return 0; }
API int rngru_softmax_loss() { return 0; }
API int rngru_update() { return 0; }
API int rngru_dropout() { return 0; }
API int rngru_layer_norm() { return 0; }
API int rngru_layer_norm_gradient() { return 0; }
API int rngru_sample() { return 0; }
API long long rngru_sample_kept() { return 0; }
API const char* rngru_isa() { return NAME; }
API int rngru_accelerates(int) { return 0; }
API void rngru_profile(int) {}
API int rngru_set_threads(int n) { return n < 1 ? 1 : n; }
API int rngru_get_threads() { return 1; }
'''


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and sources and a compiler that can be changed; the compiler writes down each call."""
    sources, base, log, command = (tmp_path / name for name in ('sources', 'base', 'log', 'compiler'))
    sources.mkdir()
    (sources / 'standin.cpp').write_text(STANDIN)
    (sources / 'other.cpp').write_text('int nothing;\n')
    (sources / 'standin.h').write_text('#define NAME "one"\n')
    (sources / 'notes.txt').write_text('no source\n')

    def setcompiler(body=f'exec {CXX} "$@"'):
        command.write_text(f'#!/bin/sh\ncase "$*" in *--version*) ;; *) echo "$*" >> {log};; esac\n{body}\n')
        command.chmod(0o755)
    setcompiler()
    config = SimpleNamespace(cxx=str(command), base_compiledir=str(base))
    monkeypatch.setattr(compiler, 'SOURCES', sources)
    monkeypatch.setattr(compiler, 'engine', SimpleNamespace(theano=SimpleNamespace(config=config), nohome='', name=engine.name))
    said = []
    monkeypatch.setattr(report, 'say', lambda line: said.append(line) if not line.startswith('Compiling the kernels') else None)

    def load():
        """What the library says of itself, freshly looked up; None without one."""
        kernels = native.library.__wrapped__()
        return kernels and kernels.rngru_isa().decode()

    def calls():
        """The arguments of each call of the compiler that was to compile or link."""
        return [line for line in log.read_text().splitlines() if '-fsyntax-only' not in line] if log.exists() else []
    return SimpleNamespace(load=load, setcompiler=setcompiler, config=config, sources=sources, base=base, said=said, calls=calls,
                           files=lambda: sorted(path.name for path in (base / 'rn-gru').iterdir()), runs=lambda: len(calls()))


@needscompiler
def test_an_unchanged_kernel_is_never_compiled_again(cache):
    assert cache.load() == 'one'
    runs, files = cache.runs(), cache.files()
    assert runs == 3 and len(files) == 1 and files[0].endswith('.so')       # two sources and the link
    assert len(cache.said) == 1 and 'Compiled the kernels' in cache.said[0]
    (cache.sources / 'notes.txt').write_text('changed')
    (cache.sources / 'standin.h').touch()
    assert cache.load() == 'one'
    code = 'print(native.library().rngru_isa())'
    assert finished(process(code, cache.config.cxx, cache.base, cache.sources)) == "b'one'\n"
    assert (cache.runs(), cache.files(), len(cache.said)) == (runs, files, 1)


@needscompiler
def test_a_changed_byte_in_a_header_or_source_compiles_again_and_the_old_one_is_still_there(cache):
    cache.load()
    (cache.sources / 'standin.h').write_text('#define NAME "two"\n')
    assert cache.load() == 'two' and len(cache.files()) == 2
    (cache.sources / 'other.cpp').write_text('int nothings;\n')
    assert cache.load() == 'two' and len(cache.files()) == 3
    runs = cache.runs()
    (cache.sources / 'standin.h').write_text('#define NAME "one"\n')
    (cache.sources / 'other.cpp').write_text('int nothing;\n')
    assert cache.load() == 'one' and cache.runs() == runs


@needscompiler
def test_other_flags_and_another_compiler_compile_again(cache, monkeypatch):
    cache.load()
    monkeypatch.setattr(compiler, 'FLAGS', compiler.FLAGS + ['-DSOMETHING'])
    assert cache.load() == 'one' and len(cache.files()) == 2
    cache.setcompiler(f'case "$*" in *--version*) echo newer; exit;; esac\nexec {CXX} "$@"')
    assert cache.load() == 'one' and len(cache.files()) == 3


@needscompiler
def test_two_processes_that_compile_at_once_both_succeed_and_leave_no_temporary_files(cache):
    code = 'print(native.library().rngru_isa())'
    both = [process(code, cache.config.cxx, cache.base, cache.sources) for _ in range(3)]
    for one in both:
        assert finished(one).endswith("b'one'\n")
    assert len(cache.files()) == 1 and cache.files()[0].endswith('.so')


# --- Which instruction set ----------------------------------------------------------------------------------------

BASE = 'fpu sse sse2 ssse3 sse4_1 sse4_2'
AVX2 = f'{BASE} avx f16c fma avx2 bmi2'
AVX512 = f'{AVX2} avx512f avx512bw avx512dq avx512vl avx512cd'
AMX = f'{AVX512} avx512_bf16 avx512_vnni amx_tile amx_bf16 amx_int8'


def pretend(monkeypatch, features='', machine='x86_64'):
    """The processor is another one."""
    monkeypatch.setattr(compiler.platform, 'machine', lambda: machine)
    monkeypatch.setattr(compiler, '_x86features', lambda: set(features.split()))


@pytest.mark.parametrize('features, names', [
    ('', ['SSE2']), (BASE, ['SSE2']), (f'{BASE} avx', ['AVX', 'SSE2']), (f'{BASE} avx avx2', ['AVX', 'SSE2']),
    (AVX2, ['AVX2', 'AVX', 'SSE2']),
    (f'{AVX2} avx512f avx512cd', ['AVX2', 'AVX', 'SSE2']), (AVX512, ['AVX-512', 'AVX2', 'AVX', 'SSE2']),
    (f'{AVX512} avx512_bf16 avx512_vnni', ['AVX-512', 'AVX2', 'AVX', 'SSE2']),
    (f'{AVX512} avx512_bf16 avx512_vnni amx_bf16', ['AVX-512', 'AVX2', 'AVX', 'SSE2']), (AMX, ['AMX', 'AVX-512', 'AVX2', 'AVX', 'SSE2'])])
def test_the_instruction_sets_are_those_whose_every_part_the_processor_has_best_first(monkeypatch, features, names):
    """avx2 without fma is no AVX2 of ours; the first AVX-512 processors lack parts of it."""
    pretend(monkeypatch, features)
    assert compiler.instructionsets() == names + ['scalar']


@pytest.mark.parametrize('machine, names', [('aarch64', ['NEON', 'scalar']), ('arm64', ['NEON', 'scalar']), ('armv7l', ['scalar']),
                                            ('riscv64', ['scalar']), ('AMD64', ['AVX2', 'AVX', 'SSE2', 'scalar'])])
def test_other_processors_have_sets_of_their_own(monkeypatch, machine, names):
    pretend(monkeypatch, AVX2, machine)
    assert compiler.instructionsets() == names


@pytest.mark.parametrize('cpuinfo, sysctl, features', [
    ('processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\nbugs\t\t: spectre_v1\n\nprocessor\t: 1\n', '', 'fpu sse2 avx avx2 fma'),
    ('processor: 0\n', '', ''),
    (None, 'FPU SSE2 AVX1.0 FMA\nAVX2 BMI1\n', 'fpu sse2 avx fma avx2 bmi1'), (None, '', ''), (None, None, '')],
    ids=['Linux', 'Linux without flags', 'macOS', 'macOS without features', 'neither'])
def test_features_are_what_the_system_says_that_programs_may_use(monkeypatch, cpuinfo, sysctl, features):
    """sysctl gives macOS's names; Rosetta's answer may lack lines."""
    def read_text():
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo
    monkeypatch.setattr(compiler, 'Path', lambda name: SimpleNamespace(read_text=read_text))
    monkeypatch.setattr(compiler.shutil, 'which', lambda name: sysctl is not None)
    monkeypatch.setattr(compiler.subprocess, 'run', lambda *command, **options: SimpleNamespace(stdout=sysctl))
    assert compiler._x86features.__wrapped__() == set(features.split())


@needscompiler
@pytest.mark.parametrize('features, flags, others', [
    (AMX, ['-mavx512f', '-mavx512bf16', '-mavx512vnni', '-mamx-tile', '-mamx-bf16'], []),
    (f'{AVX512} avx512_bf16 avx512_vnni', ['-mavx512f', '-mavx512bf16', '-mavx512vnni'], ['amx']),
    (f'{AVX512} avx512_vnni', ['-mavx512f', '-mavx512vnni'], ['bf16']),
    (AVX512, ['-mavx512f', '-mfma'], ['bf16', 'vnni']),
    (AVX2, ['-mavx2', '-mfma'], ['avx512']), (f'{BASE} avx', ['-mavx'], ['-mavx2', '-mfma']), (BASE, ['-msse2'], ['-mavx'])])
def test_the_kernels_are_compiled_for_the_best_set_whatever_the_compiler_takes_for_native(cache, monkeypatch, features, flags, others):
    pretend(monkeypatch, features)
    cache.setcompiler('case "$*" in *--version* | *-fsyntax-only*) exit 0;; esac\nexit 3')
    assert cache.load() is None and cache.calls()
    for call in cache.calls():
        assert all(flag in call.split() for flag in flags) and not any(other in call for other in others) and 'native' not in call


@pytest.mark.parametrize('given', [True, False])
def test_tiles_count_where_the_system_gives_them_to_the_process(monkeypatch, given):
    monkeypatch.setattr(compiler, 'Path', lambda name: SimpleNamespace(read_text=lambda: f'flags\t: {AMX}\n'))
    monkeypatch.setattr(compiler, '_maytile', lambda: given)
    features = compiler._x86features.__wrapped__()
    assert features == set(AMX.split()) - (set() if given else {'amx_tile'})
    pretend(monkeypatch, ' '.join(features))
    assert compiler.instructionsets()[0] == ('AMX' if given else 'AVX-512')


OLDER = 'case "$*" in *--version*) echo old; exit;; *avx512*) echo "error: unrecognized option" >&2; exit 1;; esac'


@needscompiler
def test_a_compiler_that_is_older_than_the_processor_falls_to_the_next_set(cache, monkeypatch):
    """By the compiler's own answer; a warm start compiles nothing and says nothing."""
    pretend(monkeypatch, f'{AVX512} avx512_bf16 avx512_vnni')
    cache.setcompiler(f'{OLDER}\nexec {CXX} -Wno-unused-command-line-argument $(echo "$@" | sed "s/-mavx2//;s/-mfma//")')
    assert cache.load() == 'one'
    assert cache.runs() == 3 and all('-mavx2' in call and 'avx512' not in call for call in cache.calls())
    assert cache.load() == 'one' and cache.runs() == 3 and len(cache.said) == 1


@needscompiler
@pytest.mark.parametrize('wanted, flag', [('AVX2', '-mavx2'), ('avx', '-mavx'), ('Sse2', '-msse2'), ('SCALAR', '-DRNGRU_SHAPE=4'),
                                          ('avx512', '-mavx512f'), ('AVX-512', '-mavx512f'), ('native', '-mavx512f')])
def test_a_set_can_be_asked_for_by_name(cache, monkeypatch, wanted, flag):
    pretend(monkeypatch, AVX512)
    monkeypatch.setenv('RN_GRU_KERNELS', wanted)
    cache.setcompiler('case "$*" in *--version*) echo 1.0; exit;; *-fsyntax-only*) exit 0;; esac\nexit 3')
    assert cache.load() is None
    assert all(flag in call.split() for call in cache.calls()) and cache.runs()


@pytest.mark.parametrize('wanted', ['AVX2', 'avx512', 'NEON'])
def test_a_set_that_the_processor_lacks_is_refused_in_one_sentence_that_says_what_it_has(cache, monkeypatch, wanted):
    pretend(monkeypatch, f'{BASE} avx')
    monkeypatch.setenv('RN_GRU_KERNELS', wanted)
    with pytest.raises(ValueError, match='it has AVX, SSE2, scalar') as error:
        cache.load()
    assert repr(wanted) in str(error.value) and '\n' not in str(error.value) and not cache.runs()


@needscompiler
def test_a_set_that_the_compiler_is_too_old_for_is_refused_in_one_sentence_that_says_what_it_knows(cache, monkeypatch):
    pretend(monkeypatch, f'{AVX512} avx512_bf16 avx512_vnni')
    cache.setcompiler(f'{OLDER}\nexec {CXX} "$@"')
    monkeypatch.setenv('RN_GRU_KERNELS', 'avx512')
    with pytest.raises(ValueError, match="'avx512' is not for this compiler, .* knows AVX2, AVX, SSE2, scalar of") as error:
        cache.load()
    assert cache.config.cxx in str(error.value) and '\n' not in str(error.value) and not cache.runs() and not cache.said


@pytest.mark.parametrize('wanted', ['AVX3', 'nativ', 'pytorch', '1'])
def test_what_names_no_set_is_refused_in_one_sentence(cache, monkeypatch, wanted):
    monkeypatch.setenv('RN_GRU_KERNELS', wanted)
    with pytest.raises(ValueError, match="'numpy' or an instruction set") as error:
        cache.load()
    assert repr(wanted) in str(error.value) and '\n' not in str(error.value) and not cache.runs()


# --- What may go wrong ----------------------------------------------------------------------------------------------

@needscompiler
@pytest.mark.parametrize('body, words', [
    ('case "$*" in *--version*) echo 1.0; exit;; esac\necho "kernels.cpp:1: fatal error: no luck today" >&2\nexit 1', ['no luck today']),
    ('case "$*" in *--version*) echo 1.0; exit;; esac\nexit 3', ['ended with 3']),
    ('echo "fatal error: no such licence" >&2\nexit 1', ['no such licence']),
    ('kill -9 $$', ['ended with -9']),
    ('case "$*" in *--version*) echo 1.0; exit;; esac\nprintf "\\\\377 error: bytes that are no text" >&2\nexit 1', ['no text']),
    ('exit 0', [])], ids=['error', 'silent', 'version', 'killed', 'bytes', 'nothing written'])
def test_a_compiler_that_fails_gives_one_line_and_numpy(cache, body, words):
    cache.setcompiler(body)
    assert cache.load() is None
    assert len(cache.said) == 1 and '\n' not in cache.said[0] and 'NumPy' in cache.said[0]
    assert all(word in cache.said[0] for word in words)
    assert not cache.base.exists() or cache.files() == []


@pytest.mark.parametrize('cxx', ['', '/no/such/compiler'])
def test_a_missing_compiler_gives_one_line_that_says_what_to_install(cache, cxx):
    cache.config.cxx = cxx
    assert cache.load() is None
    assert len(cache.said) == 1 and '\n' not in cache.said[0]
    assert 'NumPy' in cache.said[0] and 'install' in cache.said[0] and 'slower' in cache.said[0]


@needscompiler
def test_a_compiler_in_a_directory_with_a_space_in_its_name_is_found(cache, tmp_path):
    """The engine takes config.cxx as one path, too."""
    (tmp_path / 'my tools').mkdir()
    os.rename(cache.config.cxx, tmp_path / 'my tools' / 'compiler')
    cache.config.cxx = str(tmp_path / 'my tools' / 'compiler')
    assert cache.load() == 'one'


@needscompiler
def test_a_cache_that_cannot_be_made_gives_one_line_and_numpy(cache):
    cache.base.write_text('a file')
    assert cache.load() is None
    assert len(cache.said) == 1 and '\n' not in cache.said[0] and 'NumPy' in cache.said[0]


@needscompiler
@pytest.mark.skipif(not hasattr(os, 'ST_NOEXEC'), reason='this system does not tell')
def test_a_cache_where_no_program_may_run_gives_one_line_that_names_the_flag_and_compiles_nothing(cache, monkeypatch):
    """A file system mounted noexec: no library would load from there."""
    monkeypatch.setattr(os, 'statvfs', lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID))
    assert cache.load() is None and not cache.runs()
    assert len(cache.said) == 1 and '\n' not in cache.said[0] and 'NumPy' in cache.said[0]
    assert f'{engine.name.upper()}_FLAGS=base_compiledir=' in cache.said[0]


@needscompiler
def test_a_damaged_library_in_the_cache_gives_one_line_or_is_compiled_again(cache):
    """In a process of its own: in this one the library is loaded already."""
    cache.load()
    path = cache.base / 'rn-gru' / cache.files()[0]
    data = path.read_bytes()
    path.unlink()                               # a new file: this process has the old one mapped, and would die of its end
    path.write_bytes(data[:100])
    *said, computes = finished(process('print(native.describe())', cache.config.cxx, cache.base, cache.sources)).splitlines()
    said = said[-1]
    assert 'Compiled' in said and computes == 'one kernels, 1 thread' or 'NumPy' in said and computes == 'NumPy'


@needscompiler
def test_kernels_can_be_switched_off_silently(cache, monkeypatch):
    monkeypatch.setenv('RN_GRU_KERNELS', 'numpy')
    assert cache.load() is None and not cache.said and not cache.runs() and not cache.base.exists()


# --- The engine's own flags -------------------------------------------------------------------------------------

TRAIN = '''
from rn_rnn_char import ModelState
ms = ModelState.initfromsrcfile(TEXT, WORK, seq_len=10, state_size=8, layers=2, seed=1, verbose=False)
ms.trainmodel(train_len=3, batchsize=4, valid_len=1, print_every=2)
ms.trackneurons('some')
print('trained', len(ms.checkpoints()), native.describe())
'''


def engineprocess(code, flags='', **environment):
    """stdout of a finished process with the engine itself."""
    name = f'{engine.name.upper()}_FLAGS'
    env = {key: value for key, value in os.environ.items() if key not in ('RN_GRU_KERNELS', 'RN_GRU_THREADS', name)}
    env.update({name: flags} if flags else {}, PYTHONPATH=ROOT)
    code = f'import compiler, native, engine\nfrom pathlib import Path\n{code}'
    done = subprocess.run([sys.executable, '-c', code], env={**env, **environment}, cwd='/', capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('how', ['missing', 'failing', 'switched off'])
def test_training_works_without_a_compiler(tmp_path, text, how):
    failing = tmp_path / 'failing'
    failing.write_text('#!/bin/sh\ncase "$*" in *version*) echo 1.0; exit;; esac\necho "fatal error: no luck today" >&2\nexit 1\n')
    failing.chmod(0o755)
    code = f'TEXT, WORK = {str(text)!r}, {str(tmp_path / "work")!r}\n' + TRAIN
    if how == 'switched off':
        out = engineprocess(code, RN_GRU_KERNELS='numpy')
    elif how == 'missing':
        out = engineprocess(code, 'cxx=')
    else:
        out = engineprocess(code, f'cxx={failing}')
    assert out.endswith('trained 2 NumPy\n')
    lines = [line for line in out.splitlines() if 'native kernels' in line]
    assert len(lines) == (how != 'switched off')
    if lines:
        assert {'missing': 'install', 'failing': 'no luck today'}[how] in lines[0]


REFUSED = '''
from rn_rnn_char import ModelState
import report
ModelState.initfromsrcfile(TEXT, WORK, state_size=8, seed=1, verbose=False)
names = set(os.listdir(WORK))
for call in (lambda ms: ms.restore(), lambda ms: ms.trainmodel(train_len=1), lambda ms: ms.sample(5), lambda ms: ms.score('some')):
    ms = ModelState.load(WORK)
    report.verbose = call.__code__.co_names[0] in ('restore', 'trainmodel')
    try:
        call(ms)
    except ValueError as error:
        print(error, 'model' in vars(ms) and report.verbose, set(os.listdir(WORK)) == names)
'''


@pytest.mark.parametrize('name, value, words', [('KERNELS', 'AVX3', 'native'), ('THREADS', 'abc', 'a whole number')])
def test_a_misspelt_environment_is_met_at_the_door_in_one_sentence(tmp_path, text, name, value, words):
    """Before anything is read, said, written or compiled."""
    code = f'import os\nTEXT, WORK = {str(text)!r}, {str(tmp_path / "work")!r}\n' + REFUSED
    lines = engineprocess(code, **{f'RN_GRU_{name}': value}).splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith(f'RN_GRU_{name} takes ') and words in line and f'got {value!r}' in line and line.endswith(' False True')


@needscompiler
def test_a_home_that_cannot_be_written_gives_one_line_that_names_the_temporary_directory(tmp_path, cache):
    home, temporary = tmp_path / 'home', tmp_path / 'temporary'
    home.write_text('a file, where nothing can be put, not even by root')
    temporary.mkdir()
    code = f'compiler.SOURCES = Path({str(cache.sources)!r})\nprint(native.describe())'
    out = engineprocess(code, HOME=str(home), TMPDIR=str(temporary))
    lines = out.splitlines()
    assert len(lines) == 3 and lines[2] == 'one kernels, 1 thread'
    assert str(temporary) in lines[0] and str(home) in lines[0]
    assert list(temporary.glob('*/rn-gru/kernels-*.so'))


def test_a_long_message_of_the_compiler_is_cut_between_words():
    error = subprocess.CalledProcessError(1, ['g++'], stderr='Included:\nkernels.cpp:7: error: ' + 60 * 'wide ' + '\nerror: another')
    said = compiler.why(error)
    assert re.fullmatch(r'the C\+\+ compiler failed \(kernels\.cpp:7: error: (wide )+\.\.\.\)\.', said) and len(said) < 240
