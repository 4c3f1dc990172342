"""Several processes, on one machine or on more, that train one model together with all their devices, by JAX's distributed service.

Each runs the same program, which calls `join` first. Process 0 decides, speaks and writes; the others take from it what the model is
and how the run goes (`first`, `broadcast`), so that all make the same steps, and write nothing. What depends on a clock or on a
person is decided by all after the same step (`Meetings`).

None can go on without the others. Where one ends, however it ends, those that wait for it say so in a sentence and end too: there is
no way back within a process, and a new start goes on from the last checkpoint.
"""

import atexit
import builtins
import contextlib
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import engine
import errors
import report
import watch
from errors import checkint, reason, short

if TYPE_CHECKING:
    from device import Device

HEARTBEAT = 10              # seconds without a sign of life after which a process counts as dead, where no connection has told before
PATIENCE = 7 * 24 * 3600    # seconds that a process which is through waits for the others, so that all end together
PAUSE = 1.0                 # seconds between meetings
SOON = 3.0                  # seconds in which the watch tells of an end that a collective operation has met with
AGAIN = 'start them all again, and resume=True (--resume) goes on from the last checkpoint'
GONE = re.compile('gloo|nccl|coordination|connection|socket|unavailable|deadline|aborted|cancelled', re.IGNORECASE)

count, number = 1, 0        # of the processes, and this one's
_alone = False
_watched = None             # the Watch
_gone = None                # the number of a process that has ended
_depth = _blocks = 0        # `bound` blocks around what is done now, and all that were entered
_leaving = threading.Lock()


def join(address: str, processes: int, process: int) -> None:
    """Train together with other processes, on this machine or on others,
    that run the same program: call it first, in each of them.

        # on the first machine, and with process=1 on the second
        from rn_rnn_char import join, ModelState
        join('10.0.0.1:1234', processes=2, process=0)
        ms = ModelState.load('/shared/book')
        ms.trainmodel(batchsize=256)

    address    of process 0's machine and a free port of it, as in
               10.0.0.1:1234: train together with other processes, each of
               which is given the same
    processes  how many train together
    process    this one's number, from 0

    It waits until all have come, 5 minutes at most. trainmodel() then
    uses all devices of all processes (of one kind: devices='all').
    The batch is that of all together, and the result that of one
    device but for rounding. Process 0 writes checkpoints and history
    and speaks; the others read the text from the model's directory,
    on a file system that all share or in a copy of it, and take all
    else from process 0. Where one ends in the middle, all do, within
    seconds: start them again with resume=True.

    Raises TypeError or ValueError for a wrong argument, or where JAX is
    in use already, ModuleNotFoundError where it isn't installed.
    """
    global count, number
    if not isinstance(address, str):
        raise TypeError(f"address takes a machine's name or number and a port, as '10.0.0.1:1234', got {short(address)}")
    if not re.fullmatch(r'(\[[0-9a-fA-F:.]+\]|[^\s:/]+):[0-9]{1,5}', address):
        raise ValueError(f"address takes a machine's name or number and a port, as '10.0.0.1:1234', got {short(address)}")
    processes = checkint('processes', processes, 1)
    process = checkint('process', process, 0, processes - 1)
    if count > 1:
        raise ValueError(f'this is process {number} of {count} already: join once, in a new process')
    engine.checkjax('join()')
    import jax
    jax.config.update('jax_enable_preemption_service', False)       # it would keep SIGTERM from ending a process
    try:
        jax.distributed.initialize(address, processes, process, cluster_detection_method='deactivate',
                                   heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=PATIENCE)
    except RuntimeError as error:
        if 'before' not in str(error) and 'once' not in str(error):
            raise
        raise ValueError(f'JAX is in use already ({reason(error)}): join in a new process, before anything else') from error
    count, number = processes, process
    if count > 1:
        _watch(address.rpartition(':')[0].strip('[]'))
        atexit.register(_end)


def _watch(host):
    """Begin to watch whether all are there; host: where process 0 is."""
    global _watched
    _watched, token = watch.Watch(_ended), np.frombuffer(secrets.token_bytes(16), np.uint8)
    port = _watched.listen(count - 1, token.tobytes()) if isfirst() else 0
    told = broadcast({'port': np.array(port, np.int32), 'token': token})
    if not isfirst():
        _watched.connect(host, int(told['port']), told['token'].tobytes(), number)


def _end():
    """Tell the others that the program has ended; where an exception ends it, end at once: else each waits for the others."""
    if hasattr(sys, 'last_value') and not sys.flags.interactive and not hasattr(sys, 'ps1'):
        _leave(1)
    _watched.close()


def isfirst() -> bool:
    """Whether this process decides, speaks and writes."""
    return number == 0


def isshared() -> bool:
    """Whether there are others, and they are taking part in what is done now."""
    return count > 1 and not _alone


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block process 0 does something by itself, and the others, which don't enter it, wait for what comes behind."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def leave(code: int) -> None:
    """Where the program ends with an exit code that says it failed, end it at once, and so the others that would wait for it."""
    if count > 1 and code not in (0, 130):
        _leave(code)


