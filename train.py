"""The training loop: rounds of steps, samples on the way, validation, history, checkpoints, and a Ctrl-C that loses nothing."""

import contextlib
import errno
import math
import signal
import threading
import time

import numpy as np

import cluster
import history
import reading
import report
import saving
from advice import Advisor
from errors import CheckpointError, WorkDirError, reason
from generate import Stream
from history import History
from run import Run, planned

SAMPLE_CHARS, SAMPLE_TEMP = 100, 0.5        # of the texts printed while training
FLUSH_EVERY = 5                             # seconds, of the history
MEASURE = 1.5                               # seconds, before a run that is planned by time


class Interrupts:
    """Within the `with` block the first Ctrl-C only sets `asked`; a second one raises KeyboardInterrupt at once."""

    asked = False

    def __enter__(self):
        self.before = None
        if threading.current_thread() is threading.main_thread():       # elsewhere Python allows no handlers
            self.before = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, signum, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(RuntimeError):         # it came while the progress bar was being written
            report.say('\nCtrl-C: stopping after this step (again: at once) ...')

    def __exit__(self, *exception):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


class Saver:
    """Writes the history and the checkpoints of one training; where the disk refuses, it says so and training goes on in memory.

    Of several processes (`cluster`) it is process 0 that writes, and the others learn what.

    save_every: seconds after which steps that no checkpoint holds yet get one, validation's time included; 0: never.
    keep: how many of the rounds' checkpoints to keep besides the best one; None: all.
    """

    def __init__(self, ms, run, save_every, keep):
        self.ms, self.run, self.save_every, self.keep = ms, run, save_every, keep
        self.history = History(ms.workdir.path / history.FILE)
        self.last = self.flushed = time.monotonic()
        self.start = self.last - ms.model.seconds
        self.losses = []            # of the steps that no checkpoint holds yet
        self.error = self.historyerror = None           # why the last checkpoint, or rows of the history, could not be written

    def add(self, kind, loss, *rest, **columns):
        """A row of the history, where the network stands now."""
        model, now = self.ms.model, time.monotonic()
        model.seconds = now - self.start
        if not cluster.isfirst():
            return
        self.history.add(kind, model.updates, model.epoch, model.pos, model.characters, loss, *rest, seconds=model.seconds, **columns)
        if now - self.flushed > FLUSH_EVERY:
            self.flush()

    def flush(self, sync=False):
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
    def isdue(self):
        """Whether the last checkpoint is `save_every` seconds old and steps were made since."""
        return bool(self.save_every and self.losses and time.monotonic() - self.last >= self.save_every)

    def write(self, loss, losskind, **facts):
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

    def writetraining(self):
        """Write one without a validation: its loss is the mean training loss of the steps since the last checkpoint."""
        return self.write(float(np.mean(self.losses)), 'training')

    def close(self):
        """At the training's end: CheckpointError where the last checkpoint could not be written."""
        if self.error:
            step = f'batchsize={self.ms.model.get_state().shape[1]}, train_len=1{"" if self.ms.heldout else ", valid_len=1"}'
            raise CheckpointError(f"the last checkpoint could not be written to '{self.ms.workdir.path}' ({reason(self.error)}): "
                                  'the trained network is in memory only, so make room and train on, if only for a step, as in '
                                  f'ms.trainmodel({step})') from self.error


class Control:
    """What a person and a clock ask of a training between its steps."""

    def __init__(self, interrupts, saver):
        self.interrupts, self.saver, self.meetings = interrupts, saver, cluster.Meetings()
        self._stop = False

    @property
    def stop(self):
        """Whether to stop, for a Ctrl-C: of several processes, in any of them, and known to all."""
        return self._stop if cluster.isshared() else self.interrupts.asked

    def behind(self):
        """To be called behind each step, of a validation too: writes a checkpoint where one is due."""
        granted = self.meetings.behind(self.interrupts.asked, self.saver.isdue)
        if granted:
            self._stop, due = granted
            if due:
                self.saver.writetraining()


