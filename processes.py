"""Calls in processes of their own, so many at a time, as an executor of `concurrent.futures`.

    with Processes(4) as executor:
        future = executor.submit(function, *arguments)

Unlike ProcessPoolExecutor it starts a fresh Python for each call: one that is killed ends nothing but its own call. Nothing is forked
(the kernels' threads would not come along), and the caller's `__main__` is not imported there, so that a script needs no
`if __name__ == '__main__'` and a shell works as well. `function` must be one that can be imported.
"""

import _thread
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor

from errors import short

# The path first, so that what comes behind it can be found; ours before a program's own, which may have a module of the same name.
HERE = os.path.dirname(os.path.abspath(__file__))
_CHILD = 'import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import processes; processes.serve()'


class Processes(Executor):
    """An executor that gives each call a process; `stop` asks those that run to end, as Ctrl-C does, and `kill` ends them.

    workers      how many run at a time, int >= 1
    environment  a dict of str -> str, what they have in their environment besides ours

    A terminal's Ctrl-C doesn't reach the processes but through `stop`, once. Should this process be killed, they are stopped too.
    A future's result is the function's; it raises what that raised (KeyboardInterrupt where it was stopped), or BrokenExecutor where
    the process ended otherwise, with the reason.
    """

    def __init__(self, workers: int, environment: Mapping[str, str] | tuple = ()) -> None:
        self.environment = {**os.environ, **dict(environment)}
        self.threads = ThreadPoolExecutor(workers)      # one waits for each process
        self.lock, self.running, self.isstopped = threading.Lock(), set(), False

    def submit(self, function: Callable, /, *arguments: object) -> Future:  # type: ignore[override]  # takes no keywords
        """A Future of function(*arguments), all of which pickle."""
        return self.threads.submit(self._call, pickle.dumps([HERE, *sys.path]) + pickle.dumps((function, arguments)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of any executor."""
        self.threads.shutdown(wait, cancel_futures=cancel_futures)

    def stop(self) -> None:
        """Begin no other call, and have those under way end as at a Ctrl-C."""
        with self.lock:
            self.isstopped = True
            for process in self.running:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def kill(self) -> None:
        """The same, at once."""
        with self.lock:
            self.isstopped = True
            for process in self.running:
                process.kill()

    def _call(self, message):
        if hasattr(signal, 'pthread_sigmask'):          # the process inherits it: Ctrl-C reaches it as the end of its input instead
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with tempfile.TemporaryFile() as errors:
            with self.lock:
                if self.isstopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen([sys.executable, '-c', _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                           env=self.environment, creationflags=getattr(subprocess, 'CREATE_NEW_PROCESS_GROUP', 0))
                with contextlib.suppress(OSError):      # it has ended already: we'll read why
                    process.stdin.write(message)
                    process.stdin.flush()
                self.running.add(process)
            try:
                answer = process.stdout.read()
            finally:
                process.stdout.close()
                process.wait()
                with self.lock:
                    self.running.discard(process)
                    with contextlib.suppress(OSError):
                        process.stdin.close()
            errors.seek(0)
            lines = errors.read().decode(errors='replace').split('\n')
        if process.returncode == 0 and answer:
            isright, value = pickle.loads(answer)
            if isright:
                return value
            raise value
        said = next((line.strip() for line in reversed(lines) if line.strip()), '')
        raise BrokenExecutor(f'its process {_ending(process.returncode)}' + (f', and said {short(said)}' if said else ''))


def _ending(code):
    """How a process of this exit code ended, in words."""
    if code >= 0:
        return f'ended by itself with exit code {code}'
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f'signal {-code}'
    return f'was ended by {name}' + (' (where nobody did it, the machine ran out of memory)' if name == 'SIGKILL' else '')


def serve() -> None:
    """In the process: carry out the call that standard input tells, answer on standard output; what is printed goes to standard error."""
    signal.signal(signal.SIGINT, signal.default_int_handler)        # ignored where the caller runs in a shell's background
    answers = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)
    try:
        function, arguments = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_watch, daemon=True).start()
        answer = True, function(*arguments)
    except BaseException as error:
        answer = False, error
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)                      # an exception may pickle, and not come back
    except Exception:
        data = pickle.dumps((False, RuntimeError(short(answer[1]))))
    with contextlib.suppress(OSError), answers:                     # nobody may listen any more
        answers.write(data)


def _watch():
    """Where standard input ends, because of Processes.stop or of the caller's own end, interrupt the main thread as Ctrl-C does."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    _thread.interrupt_main()                    # no signal, which the mask would hold back
