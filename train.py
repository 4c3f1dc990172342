"""The training loop: rounds of steps, samples on the way, validation, checkpoints, and a Ctrl-C that loses nothing."""

import contextlib
import math
import signal
import threading
import time

import numpy as np

import native
import report
from errors import CheckpointError, WorkDirError, reason

SAMPLE_CHARS, SAMPLE_TEMP = 100, 0.5        # of the texts printed while training


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
    """Writes the checkpoints of one training; where the disk refuses, it says so and training goes on in memory.

    save_every: seconds after which steps that no checkpoint holds yet get one, validation's time included; 0: never.
    keep: how many of the rounds' checkpoints to keep besides the best one; None: all.
    """

    def __init__(self, ms, save_every, keep):
        self.ms, self.save_every, self.keep = ms, save_every, keep
        self.last = time.monotonic()
        self.losses = []            # of the steps that no checkpoint holds yet
        self.error = None           # why the last checkpoint could not be written

    def step(self, loss):
        """A step of training is done; its loss."""
        self.losses.append(loss)
        self.saveifdue()

    def saveifdue(self):
        """Write a checkpoint where the last one is `save_every` seconds old and steps were made since."""
        if self.save_every and self.losses and time.monotonic() - self.last >= self.save_every:
            self.writetraining()

    def write(self, loss, losskind, **facts):
        """Write a checkpoint of the network as it is; the Checkpoint, or None where the disk refused."""
        try:
            checkpoint = self.ms._writecheckpoint(loss, losskind, **facts)
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

    def writetraining(self):
        """Write one without a validation: its loss is the mean training loss of the steps since the last checkpoint."""
        return self.write(float(np.mean(self.losses)), 'training')

    def close(self):
        """At the training's end: CheckpointError where the last checkpoint could not be written."""
        if self.error:
            batchsize = self.ms.model.get_state().shape[1]
            raise CheckpointError(f"the last checkpoint could not be written to '{self.ms.workdir.path}' ({reason(self.error)}): the trained "
                                  'network is in memory only, so make room and train on, if only for a step, as in '
                                  f'ms.trainmodel(batchsize={batchsize}, train_len=1, valid_len=1)') from self.error


def train(ms, num_rounds, batchsize, train_len, valid_len, print_every, clear_state, save_every, keep):
    """Carry out `ModelState.trainmodel`, whose docstring tells what the checked arguments mean."""
    model, data = ms.model, ms.data
    epochsteps = data.batchepoch(batchsize)
    train_len, valid_len = train_len or epochsteps, valid_len or epochsteps
    # Compiled before anything changes, and so that the progress bar starts with the first step.
    model.prepare(ms.hyper)
    model.trainstep, model.evaluate
    if print_every:
        model.sampletext
    _placestate(model, batchsize, clear_state)
    newest = ms.workdir.scan()[0][-1:]
    if newest and newest[0].counter > (ms.checkpoint.counter if ms.checkpoint else 0):
        report.say(f'Going on from {ms.checkpoint.name if ms.checkpoint else "the first parameters"}, though the directory holds a newer checkpoint, {newest[0].name}.')
    report.say(f'{ms._describe()}.\n{epochsteps:,} steps of {batchsize} x {data.seq_len} characters in an epoch; {native.describe()}.\n'
               f'{_count(num_rounds, "round")} of {_count(train_len, "step")} from epoch {model.epoch}, position {model.pos},\n'
               f'with validation on the {_count(valid_len, "step")} behind each'
               + (', which take about a third of an epoch\'s training time (valid_len makes it shorter).' if valid_len == epochsteps else '.'))
    saver = Saver(ms, save_every, keep)
    try:
        with Interrupts() as interrupts:
            _rounds(ms, num_rounds, batchsize, train_len, valid_len, print_every, epochsteps, interrupts, saver)
    except (KeyboardInterrupt, FloatingPointError):
        # In mid-step or diverged: what is in memory is no state to go on from. The next use reads the last checkpoint.
        vars(ms).pop('model', None)
        report.say('The model is back at its last checkpoint.' if ms.checkpoint else 'The model is back at its first parameters.')
        raise
    saver.close()