def train(ms, run, seconds, clear_state, print_every, save_every, keep, watch=None):
    """Carry out `run`; seconds: what it may take, compilation included, where it is still to be planned, else None.

    The other arguments are `ModelState.trainmodel`'s, checked.
    """
    start = time.monotonic()
    model, data, hyper = ms.model, ms.data, ms.hyper
    model.prepare(hyper)
    model.read(None)
    # Compiled before anything changes, and so that the progress bar starts with the first step.
    model.trainstep, model.evaluate
    if print_every and cluster.isfirst():
        model.sampletext
    watched = None
    if watch and report.verbose:
        model.allstates
        watched = reading.Watched(ms, watch)
    if seconds is not None:
        measured = _measure(ms, run.batchsize)
        asked = run

        def plan():
            return planned(asked, start + seconds - time.monotonic(), *measured)
        run = Run(**cluster.first(lambda: plan().facts())) if cluster.isshared() else plan()
    epochsteps = data.batchepoch(run.batchsize)
    _placestate(model, run.batchsize, clear_state)
    newest = ms.workdir.scan()[0][-1:] if cluster.isfirst() else []
    if newest and newest[0].counter > (ms.checkpoint.counter if ms.checkpoint else 0):
        report.say(f'Going on from {ms.checkpoint.name if ms.checkpoint else "the first parameters"}, though the directory holds a newer '
                   f'checkpoint, {newest[0].name}.')
    _heading(ms, run, epochsteps)
    if watched:
        report.say(watched.line())
    saver = Saver(ms, run, save_every, keep)
    try:
        with Interrupts() as interrupts:
            _rounds(ms, run, print_every, epochsteps, Control(interrupts, saver), saver, watched)
    except (KeyboardInterrupt, FloatingPointError):
        # In mid-step or diverged: what is in memory is no state to go on from. The next use reads the last checkpoint.
        vars(ms).pop('model', None)
        report.say('The model is back at its last checkpoint.' if ms.checkpoint else 'The model is back at its first parameters.')
        raise
    finally:
        saver.flush()
    saver.close()


def _heading(ms, run, epochsteps):
    """Say what comes."""
    validation = (f'validation on the {ms.heldout.numchars:,} characters held out' if ms.heldout
                  else f'validation on the {counted(run.valid_len, "step")} behind each')
    dear = not ms.heldout and run.valid_len == epochsteps
    schedule = '' if run.schedule == 'constant' and not run.warmup else (
        f'\nLearning rate {ms.hyper.learnrate:g}, {run.schedule}'
        + (f' to {run.end_learnrate:g}' if run.schedule != 'constant' else '')
        + (f', after {counted(run.warmup, "step")} of warm-up' if run.warmup else '') + '.')
    left = (f'{counted(run.rounds, "round")} of {counted(run.train_len, "step")}' if not run.done
            else f'{run.steps - run.done:,} of {counted(run.steps, "step")} left')
    report.say(f'{ms._describe()}.\n'
               f'{epochsteps:,} steps of {run.batchsize} x {ms.data.seq_len} characters in an epoch; {ms.device.describe()}.\n'
               f'{left} from epoch {ms.model.epoch}, position {ms.model.pos},\nwith {validation}'
               + (', which take about a third of an epoch\'s training time (valid_len makes it shorter).' if dear else '.') + schedule)


