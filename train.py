"""The training loop: rounds of steps, samples on the way, validation, checkpoints, and a Ctrl-C that loses nothing."""

import math
import signal
import threading

import numpy as np

import native
import report

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
        report.say('\nCtrl-C: stopping after this step (again: at once) ...')

    def __exit__(self, *exception):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def train(ms, num_rounds, batchsize, train_len, valid_len, print_every, clear_state):
    """Carry out `ModelState.trainmodel`, whose docstring tells what the checked arguments mean."""
    model, data = ms.model, ms.data
    epochsteps = data.batchepoch(batchsize)
    train_len, valid_len = train_len or epochsteps, valid_len or epochsteps
    _placestate(model, batchsize, clear_state)
    report.say(f'{ms.describe()}; {epochsteps:,} steps of {batchsize} x {data.seq_len} characters in an epoch; {native.describe()}.\n'
               f'{num_rounds} round{"s" * (num_rounds != 1)} of {train_len:,} steps from epoch {model.epoch}, position {model.pos}; '
               f'validation on the {valid_len:,} steps behind each'
               + (', about a third of an epoch\'s training time (valid_len makes it shorter).' if valid_len >= epochsteps else '.'))
    model.trainstep                             # compiled now, so that the progress bar starts with the first step
    losses, printed = [], -1
    with Interrupts() as interrupts:
        for i in range(num_rounds):
            title = f'Round {i + 1}/{num_rounds}'
            progress = report.Progress(title, train_len, batchsize * data.seq_len)
            roundlosses = []
            try:
                while len(roundlosses) < train_len and not interrupts.asked:
                    if print_every and len(losses) % print_every == 0 and len(losses) != printed:
                        printed = len(losses)
                        _printsample(ms, printed)
                    loss = _step(ms, batchsize, epochsteps)
                    losses.append(loss)
                    roundlosses.append(loss)
                    progress.step(np.mean(roundlosses[-100:]))
            finally:
                progress.close()
            loss = None if interrupts.asked else _validate(ms, batchsize, valid_len, epochsteps, interrupts, title)
            if interrupts.asked:
                if roundlosses:
                    checkpoint = ms.writecheckpoint(float(np.mean(roundlosses)), 'training', batchsize)
                    report.say(f'Stopped in round {i + 1}, after {len(roundlosses):,} of its {train_len:,} steps: mean training loss '
                               f'{lossline(checkpoint.loss)}. Checkpoint {checkpoint.name}')
                else:
                    report.say(f'Stopped before the first step of round {i + 1}: nothing has changed since the last checkpoint.')
                return
            before = ms.checkpoint.loss if ms.checkpoint is not None else math.nan
            checkpoint = ms.writecheckpoint(loss, 'validation', batchsize, trainloss=float(np.mean(roundlosses)))
            change = f', {abs(loss - before):.4f} {"less" if loss <= before else "more"} than before' if math.isfinite(before) else ''
            report.say(f'{title}: validation loss {lossline(loss)}{change}; training loss {np.mean(roundlosses):.4f}. '
                       f'Checkpoint {checkpoint.name}')


def lossline(loss):
    """'1.5432 nats/char (2.2264 bits)'."""
    return f'{loss:.4f} nats/char ({loss / math.log(2):.4f} bits)'


def advance(pos, epoch, state, epochsteps):
    """(pos, epoch, state) behind one step.

    At the epoch's end the rows of `state`, an array or a list of arrays (..., B, H), roll by one: row i goes on where
    row i - 1 stopped, so that each walks through the whole text.
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
    model, hyper = ms.model, ms.hyper
    loss = model.trainstep(*ms.data.batch(model.pos, batchsize), hyper.learnrate, hyper.decay, hyper.regcost)
    rollover = model.pos + 1 == epochsteps
    model.pos, model.epoch, state = advance(model.pos, model.epoch, model.get_state() if rollover else None, epochsteps)
    if rollover:
        model.set_state(state)
    if not math.isfinite(loss):
        raise FloatingPointError(f'the loss became {loss} at epoch {model.epoch}, position {model.pos}: ms.restore() goes back to the '
                                 f'last checkpoint, and a learnrate below {hyper.learnrate:g} may hold')
    return loss


def _validate(ms, batchsize, valid_len, epochsteps, interrupts, title):
    """Mean loss over the next `valid_len` steps, from the current state, all of which stay as they are; None if interrupted."""
    model = ms.model
    pos, epoch, state = model.pos, model.epoch, model.get_state()
    progress = report.Progress(f'{title}, validation', valid_len, batchsize * ms.data.seq_len)
    losses = []
    try:
        for _ in range(valid_len):
            if interrupts.asked:
                return None
            loss, state = model.evaluate(*ms.data.batch(pos, batchsize), state)
            pos, epoch, state = advance(pos, epoch, state, epochsteps)
            losses.append(loss)
            progress.step(np.mean(losses))
    finally:
        progress.close()
    return float(np.mean(losses))


def _printsample(ms, step):
    if report.verbose:
        text = ms.drawtext(SAMPLE_CHARS, SAMPLE_TEMP, np.random.SeedSequence(ms.seed, spawn_key=(1, ms.model.epoch, ms.model.pos)))
        report.say(f'--- sample at step {step:,} ---\n{text}\n---')
