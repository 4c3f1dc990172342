"""Calls in processes of their own: what they give, how they end, and that none survives who asked for it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from processes import Processes

pytestmark = pytest.mark.anyengine

ROOT = Path(__file__).parent.parent


# --- What is called there; this file is imported for it -----------------------------------------------------------------

def place(*arguments):
    print('chatter')
    os.write(1, b'more of it')
    return os.getpid(), os.environ.get('RN_GRU_TEST'), getattr(sys.modules['__main__'], '__file__', None), arguments


def fails(error):
    raise error


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def failsoddly():
    raise Unpicklable('odd', 2)


def dies(number):
    print('last words', file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
    time.sleep(60)


def leaves():
    os._exit(3)


def waits(path):
    """Waits for Ctrl-C, of which it leaves word; what the terminal sends doesn't reach it."""
    os.kill(os.getpid(), signal.SIGINT)
    try:
        Path(path).write_text('begun')
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        Path(path).write_text('interrupted')
        raise


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.01)


def holds(path, text):
    return path.exists() and path.read_text() == text


# --- The promises -------------------------------------------------------------------------------------------------------

def test_each_call_has_a_process_of_its_own_without_our_main_module():
    with Processes(2, {'RN_GRU_TEST': 'here'}) as executor:
        futures = [executor.submit(place, i, 'é', [i]) for i in range(3)]
        results = [future.result(30) for future in futures]
    assert len({os.getpid(), *(result[0] for result in results)}) == 4
    assert [result[1:] for result in results] == [('here', None, (i, 'é', [i])) for i in range(3)]


def test_an_exception_comes_back():
    with Processes(2) as executor:
        with pytest.raises(ValueError, match='just so'):
            executor.submit(fails, ValueError('just so')).result(30)
        with pytest.raises(EOFError, match='also'):
            executor.submit(fails, EOFError('also')).result(30)
        with pytest.raises(RuntimeError, match='odd'):
            executor.submit(failsoddly).result(30)


def test_a_process_that_dies_says_how_and_ends_no_other():
    with Processes(1) as executor:
        killed, left, last = executor.submit(dies, signal.SIGKILL), executor.submit(leaves), executor.submit(place)
        with pytest.raises(BrokenExecutor, match="ended by SIGKILL.*memory.*said 'last words'"):
            killed.result(30)
        with pytest.raises(BrokenExecutor, match='exit code 3'):
            left.result(30)
        assert last.result(30)[3] == ()


def test_no_more_run_at_a_time_than_workers(tmp_path):
    with Processes(2) as executor:
        futures = [executor.submit(waits, str(tmp_path / f'{i}')) for i in range(3)]
        until(lambda: holds(tmp_path / '0', 'begun') and holds(tmp_path / '1', 'begun'))
        time.sleep(0.2)
        assert not (tmp_path / '2').exists() and not any(future.done() for future in futures)
        executor.stop()
        assert all(isinstance(future.exception(30), KeyboardInterrupt) for future in futures)
    assert [(tmp_path / f'{i}').exists() and (tmp_path / f'{i}').read_text() for i in range(3)] == ['interrupted', 'interrupted', False]


def test_kill_ends_them_at_once(tmp_path):
    with Processes(1) as executor:
        future = executor.submit(waits, str(tmp_path / 'word'))
        until(lambda: holds(tmp_path / 'word', 'begun'))
        executor.kill()
        assert isinstance(future.exception(30), BrokenExecutor)
    assert (tmp_path / 'word').read_text() == 'begun'


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='this system has no process groups')
def test_where_the_caller_is_killed_they_are_interrupted(tmp_path):
    program = f'''
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from processes import Processes
from test_processes import waits
Processes(1).submit(waits, {str(tmp_path / "word")!r})
'''
    process = subprocess.Popen([sys.executable, '-c', program])
    until(lambda: holds(tmp_path / 'word', 'begun'))
    process.kill()
    process.wait()
    until(lambda: holds(tmp_path / 'word', 'interrupted'))


def test_it_can_be_called_from_any_thread():
    found = []
    with Processes(1) as executor:
        thread = threading.Thread(target=lambda: found.append(executor.submit(place).result(30)))
        thread.start()
        thread.join()
    assert len(found) == 1
    with contextlib.suppress(RuntimeError):
        executor.submit(place)
        pytest.fail('not refused')
