"""One trainer in a working directory at a time.

    with trainlock('workingdir'): ...

The lock is flock's on the file training.lock, which stays behind: the kernel frees it when its holder ends, however it ends, so
none is ever stale. Readers don't ask for it. It holds between the processes of one machine, and between machines where the file system
says so (NFS does, a synced folder doesn't). Where there is no such lock (Windows, some network file systems, a
directory that can't be written) a line says so and work goes on.
"""
import contextlib
import errno
import os
import pathlib
import platform
import stat
import time
from collections.abc import Iterator

import report
from errors import WorkDirError, reason
from storage import openregular

try:
    import fcntl
except ImportError:             # Windows
    fcntl = None                # type: ignore[assignment]

LOCKFILE = 'training.lock'
_ATTEMPTS = 4


@contextlib.contextmanager
def trainlock(directory: pathlib.Path) -> Iterator[None]:
    """Within the `with` block nobody else trains in `directory` (a Path); WorkDirError where somebody does already."""
    file = _lock(directory / LOCKFILE)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def holder(directory: pathlib.Path) -> str | None:
    """Who trains in `directory` now: 'process 4711 on laptop', or None."""
    with contextlib.suppress(OSError, AttributeError):
        with openregular(directory / LOCKFILE) as file:
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
            file = _open(path)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                with contextlib.suppress(OSError):      # a full disk, another user's file: locked all the same
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
            report.warn(f"'{path.parent}' could not be locked ({reason(error)}): see to it that nobody else trains there meanwhile.")
            return None
    return None


def _open(path):
    """The lock's file, made if need be, open unbuffered; WorkDirError for anything but a plain file, such as a link to another."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            handle = os.open(path, os.O_RDWR | flags, 0o666)
        except PermissionError:                 # another user's: it can be locked all the same
            handle = os.open(path, os.O_RDONLY | flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise WorkDirError(f"'{path}' is no plain file: remove it") from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise WorkDirError(f"'{path}' is no plain file, or has other names too: remove it")
    return open(handle, 'r+b' if os.access(path, os.W_OK) else 'rb', buffering=0)


def _who(file):
    file.seek(0)
    return file.read(200).decode(errors='replace') or 'another process'
