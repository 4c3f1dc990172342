"""What a training keeps on disk, its history and its checkpoints, and when."""

import contextlib
import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import cluster
import history
import report
import saving
from checkpoint import Checkpoint
from errors import CheckpointError, WorkDirError, reason
from history import History
from report import counted
from run import Run

if TYPE_CHECKING:
    from model import ModelState
    from train import Interrupts

FLUSH_EVERY = 5             # seconds, of the history


class Saver:
    """Writes the history and the checkpoints of one training; where the disk refuses, it says so and training goes on in memory.

    Of several processes (`cluster`) it is process 0 that writes, and the others learn what.

    save_every: seconds after which steps that no checkpoint holds yet get one, validation's time included; 0: never.
    keep: how many of the rounds' checkpoints to keep besides the best one; None: all.
    """

    def __init__(self, ms: 'ModelState', run: Run, save_every: float, keep: int | None) -> None:
        self.ms, self.run, self.save_every, self.keep = ms, run, save_every, keep
        self.history = History(ms.workdir.path / history.FILE)
        self.last = self.flushed = time.monotonic()
        self.start = self.last - ms.model.seconds
        self.losses = []            # of the steps that no checkpoint holds yet
        # Why the last checkpoint, or rows of the history, could not be written.
        self.error: Exception | None = None
        self.historyerror: Exception | None = None

    def addstep(self, loss: float, *rest: float, place: tuple) -> None:
        """A step's row of the history; place: updates, epoch, position and characters behind it."""
        self.losses.append(loss)
        self._add('step', place, loss, *rest)

    def addvalidation(self, loss: float, learnrate: float | None) -> None:
        """A validation's row of the history, where the network stands now."""
        model = self.ms.model
        self._add('validation', (model.updates, model.epoch, model.pos, model.characters), loss, learnrate)

    def _add(self, kind, place, *values):
        model, now = self.ms.model, time.monotonic()
        model.seconds = now - self.start
        if not cluster.isfirst():
            return
        self.history.add(kind, *place, *values, seconds=model.seconds)
        if now - self.flushed > FLUSH_EVERY:
            self.flush()

    def flush(self, sync: bool = False) -> None:
        """Write the history's rows; where the disk refuses, they wait for the next time."""
        self.flushed = time.monotonic()
        try:
            self.ms.workdir.statefile()         # none: an empty directory in the model's place, as where a disk is unplugged
            self.history.flush(sync)
            self.historyerror = None
        except (OSError, WorkDirError) as error:
            if self.historyerror is None:
                report.warn(f'The history could not be written ({reason(error)}): training goes on, and its rows wait in memory until it '
                            'ends.')
            self.historyerror = error

    @property
    def isdue(self) -> bool:
        """Whether the last checkpoint is `save_every` seconds old and steps were made since."""
        return bool(self.save_every and self.losses and time.monotonic() - self.last >= self.save_every)

    def write(self, loss: float, losskind: str, **facts: object) -> Checkpoint | None:
        """Write a checkpoint of the network as it is; the Checkpoint, or None where the disk refused."""
        if not cluster.isshared():
            return self._write(loss, losskind, **facts)
        self.ms.model.gather()
        checkpoint = saving.received(cluster.first(lambda: saving.sent(self._write(loss, losskind, **facts))))
        if checkpoint and not cluster.isfirst():
            self.ms.checkpoint, self.losses = checkpoint, []
        self.last = time.monotonic()
        return checkpoint

    def _write(self, loss, losskind, **facts):
        self.flush(sync=True)
        try:
            checkpoint = self._written(loss, losskind, run=self.run.facts(), **facts)
        except (OSError, MemoryError, WorkDirError) as error:
            self.error = error
            report.warn(f'The checkpoint could not be written ({reason(error)}): nothing is lost, the network stays in memory, and the '
                       'next checkpoint tries again.')
            return None
        finally:
            self.last = time.monotonic()
        self.losses, self.error = [], None
        if self.keep is not None:
            with contextlib.suppress(OSError):      # the next checkpoint tries again
                self.ms.workdir.prune(self.keep)
        return checkpoint

    def _written(self, *facts, **more):
        """What `saving.write` gives; on a full disk it is asked again when older checkpoints have made room, if any may."""
        try:
            return saving.write(self.ms, *facts, **more)
        except OSError as error:
            if not self._makeroom(error):
                raise
        return saving.write(self.ms, *facts, **more)

    def _makeroom(self, error):
        """Whether, where the disk is full, checkpoints were removed that `keep` doesn't keep behind the next one."""
        if self.keep is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return False
        with contextlib.suppress(OSError):
            gone = self.ms.workdir.makeroom(self.keep, self.ms.checkpoint and self.ms.checkpoint.name)
            if gone:
                report.say(f'The disk is full: {counted(gone, "older checkpoint")} made room for the next one (keep={self.keep}).')
            return gone > 0
        return False

    def writetraining(self) -> Checkpoint | None:
        """Write one without a validation: its loss is the mean training loss of the steps since the last checkpoint."""
        return self.write(float(np.mean(self.losses)), 'training')

    def close(self) -> None:
        """At the training's end: CheckpointError where the last checkpoint could not be written."""
        if self.error:
            step = f'batchsize={self.ms.model.get_state().shape[1]}, train_len=1{"" if self.ms.heldout else ", valid_len=1"}'
            raise CheckpointError(f"the last checkpoint could not be written to '{self.ms.workdir.path}' ({reason(self.error)}): "
                                  'the trained network is in memory only, so make room and train on, if only for a step, as in '
                                  f'ms.trainmodel({step})') from self.error


class Control:
    """What a person and a clock ask of a training between its steps."""

    def __init__(self, interrupts: 'Interrupts', saver: Saver) -> None:
        self.interrupts, self.saver, self.meetings = interrupts, saver, cluster.Meetings()
        self._stop = False

    @property
    def stop(self) -> bool:
        """Whether to stop, for a Ctrl-C: of several processes, in any of them, and known to all."""
        return self._stop if cluster.isshared() else self.interrupts.asked

    def behind(self, settle: Callable[[], None] = lambda: None) -> None:
        """To be called behind each step, of a validation too: writes a checkpoint where one is due, behind settle()."""
        granted = self.meetings.behind(self.interrupts.asked, self.saver.isdue)
        if granted:
            self._stop, due = granted
            if due:
                settle()
                self.saver.writetraining()