def _rounds(ms, run, print_every, epochsteps, control, saver, watched=None):
    before = (ms.checkpoint.kind, ms.checkpoint.loss) if ms.checkpoint is not None else ('', math.nan)
    advisor = Advisor(ms, run)
    while not run.isover:
        title = f'Round {run.validated + 1}/{run.rounds}'
        progress = report.Progress(title, run.left, run.batchsize * ms.data.seq_len)
        losses = []
        try:
            while run.left and not control.stop:
                if print_every and run.done % print_every == 0:
                    _printsample(ms, run.done)
                losses.append(_step(ms, run, epochsteps, saver, control, advisor))
                progress.step(np.mean(losses[-100:]))
        finally:
            progress.close()
        loss = None if control.stop else _validate(ms, run, epochsteps, control, title)
        if control.stop:
            stopped = f'Stopped in round {run.validated + 1}, after {counted(run.round - run.left, "step")} of {run.round:,}'
            howon = '\nresume=True (on the command line --resume) finishes the run.' if run.done else ''
            if not saver.losses:
                report.say(f'{stopped}: nothing has changed since the last checkpoint.{howon}')
            elif checkpoint := saver.writetraining():
                report.say(f'{stopped}: mean training loss {lossline(checkpoint.loss)}. Checkpoint {checkpoint.name}{howon}')
            return
        run.validate(loss)
        trainloss = float(np.mean(losses)) if losses else math.nan      # none: broken off between the last step and the validation
        saver.add('validation', loss, run.learnrate(ms.hyper.learnrate) if not run.isover else None)
        checkpoint = saver.write(loss, 'validation', trainloss=trainloss)
        report.say(f'{title}: validation loss {lossline(loss)}{_change(*before, loss)}'
                   + (f'; training loss {trainloss:.4f}, at the end {np.mean(losses[-100:]):.4f}.' if losses else '.')
                   + (f' Checkpoint {checkpoint.name}' if checkpoint else ''))
        if watched:
            report.say(watched.line())
        if advice := advisor.round(loss, losses):
            report.say(advice)
        before = 'validation', loss
    if run.bestlast:
        if cluster.isfirst():
            with cluster.alone():
                _endonbest(ms, run, saver)
        saving.agree(ms)


def _endonbest(ms, run, saver):
    """Go back to the best checkpoint, where that is not the one in memory, and make it the latest."""
    if run.validated < run.rounds:
        report.say(f'Stopped early: {counted(run.since, "validation")} in a row brought no lower loss.')
    best = ms.workdir.scan()[0].best
    if best is None or saver.error or best.name == ms.checkpoint.name:
        return
    before = ms.hyper.facts()
    try:
        saving.filled(ms, best.name, ms.model)
    except (OSError, WorkDirError) as error:
        report.warn(f'The best checkpoint could not be read ({reason(error)}): the model stays as it was last.')
        return
    checkpoint = saver.write(best.loss, 'validation', copyof=best.name)
    report.say(f'Ended on the best checkpoint, {best.name}: validation loss {lossline(best.loss)}.'
               + (f' Its copy {checkpoint.name} is the latest now.' if checkpoint else ''))
    if back := ', '.join(f'{name}={value}' for name, value in ms.hyper.facts().items() if value != before[name]):
        report.say(f'With it come the hyperparameters that it was trained with: {back}.')


def _change(kind, before, loss):
    """How the validation loss has changed since the one before, if there was one or an untrained loss."""
    if kind not in ('validation', 'untrained'):
        return ''
    return f', {abs(loss - before):.4f} {"less" if loss <= before else "more"} than before{" training" * (kind == "untrained")}'


def counted(number, thing):
    """'3 rounds', '1 round'."""
    return f'{number:,} {thing}{"s" * (number != 1)}'


def lossline(loss):
    """'1.5432 nats/char (2.2264 bits)'."""
    return f'{loss:.4f} nats/char ({loss / math.log(2):.4f} bits)'


def advance(pos, epoch, epochsteps):
    """(pos, epoch) behind one step. Where pos is 0, states are to be `rolled` before the next one."""
    return (pos + 1, epoch) if pos + 1 < epochsteps else (0, epoch + 1)


def rolled(state):
    """States, a list of arrays (B, H) or their stack, at an epoch's end: row i goes on where row i - 1 stopped, so that each walks through
    the whole text."""
    return np.roll(state, 1, axis=-2)


def _placestate(model, batchsize, clear_state):
    """Make the model's hidden state fit the batch: another batch size starts from zero, at the epoch's beginning."""
    L, B, H = model.get_state().shape
    if B != batchsize:
        if model.pos:
            report.say(f'The stored state belongs to batches of {B}: starting epoch {model.epoch} again at position 0 with batches of '
                       f'{batchsize} and a zero state.')
        elif model.epoch:
            report.say(f'The stored state belongs to batches of {B}: starting with batches of {batchsize} from a zero state.')
        model.pos = 0
    if B != batchsize or clear_state:
        model.set_state(np.zeros((L, batchsize, H), np.float32))