def _rounds(ms, num_rounds, batchsize, train_len, valid_len, print_every, epochsteps, interrupts, saver):
    before = (ms.checkpoint.kind, ms.checkpoint.loss) if ms.checkpoint is not None else ('', math.nan)
    steps = 0                                   # done since the call of trainmodel
    for i in range(num_rounds):
        title = f'Round {i + 1}/{num_rounds}'
        progress = report.Progress(title, train_len, batchsize * ms.data.seq_len)
        losses = []
        try:
            while len(losses) < train_len and not interrupts.asked:
                if print_every and steps % print_every == 0:
                    _printsample(ms, steps)
                losses.append(_step(ms, batchsize, epochsteps))
                steps += 1
                saver.step(losses[-1])
                progress.step(np.mean(losses[-100:]))
        finally:
            progress.close()
        loss = None if interrupts.asked else _validate(ms, batchsize, valid_len, epochsteps, interrupts, saver, title)
        if interrupts.asked:
            stopped = f'Stopped in round {i + 1}, after {_count(len(losses), "step")} of {train_len:,}'
            if not saver.losses:
                report.say(f'{stopped}: nothing has changed since the last checkpoint.')
            elif checkpoint := saver.writetraining():
                report.say(f'{stopped}: mean training loss {lossline(checkpoint.loss)}. Checkpoint {checkpoint.name}')
            return
        trainloss = float(np.mean(losses))
        checkpoint = saver.write(loss, 'validation', trainloss=trainloss)
        report.say(f'{title}: validation loss {lossline(loss)}{_change(*before, loss)}; training loss {trainloss:.4f}, at the end '
                   f'{np.mean(losses[-100:]):.4f}.' + (f' Checkpoint {checkpoint.name}' if checkpoint else ''))
        before = 'validation', loss


def _change(kind, before, loss):
    """How the validation loss has changed since the one before, if there was one or an untrained loss."""
    if kind not in ('validation', 'untrained'):
        return ''
    return f', {abs(loss - before):.4f} {"less" if loss <= before else "more"} than {"before" if kind == "validation" else "untrained"}'


def _count(number, thing):
    return f'{number:,} {thing}{"s" * (number != 1)}'


def diverged(ms):
    """The sentence for a network whose numbers are none any more."""
    return (f'the training has diverged at epoch {ms.model.epoch}, position {ms.model.pos}: go on from the last checkpoint, or '
            f'ms.restore(name) an earlier one, with a learnrate below {ms.hyper.learnrate:g}')


def lossline(loss):
    """'1.5432 nats/char (2.2264 bits)'."""
    return f'{loss:.4f} nats/char ({loss / math.log(2):.4f} bits)'


def advance(pos, epoch, state, epochsteps):
    """(pos, epoch, state) behind one step.

    At the epoch's end the rows of `state`, a list of arrays (B, H) or their stack, roll by one: row i goes on where row i - 1
    stopped, so that each walks through the whole text.
    """
    if pos + 1 < epochsteps:
        return pos + 1, epoch, state
    return 0, epoch + 1, np.roll(state, 1, axis=-2)


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


def _step(ms, batchsize, epochsteps):
    """One step; the loss before its update, nats per character."""
    model = ms.model
    loss, *_ = model.trainstep(*ms.data.batch(model.pos, batchsize), ms.hyper)
    if not math.isfinite(loss):
        raise FloatingPointError(diverged(ms))
    before = model.get_state()
    model.pos, model.epoch, state = advance(model.pos, model.epoch, before, epochsteps)
    if state is not before:
        model.set_state(state)
    return loss


def _validate(ms, batchsize, valid_len, epochsteps, interrupts, saver, title):
    """Mean loss over the next `valid_len` steps, from the current state, all of which stay as they are; None if interrupted."""
    model = ms.model
    pos, epoch, state = model.pos, model.epoch, model.get_state()
    progress = report.Progress(f'{title}, validation', valid_len, batchsize * ms.data.seq_len)
    total = 0.0
    try:
        for i in range(valid_len):
            if interrupts.asked:
                return None
            loss, state = model.evaluate(*ms.data.batch(pos, batchsize), state)
            pos, epoch, state = advance(pos, epoch, state, epochsteps)
            total += loss
            progress.step(total / (i + 1))
            saver.saveifdue()
    finally:
        progress.close()
    return total / valid_len


def _printsample(ms, step):
    if report.verbose:
        text = ms._drawtext(SAMPLE_CHARS, SAMPLE_TEMP, np.random.SeedSequence(ms.seed, spawn_key=(1, ms.model.epoch, ms.model.pos)))
        report.say(f'--- sample at step {step:,} ---\n{text}\n---')