def checkdevices(device: 'Device') -> None:
    """ValueError where a process has none of the devices that a model is to be trained on."""
    if count > 1 and len({each.process_index for each in getattr(device, 'jaxdevices', ())}) < count:
        raise ValueError(f'{count} processes train together, and device={device.name!r} with devices={device.count} is not in all of them: '
                         "leave device and devices out, or say devices='all'")


# --- What all have to know --------------------------------------------------------------------------------------------

def first(function: Callable) -> Any:
    """What function() gives in process 0, in all processes: None, numbers, text, or lists and dicts of them. What it raises, all raise.

    The others don't call it.
    """
    if not isshared():
        return function()
    told, error = None, None
    if isfirst():
        try:
            told = {'value': function()}
        except BaseException as caught:         # a Ctrl-C too
            told, error = {'error': type(caught).__name__, 'sentence': str(caught)}, caught
    told = _told(told)
    if 'error' in told:
        error = error or _same(told['error'], told['sentence'])
        error.isalike = True                    # type: ignore[union-attr]  # a mark for `bound`
        raise error
    return told['value']


def _told(value):
    """Process 0's `value`, by JSON: exact for floats, infinity and NaN too."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast(np.array(len(data), np.int32)))
    buffer = np.zeros(1 << max(size - 1, 0).bit_length(), np.uint8)     # few different sizes: each is compiled for
    if isfirst():
        buffer[:size] = data
    return json.loads(broadcast(buffer)[:size].tobytes())


def _same(name, sentence):
    """An exception like process 0's, which was of the class `name`."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    try:
        return kind(sentence)
    except TypeError:               # another library's, or one that takes more than a sentence
        return RuntimeError(f'{name}: {sentence}')


def broadcast(arrays: Any) -> Any:
    """Process 0's arrays, NumPy's, or a dict of them; the others give arrays of the same shapes and types."""
    from jax.experimental import multihost_utils
    with bound():
        return multihost_utils.broadcast_one_to_all(arrays)


def gather(values: Sequence[float]) -> list[np.ndarray]:
    """The numbers `values` of each process: a list of arrays, float32."""
    if not isshared():
        return [np.array(values, np.float32)]
    from jax.experimental import multihost_utils
    with bound():
        return list(multihost_utils.process_allgather(np.array(values, np.float32)))


class Meetings:
    """What any process may wish for at any time, granted to all behind the same step: they meet about once in PAUSE seconds."""

    def __init__(self) -> None:
        self.left = self.steps = 1          # steps until the next meeting, and from the last one to it
        self.start = time.monotonic()

    def behind(self, *wishes: bool) -> list[bool] | None:
        """To be called behind each step with this process's wishes, bools: which are granted now, a list; None: no meeting is due."""
        if not isshared():
            return list(wishes)
        self.left -= 1
        if self.left:
            return None
        met = gather([*wishes, (time.monotonic() - self.start) / self.steps])
        self.left = self.steps = max(min(int(PAUSE / max(met[0][-1], 1e-6)), 2 * self.steps), 1)
        self.start = time.monotonic()
        return [any(each[i] for each in met) for i in range(len(wishes))]


# --- The end of one ---------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def bound(*alike: type[BaseException]) -> Iterator[None]:
    """Within the block all processes depend on each other: an exception ends this one and so the others, except what `first` raises, and
    one of the classes `alike`, which all meet in the same place or behind the last one where they do.
    """
    global _depth, _blocks
    if isshared() and _gone is not None:
        raise RuntimeError(f'process {_gone} of {count} has ended: start them all again')
    _depth, _blocks = _depth + 1, _blocks + 1
    try:
        yield
    except alike:
        raise
    except BaseException as error:
        if not isshared() or hasattr(error, 'isalike'):
            raise
        what = f'Process {number} of {count} ends'
        if isinstance(error, KeyboardInterrupt):
            _leave(130, f'{what}, and with it the others: Ctrl-C.')
        if isinstance(error, Exception) and GONE.search(str(error)):
            time.sleep(SOON)                    # for the watch to tell which one it was
            said = re.sub(r'\[\S+:[0-9]+\] ', '', reason(error))       # without the line of its source
            _leave(1, f"{what}, because another can't be reached ({said}): {AGAIN}.")
        _leave(1, f'{what}, and with it the others: {type(error).__name__}: {reason(error)}.')
    finally:
        _depth -= 1


def _ended(which, isbye):
    """Another process has ended, isbye: as it should have; said in the watch's thread."""
    global _gone
    _gone, before = which, None
    while isbye and _depth and before != _blocks:       # this one may just be through with what they did together
        before = _blocks
        time.sleep(HEARTBEAT)
    if _depth:
        _leave(1, f'Process {number} of {count} ends, because process {which} has ended: {AGAIN}.')


def _leave(code, sentence=None):
    _leaving.acquire()                          # for good: one sentence is enough
    if sentence:
        report.alarm(sentence)
    for file in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            file.flush()
    os._exit(code)