def _step(ms, run, epochsteps, saver, control, advisor):
    """One step; the loss before its update, nats per character."""
    model, batch = ms.model, ms.data.batch(ms.model.pos, run.batchsize)
    learnrate, start = run.learnrate(ms.hyper.learnrate), time.perf_counter()
    loss, gradnorm, clipped = model.trainstep(*batch, ms.hyper, learnrate)
    if not math.isfinite(loss):
        raise FloatingPointError(saving.diverged(ms))
    model.pos, model.epoch = advance(model.pos, model.epoch, epochsteps)
    if not model.pos:
        model.set_state(rolled(model.get_state()))
    model.characters += batch[0].size
    run.done += 1
    saver.add('step', loss, learnrate, gradnorm, clipped, batch[0].size / (time.perf_counter() - start))
    saver.losses.append(loss)
    control.behind()
    advisor.step(loss, clipped, learnrate)
    return loss


def _validate(ms, run, epochsteps, control, title):
    """Mean validation loss, which changes nothing of where the training stands; None if interrupted.

    Of the held-out part, all of it from a zero state; where there is none, over the next `valid_len` steps, from the current state.
    """
    steps = ms.heldout.numsteps(run.batchsize) if ms.heldout else run.valid_len
    unit = (ms.heldout.rows(run.batchsize) if ms.heldout else run.batchsize) * ms.data.seq_len
    progress = report.Progress(f'{title}, validation', steps, unit)
    try:
        for loss in _losses(ms, run, epochsteps):
            progress.step(loss)
            control.behind()
            if control.stop:
                return None
    finally:
        progress.close()
    return cluster.first(lambda: loss)


def _losses(ms, run, epochsteps):
    """Yields the mean validation loss so far, step by step."""
    model = ms.model
    if ms.heldout:
        yield from ms.heldout.losses(model.evaluate, run.batchsize, model.layers, model.state_size)
        return
    pos, epoch, state, total = model.pos, model.epoch, model.get_state(), 0.0
    for i in range(run.valid_len):
        loss, state = model.evaluate(*ms.data.batch(pos, run.batchsize), state)
        pos, epoch = advance(pos, epoch, epochsteps)
        state = state if pos else rolled(state)
        total += loss
        yield total / (i + 1)


def _measure(ms, batchsize):
    """(seconds a step, seconds a validation, its steps), from some steps that are taken back: nothing changes but the time."""
    model, hyper = ms.model, ms.hyper
    arrays, counts = model.arrays(), (model.updates, model.cacheupdates)
    model.set_state(np.zeros((model.layers, batchsize, model.state_size), np.float32))
    state = model.get_state()
    try:
        step = _seconds(lambda: model.trainstep(*ms.data.batch(0, batchsize), hyper), MEASURE)
        validation = _seconds(lambda: model.evaluate(*ms.data.batch(0, batchsize), state), MEASURE / 5)
    finally:
        model.set_arrays(arrays, hyper, *counts)
    count = ms.heldout.numsteps(batchsize) if ms.heldout else ms.data.batchepoch(batchsize)
    return step, count * validation, count


def _seconds(work, atleast):
    """Mean seconds of work(), carried out for so many seconds, as steps are: one behind the other, caches and threads warm."""
    work(), work()
    start, done = time.perf_counter(), 0
    while done < 2 or cluster.first(lambda: time.perf_counter() - start < atleast):
        for _ in range(max(done, 1) if cluster.isshared() else 1):      # to ask process 0 takes a while
            work()
            done += 1
    return (time.perf_counter() - start) / done


def _printsample(ms, step):
    if report.verbose:
        seed = np.random.SeedSequence(ms.seed, spawn_key=(1, ms.model.epoch, ms.model.pos))
        text = ''.join(Stream(ms, SAMPLE_CHARS, SAMPLE_TEMP, seed))
        report.say(f'--- sample at step {step:,} ---\n{text}\n---')
