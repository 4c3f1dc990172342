"""The training loop: rounds of steps, samples on the way, validation, history, checkpoints, and a Ctrl-C that loses nothing."""

import contextlib
import math
import signal
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

import cluster
import device as places
import native
import reading
import report
import saving
from advice import Advisor
from errors import CheckpointError, WorkDirError, checkbool, checkint, checkreal, checktext, reason
from generate import Stream
from layers import MODELTYPES
from lock import trainlock
from report import counted, lossline
from run import Run, planned, requested, resumed
from saver import Control, Saver

if TYPE_CHECKING:
    from model import ModelState

SAMPLE_CHARS, SAMPLE_TEMP = 100, 0.5        # of the texts printed while training
MEASURE = 1.5                               # seconds, before a run that is planned by time
REPLAN = 1 / 16, 1 / 4, 1 / 2, 3 / 4, 7 / 8     # of its time: when they are over, it is planned again


class Interrupts:
    """Within the `with` block the first Ctrl-C only sets `asked`; a second one raises KeyboardInterrupt at once."""

    asked = False

    def __enter__(self) -> Self:
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

    def __exit__(self, *exception: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def train(ms: 'ModelState', asked: dict, resume: bool, print_every: int, save_every: float, keep: int | None, watch: str | None,
          device: str | None, devices: int | str | None, threads: int | None, verbose: bool) -> None:
    """What `ModelState.trainmodel` does; asked: a dict of those of its arguments that say what the run is, which `run` checks.

    Of several processes (`cluster`) process 0 checks, locks the directory and tells the others what the run is.
    """
    print_every = checkint('print_every', print_every)
    save_every, keep = checkreal('save_every', save_every, 0), None if keep is None else checkint('keep', keep, 1)
    watch = None if watch is None else checktext('watch', watch)
    native.checkthreads(threads)
    native.checkkernels()
    clear_state, verbose = checkbool('clear_state', asked['clear_state']), checkbool('verbose', verbose)
    place = places.chosen(device, ms.device, 'all' if devices is None and device != 'cpu' and cluster.count > 1 else devices)
    cluster.checkdevices(place)
    saving.agree(ms)

    def request():
        run, seconds = (resumed if checkbool('resume', resume) else requested)(ms, asked)
        return run.facts(), seconds
    facts, seconds = cluster.first(request)
    run, hyper = Run(**facts), ms.hyper
    places.checkrows(run.batchsize, place)
    MODELTYPES[ms.modeltype].checkmemory(len(ms.charset), hyper.layers, hyper.state_size, run.batchsize, ms.seq_len, hyper)
    with report.quiet(not verbose or not cluster.isfirst()), contextlib.ExitStack() as locked:
        cluster.first(lambda: locked.enter_context(trainlock(ms.workdir.path)))
        cluster.first(ms.workdir.checkwritable)
        native.setthreads(threads)
        ms._place(place)
        with cluster.bound(FloatingPointError, CheckpointError):
            _carryout(ms, run, seconds, clear_state, print_every, save_every, keep, watch)


def _carryout(ms, run, seconds, clear_state, print_every, save_every, keep, watch):
    """Carry out `run`; seconds: what it may take, compilation included, where it is still to be planned, else None."""
    start = time.monotonic()
    model, data, hyper = ms.model, ms.data, ms.hyper
    model.prepare(hyper)
    model.read(None)
    # Compiled before anything changes, and so that the progress bar starts with the first step.
    model.trainstep, model.evaluate
    if print_every and cluster.isfirst():
        model.sampletext
    watched = pace = None
    if watch and report.verbose:
        model.allstates
        watched = reading.Watched(ms, watch)
    if seconds is not None:
        measured = _measure(ms, run.batchsize)
        asked = run

        def plan():
            return planned(asked, start + seconds - time.monotonic(), *measured)
        run = Run(**cluster.first(lambda: plan().facts())) if cluster.isshared() else plan()
        pace = Pace(run, start + seconds, measured[1] * (run.valid_len or measured[2]) / measured[2])
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
            _rounds(ms, run, print_every, epochsteps, Control(interrupts, saver), saver, watched, pace)
    except (KeyboardInterrupt, FloatingPointError, *ms.device.failures):
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


def _rounds(ms, run, print_every, epochsteps, control, saver, watched, pace):
    before = (ms.checkpoint.kind, ms.checkpoint.loss) if ms.checkpoint is not None else ('', math.nan)
    advisor = Advisor(ms, run)
    while not run.isover:
        title = _title(run)
        progress = report.Progress(title, run.left, run.batchsize * ms.data.seq_len)
        accounts = Accounts(ms, saver, advisor, progress)
        losses = accounts.losses
        try:
            while run.left and not control.stop:
                if print_every and run.done % print_every == 0:
                    accounts.settle()
                    _printsample(ms, run.done)
                accounts.enter(_step(ms, run, epochsteps))
                control.behind(accounts.settle)
                if pace and not control.stop and pace.replan():
                    title = _title(run)
                    progress.resize(title, progress.done + len(accounts.open) + run.left)
            accounts.settle()
        finally:
            progress.close()
        start = time.monotonic()
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
        if pace:
            pace.validated(time.monotonic() - start)
        trainloss = float(np.mean(losses)) if losses else math.nan      # none: broken off between the last step and the validation
        saver.addvalidation(loss, run.learnrate(ms.hyper.learnrate) if not run.isover else None)
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


def _title(run):
    return f'Round {run.validated + 1}/{run.rounds}'


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


def _advance(pos: int, epoch: int, epochsteps: int) -> tuple[int, int]:
    """(pos, epoch) behind one step. Where pos is 0, states are to be `_rolled` before the next one."""
    return (pos + 1, epoch) if pos + 1 < epochsteps else (0, epoch + 1)


def _rolled(state: np.ndarray | list[np.ndarray]) -> np.ndarray:
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


class Step(NamedTuple):
    """A step that was made. Its three numbers may still be on the way from a device: float() waits for them."""

    loss: float         # before its update, nats per character
    gradnorm: float
    clipped: float
    learnrate: float
    size: int           # characters in its batch
    start: float        # time.perf_counter() then
    batch: tuple        # epoch and position of its batch
    place: tuple        # updates, epoch, position and characters behind it


def _step(ms, run, epochsteps):
    """Make a step."""
    model, batch = ms.model, ms.data.batch(ms.model.pos, run.batchsize)
    learnrate, start, size, at = run.learnrate(ms.hyper.learnrate), time.perf_counter(), batch[0].size, (model.epoch, model.pos)
    told = model.trainstep(*batch, ms.hyper, learnrate)
    model.pos, model.epoch = _advance(model.pos, model.epoch, epochsteps)
    if not model.pos:
        model.set_state(_rolled(model.get_state()))
    model.characters += size
    run.done += 1
    return Step(*told, learnrate, size, start, at, (model.updates, model.epoch, model.pos, model.characters))


class Accounts:
    """What is kept and said of a round's steps; of each, on a device that computes by itself, while the next one is under way."""

    def __init__(self, ms: 'ModelState', saver: Saver, advisor: Advisor, progress: report.Progress) -> None:
        self.ms, self.saver, self.advisor, self.progress = ms, saver, advisor, progress
        self.losses, self.open, self.last = [], [], 0.0

    def enter(self, step: Step) -> None:
        """A step was made."""
        self.open.append(step)
        self.settle(1 if self.ms.device.runson else 0)

    def settle(self, left: int = 0) -> None:
        """Close the accounts of all steps but the last `left`."""
        while len(self.open) > left:
            step = self.open.pop(0)
            loss, gradnorm, clipped = (float(number) for number in step[:3])
            if not math.isfinite(loss):
                raise FloatingPointError(saving.diverged(self.ms, step.place[0], *step.batch))
            now = time.perf_counter()
            speed, self.last = step.size / (now - max(step.start, self.last)), now
            self.losses.append(loss)
            self.saver.addstep(loss, step.learnrate, gradnorm, clipped, speed, place=step.place)
            self.advisor.step(clipped, step.learnrate)
            self.progress.step(np.mean(self.losses[-100:]))


class Pace:
    """Keeps a run that was planned by time to that, where the machine gets slower or faster than it was when its steps were timed."""

    def __init__(self, run: Run, end: float, validationseconds: float) -> None:
        """end: time.monotonic() when it is to end; validationseconds: of one, as timed."""
        self.run, self.end, self.validationseconds = run, end, validationseconds
        self.total = max(end - time.monotonic(), 1e-9)
        self.shares, self.way = list(REPLAN), 0.0       # those to come; the share that was over at the last plan
        self.start, self.done = math.nan, 0             # since when the speed is measured, and the steps that were done then

    def validated(self, seconds: float) -> None:
        """A validation has taken so long, which is no part of the steps' speed."""
        self.validationseconds = seconds
        self.start += seconds

    def replan(self) -> bool:
        """Plan again where it is time to, by the speed of the steps since the last time; whether it was. To be asked behind each step.

        Says so where it changes the number of rounds.
        """
        if math.isnan(self.start):              # behind the first step, before which texts were printed and read
            self.start, self.done = time.monotonic(), self.run.done
        run, before = self.run, self.run.rounds
        if not self.shares or self._way() < self.shares[0]:
            return False

        def measure():
            now = time.monotonic()
            return self.end - now, now - self.start, self.validationseconds, self._time()
        left, spent, validationseconds, way = cluster.first(measure)
        if spent < MEASURE or run.done == self.done:    # too little to know better
            return False
        run.replan(left, spent / (run.done - self.done), validationseconds)
        self.shares, self.way = [share for share in self.shares if share > way], way
        self.start, self.done = time.monotonic(), run.done
        if run.rounds != before:
            report.say(f'Planned anew, at the present speed: {counted(run.rounds, "round")} in all, not {before:,}.')
        return True

    def _time(self):
        """The share of the time that is over."""
        return 1 - (self.end - time.monotonic()) / self.total

    def _way(self):
        """The same, or if more, that by which the plan would have been here; of several processes, which have clocks each, the latter."""
        planned = self.way + (1 - self.way) * (self.run.done - self.done) / max(self.run.steps - self.done, 1)
        return planned if cluster.isshared() else max(planned, self._time())


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
        pos, epoch = _advance(pos, epoch, epochsteps)
        state = state if pos else _rolled(state)
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
    """Mean seconds of work(), carried out for so many seconds, as steps are: one behind the other, caches and threads warm.

    work() gives a tuple that starts with a number; as in a training, one piece of work may be under way when the next one is begun.
    """
    work(), float(work()[0])
    start, done, before = time.perf_counter(), 0, None
    while done < 2 or cluster.first(lambda: time.perf_counter() - start < atleast):
        for _ in range(max(done, 1) if cluster.isshared() else 1):      # to ask process 0 takes a while
            number = work()[0]
            if before is not None:
                float(before)
            before, done = number, done + 1
    float(before)
    return (time.perf_counter() - start) / done


def _printsample(ms, step):
    if report.verbose:
        seed = np.random.SeedSequence(ms.seed, spawn_key=(1, ms.model.epoch, ms.model.pos))
        text = ''.join(Stream(ms, SAMPLE_CHARS, SAMPLE_TEMP, seed))
        report.say(f'--- sample at step {step:,} ---\n{text}\n---', isfolded=False)
