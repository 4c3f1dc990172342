"""One trainer in a working directory at a time.

    with trainlock('workingdir'): ...

The lock is flock's on the file training.lock, which stays behind: the kernel frees it when its holder ends, however it ends, so
none is ever stale. Readers don't ask for it. It holds between the processes of one machine, and between machines where the file system
says so (NFS does, a synced folder doesn't). Where there is no such lock (Windows, some network file systems, a
directory that can't be written) a line says so and work goes on.
"""
import contextlib
import os
import platform
import time

import report
from errors import WorkDirError, reason

try:
    import fcntl
except ImportError:             # Windows
    fcntl = None

LOCKFILE = 'training.lock'
_ATTEMPTS = 4


@contextlib.contextmanager
def trainlock(directory):
    """Within the `with` block nobody else trains in `directory` (a Path); WorkDirError where somebody does already."""
    file = _lock(directory / LOCKFILE)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def holder(directory):
    """Who trains in `directory` now: 'process 4711 on laptop', or None."""
    with contextlib.suppress(OSError, AttributeError):
        with open(directory / LOCKFILE, 'rb') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _who(file)
    return None


def _lock(path):
    """The lock's open file, or None where there is no lock to be had."""
    for attempt in range(1, _ATTEMPTS + 1):
        file = None
        try:
            if fcntl is None:
                raise OSError('this system has no flock')
            file = open(path, 'a+b', buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                with contextlib.suppress(OSError):      # a full disk: locked all the same
                    file.truncate(0)
                    file.write(f'process {os.getpid()} on {platform.node()}'.encode())
                return file
            file.close()        # removed between opening and locking, so it isn't the directory's any more
        except BlockingIOError:
            with file:
                if attempt == _ATTEMPTS:
                    raise WorkDirError(f"{_who(file)} is training in '{path.parent}': wait until it ends, or stop it; "
                                       'load, restore and sample work meanwhile') from None
            time.sleep(0.05)    # `holder` may just have asked
        except OSError as error:
            if file is not None:
                file.close()
            report.say(f"'{path.parent}' could not be locked ({reason(error)}): see to it that nobody else trains there meanwhile.")
            return None
    return None


def _who(file):
    file.seek(0)
    return file.read(200).decode(errors='replace') or 'another process'
