"""Threads of the native kernels: the same result with any number of them, from any thread and in forked children; how many there are."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import native
import ops
from kernelcases import bits, finished, gradcase, inchild, large, losses, needskernels, process
from rn_rnn_char import ModelState

pytestmark = pytest.mark.usefixtures('threads_as_before')
onlinux = pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system has no affinity')


@needskernels
def test_the_result_is_the_same_bit_for_bit_with_any_number_of_threads_and_each_time():
    for op, inputs in large():
        native.setthreads(1)
        expected = bits(op, inputs)
        for threads in (1, 2, 3):
            native.setthreads(threads)
            for _ in range(3):
                assert bits(op, inputs) == expected, (op, threads)


@needskernels
def test_calls_from_several_python_threads_at_once_give_right_results():
    cases = list(large())
    native.setthreads(2)
    expected = [bits(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for case, got in [(i, pool.submit(bits, *cases[i])) for _ in range(6) for i in range(len(cases))]:
            assert got.result(timeout=60) == expected[case], cases[case][0]


@needskernels
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_forked_child_computes_the_same():
    cases = list(large())
    native.setthreads(2)
    expected = [bits(*case) for case in cases]

    def child(connection):
        once = [bits(*case) for case in cases]
        native.setthreads(3)
        again = [bits(*case) for case in cases]
        connection.send((once == expected, again == expected))
    assert inchild(child) == ((True, True), 0)
    assert [bits(*case) for case in cases] == expected


@needskernels
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_child_forked_during_a_call_computes_the_same_and_so_does_its_parent():
    case = ops.GRUGrad('encoded'), gradcase('encoded', T=20, B=16, H=100, K=100, V=50)
    native.setthreads(2)
    expected, stop, wrong = bits(*case), threading.Event(), []

    def work():
        while not stop.is_set():
            if bits(*case) != expected:
                wrong.append(True)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            assert inchild(lambda connection: connection.send(bits(*case) == expected)) == (True, 0)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and not wrong


@needskernels
def test_idle_threads_sleep():
    native.setthreads(3)
    for case in large():
        bits(*case)
    time.sleep(0.01)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.05


WRONG_THREADS = [0, -1, 1.5, 2.0, True, False, '2', 10**6, float('nan'), [2], b'2']


@pytest.fixture
def nolibrary(monkeypatch):
    """Nothing may be compiled or loaded."""
    def library():
        raise AssertionError('the kernels were asked for')
    monkeypatch.setattr(native, 'library', library)


@pytest.mark.parametrize('threads', WRONG_THREADS, ids=repr)
def test_a_wrong_number_of_threads_is_refused_in_one_sentence_before_anything_is_compiled(nolibrary, threads):
    with pytest.raises((TypeError, ValueError)) as error:
        native.setthreads(threads)
    assert 'threads' in str(error.value) and repr(threads) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('threads', ['0', '-1', '1.5', 'abc', '1e3', 'True', '1000000', '9' * 30])
def test_a_wrong_number_of_threads_in_the_environment_is_refused_in_one_sentence(nolibrary, monkeypatch, threads):
    monkeypatch.setenv('RN_GRU_THREADS', threads)
    with pytest.raises(ValueError) as error:
        native.setthreads()
    assert 'RN_GRU_THREADS' in str(error.value) and threads in str(error.value) and '\n' not in str(error.value)


@needskernels
def test_a_right_number_of_threads_is_what_computes(monkeypatch):
    for threads in (1, 3, np.int64(2)):
        assert native.setthreads(threads) == threads and native.library().rngru_get_threads() == threads
        assert native.describe().endswith(f' kernels, {threads} thread{"s" if threads > 1 else ""}')
    monkeypatch.setenv('RN_GRU_THREADS', ' 3 ')
    assert native.setthreads() == 3 and native.setthreads(2) == 2
    monkeypatch.setenv('RN_GRU_THREADS', '')
    assert native.setthreads() == native.library().rngru_threads_available() >= 1


def test_a_wrong_number_of_threads_reaches_no_training(tmp_path, text, nolibrary, monkeypatch):
    ms = ModelState.initfromsrcfile(text, tmp_path / 'work', state_size=8, seed=1, init_checkpoint=False)
    before = ms.model.arrays()

    def refused(error, call, *arguments, **options):
        with pytest.raises(error):
            call(*arguments, **options)
    for threads in WRONG_THREADS:
        refused((TypeError, ValueError), ms.trainmodel, train_len=1, threads=threads)
        refused((TypeError, ValueError), ms.restore, threads=threads)
    monkeypatch.setenv('RN_GRU_THREADS', 'abc')
    refused(ValueError, ms.trainmodel, train_len=1)
    refused(ValueError, ms.restore)
    assert not {'trainstep', 'evaluate', 'sampletext', 'allstates'} & set(vars(ms.model)) and not ms.checkpoints()
    for name, value in ms.model.arrays().items():
        np.testing.assert_array_equal(value, before[name])


@needskernels
def test_training_gives_the_same_bits_with_any_number_of_threads(tmp_path, text, monkeypatch):
    results = []
    for threads in ('1', '2', '3'):
        monkeypatch.setenv('RN_GRU_THREADS', threads)
        results.append(losses(text, tmp_path / threads, 1, 10, state_size=65, seq_len=20)[1])
        assert native.library().rngru_get_threads() == int(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert other[name].tobytes() == value.tobytes(), name


@needskernels
@onlinux
def test_affinity_is_respected():
    one = min(os.sched_getaffinity(0))
    assert finished(process(f'os.sched_setaffinity(0, [{one}])\nprint(native.setthreads(), native.describe())')).endswith('1 thread\n')
    wanted = len(os.sched_getaffinity(0))
    assert finished(process('print(native.setthreads())')).split()[-1] == str(wanted)


@needskernels
@pytest.mark.parametrize('threads', ['1', '3'])
def test_threads_of_the_environment_are_respected_whoever_calls_first(threads):
    """Also where nobody has called setthreads: ModelState.load and trackneurons, or a graph of one's own."""
    assert finished(process('print(native.setthreads(), native.describe())', RN_GRU_THREADS=threads)).split()[-5::3] == [threads, threads]
    assert finished(process('print(native.describe())', RN_GRU_THREADS=threads)).split()[-2] == threads
