"""Trials of hyperparameters: the same short training for each setting of a grid, side by side, and which one did best.

    tryhyper        carries them out
    Trials          what it gives, a list of trial.Trial that shows itself as a table
"""

import math
import os
import pathlib
import time
import types
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import numpy as np

import native
import plot
import report
from checkpoint import WorkDir
from dataset import DataSet
from encode import checksource, survey
from errors import RNGRUError, WorkDirError, checkbool, checkint, checkpath, reason, sentence, short
from grid import GRID, RUN, settingsof
from layers import MODELTYPES
from processes import Processes
from report import counted
from run import requested
from storage import filechecksum
from train import Interrupts
from trial import Trial, runtrial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = 'trials.png'
BLAS = 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'         # what NumPy's products go by


def tryhyper(srcfile: str | os.PathLike, workdir: str | os.PathLike, grid: dict | list, *, workers: int | None = None,
             threads: int | None = None, executor: Executor | None = None, verbose: bool = True, **fixed: Any) -> 'Trials':
    """Train a model for each setting of a grid, several at a time, and tell
    which did best; the Trials.

        trials = tryhyper('book.txt', 'tries',
                          {'learnrate': [0.001, 0.004], 'layers': [1, 2]},
                          optimizer='adam', state_size=128, train_len=500)
        trials                  # the table, lowest validation loss first
        ms = trials.best.load()         # a ModelState, to go on from
        trials.plot()

    srcfile   path of the text
    workdir   a directory, made if there is none; each setting gets a
              model's working directory in it, called by what is in the
              grid: 'layers=2,learnrate=0.004'
    grid      a dict of name -> list of values, all combinations of which
              are tried, or a list of dicts of name -> value, each a
              setting. Names are HyperParams' fields; modeltype, seq_len,
              seed; and trainmodel's num_rounds, batchsize, train_len,
              minutes, schedule, warmup, end_learnrate, patience
    workers   how many run at a time, each in a process of its own; None:
              as many as there are settings and cores
    threads   of each; None: its share of the cores (of RN_GRU_THREADS,
              where that is set)
    executor  a concurrent.futures executor to run them in place of our
              processes, such as a cluster's, whose machines see the same
              directories by the same paths; it is left open
    verbose   False: say nothing
    **fixed   the same names, for all settings alike, and encoding,
              save_every, keep

    All have seed 1 and hold out the last tenth of the text (valid_frac
    0.1), unless it is said otherwise. They compute on the processor; the
    best may train on elsewhere (trials.best.load() and
    trainmodel(device='cuda')). The bits are those of the same
    training alone.
    Called again, it reads the trials that are done, finishes those that
    were broken off, and begins those that are new to the grid. One that
    diverges, finds no memory or is killed is told in the table and ends
    no other. Ctrl-C stops all after the step in hand, with checkpoints
    written (of an executor's, those not yet begun); a second one at once.
    The curves of the best trials are drawn to trials.png in `workdir`,
    where matplotlib is installed.
    Raises, before anything is written: TypeError or ValueError for a
    wrong name or value, WorkDirError where `workdir` is a model's or a
    trial in it had the same name but another text or setting, and what
    initfromsrcfile raises for a text.
    """
    srcfile, directory = os.path.abspath(checkpath('srcfile', srcfile)), WorkDir(checkpath('workdir', workdir))
    workers = None if workers is None else checkint('workers', workers, 1)
    native.checkthreads(threads)
    native.checkkernels()
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, 'submit', None))):
        raise TypeError(f'executor takes a concurrent.futures executor, such as ProcessPoolExecutor(4), got {short(executor)}')
    if executor is not None and workers is not None:
        raise ValueError(f'workers={workers} does nothing with an executor, which has its own: leave one of them out')
    verbose = checkbool('verbose', verbose)
    settings, fixed = settingsof(grid, fixed)
    checksource(srcfile, fixed.get('encoding'))
    checksum = filechecksum(srcfile)
    trials = Trials([Trial(directory.path, setting, fixed, checksum) for setting in settings], directory.path)
    _checkdirectory(directory)
    for trial in trials:
        trial.read()
    left = [trial for trial in trials if not trial.isended]
    if left:
        _checktext(left, srcfile, fixed)
    with report.quiet(not verbose):
        if left:
            directory.make()
            _carryout(left, srcfile, fixed, workers, threads, executor)
            _draw(trials)
        trials.sort(key=Trial.rank)
        report.say(f'{trials!r}')
        if any(trial.state in ('interrupted', 'waiting') for trial in trials):
            report.say('The same call finishes those that are not done.')
    return trials


def _checkdirectory(directory):
    """WorkDirError where trials can't be kept in this WorkDir."""
    if os.path.isfile(directory.path):
        raise WorkDirError(f"'{directory.path}' is a file: name a directory for the trials")
    try:
        found = os.listdir(directory.path)
    except FileNotFoundError:
        return
    except OSError as error:                    # too long a name, or below a file
        raise WorkDirError(f"'{directory.path}' cannot be used for the trials ({reason(error)}): name another directory") from error
    if any(name.endswith('-state.p') for name in found):
        raise WorkDirError(f"'{directory.path}' is the directory of a model: name another one for the trials")


def _checktext(trials, srcfile, fixed):
    """Refuse what a trial's training would, for this text; sets each one's `steps`."""
    charset, numchars, _ = survey(srcfile, fixed.get('encoding'))
    for trial in trials:
        full, hyper = trial.full, trial.hyper
        numseqs = -(-numchars // full['seq_len'])
        codes = np.broadcast_to(np.uint8(0), numseqs * full['seq_len'] + 1)         # of the text's shape, and of no size
        data, heldout = DataSet(codes, numchars, full['seq_len']).split(hyper.valid_frac)
        asked = {name: full[name] for name in RUN}
        run, seconds = requested(types.SimpleNamespace(hyper=hyper, data=data, heldout=heldout), asked)
        MODELTYPES[full['modeltype']].checkmemory(len(charset), hyper.layers, hyper.state_size, run.batchsize, full['seq_len'], hyper)
        trial.steps = 0 if seconds else run.steps


# --- Carrying them out ----------------------------------------------------------------------------------------------------

def shares(count: int, workers: int | None = None, threads: int | None = None) -> tuple[int, int]:
    """(workers, threads of each) for so many trials: as asked, or all cores, in equal parts."""
    cores = native.checkthreads(None) or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
    workers = min(workers or cores, count)
    return workers, threads or max(1, min(cores // workers, native.MAXTHREADS))


def _carryout(trials, srcfile, fixed, workers, threads, executor):
    own = executor is None
    if own:
        workers, threads = shares(len(trials), workers, threads)
        native.library()                        # compiled once, if need be, and not by each
        executor = Processes(workers, {name: str(threads) for name in BLAS if name not in os.environ})
        report.say(f'{counted(len(trials), "trial")}, {workers} at a time, {counted(threads, "thread")} each.')
    monitor, left = Monitor(trials), {}
    try:
        with Interrupts() as interrupts:
            for trial in trials:
                if interrupts.asked:
                    break
                try:
                    future = executor.submit(runtrial, trial.task(srcfile, fixed, threads))
                except RuntimeError as error:   # shut down, or broken by another trial
                    monitor.ended(trial, {'why': f'it could not be begun ({reason(error)})'})
                    continue
                left[future] = trial
                if future.done() and _result(future).get('isinterrupted'):         # it ran right here, and so did Ctrl-C
                    interrupts.asked = True
            isstopped = False
            while left:
                for future in [future for future in left if future.done()]:
                    monitor.ended(left.pop(future), _result(future))
                if interrupts.asked and not isstopped:
                    isstopped = True
                    for future in left:
                        future.cancel()
                    if own:
                        executor.stop()
                if left:
                    monitor.look()
                    time.sleep(0.05)
    finally:
        monitor.close()
        for future in left:
            future.cancel()
        if own:
            executor.kill()
            executor.shutdown()


def _result(future):
    """What `runtrial` gave, or the same for what came instead."""
    if future.cancelled():
        return {}
    error = future.exception()
    if error is None:
        return future.result()
    return {'isinterrupted': True} if isinstance(error, KeyboardInterrupt) else {'why': sentence(error)}


class Monitor:
    """Shows how far the trials under way are, by the ends of their histories, and tells how each ended."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials, self.count, self.before = list(trials), 0, time.monotonic()
        self.done = {trial: min(trial.latest()[0], trial.steps) for trial in trials}
        self.progress, total = None, sum(trial.steps for trial in trials) - sum(self.done.values())
        if total > 0 and all(trial.steps for trial in trials):         # else they go by time
            self.progress = report.Progress(counted(len(trials), 'trial'), total, round(np.mean([
                trial.full['batchsize'] * trial.full['seq_len'] for trial in trials])))

    def look(self) -> None:
        """At most once in a second."""
        if self.progress and time.monotonic() - self.before > 1:
            self.before, count, losses = time.monotonic(), 0, []
            for trial in self.trials:
                updates, loss = trial.latest()
                updates = max(min(updates, trial.steps), self.done[trial])      # fewer, where some are made again
                count, self.done[trial] = count + updates - self.done[trial], updates
                losses += [loss] * math.isfinite(loss)
            if count:
                self.progress.step(min(losses, default=math.nan), count)

    def ended(self, trial: Trial, result: dict) -> None:
        """This trial came to an end, with what `runtrial` gave."""
        why = result.get('why')
        try:
            trial.read()
        except (OSError, RNGRUError) as error:
            why = why or sentence(error)
        if why and not trial.isended:
            trial.state, trial.why = 'failed', why
        for text in result.get('warnings', ()):
            report.warn(f'{trial.name}: {text}')
        if trial.state != 'waiting':
            self.count += 1
            report.say(f'{self.count}/{len(self.trials)} {trial.name}: {trial.state}' + (
                f', {trial.why}' if trial.why else f', validation loss {_lossof(trial)} nats/char' if math.isfinite(trial.loss) else ''))

    def close(self) -> None:
        """Take the progress bar away."""
        if self.progress:
            self.progress.close()


# --- What comes of them ---------------------------------------------------------------------------------------------------

class Trials(list[Trial]):
    """The Trials of a grid, the lowest validation loss first: a list that
    shows itself as a table."""

    def __init__(self, trials: Iterable[Trial], workdir: pathlib.Path) -> None:
        """workdir: the path of the directory that theirs are in."""
        super().__init__(trials)
        self.workdir = workdir

    @property
    def best(self) -> Trial | None:
        """The Trial that is done with the lowest validation loss, or None."""
        return min((trial for trial in self if trial.state == 'done'), key=Trial.rank, default=None)

    def plot(self, path: str | os.PathLike | None = None, *, most: int = 7, logx: bool = False) -> 'Figure':
        """Draw the training and validation losses of the `most` best trials: see
        plot.plot; the matplotlib Figure.

        path  a .png, .svg or .pdf file to write; None: show it

        Left out are those that are worse than they began: their losses would
        flatten the others.
        """
        drawn = []
        for trial in sorted(self, key=Trial.rank):
            table = trial.history()
            losses = [row['loss'] for row in (table[0], table.best or table[-1])] if len(table) else []
            if losses and (losses[1] <= losses[0]) and math.isfinite(losses[0]):
                drawn.append(table)
        if not drawn:
            raise ValueError('no trial has learnt anything yet')
        return plot.plot(drawn[:checkint('most', most, 1)], path, logx=logx)

    def __repr__(self) -> str:
        if not self:
            return 'No trials.'
        values = {name: [trial.setting.get(name, trial.full[name]) for trial in self] for name in GRID
                  if any(name in trial.setting for trial in self)}
        varying = {name: column for name, column in values.items() if any(value != column[0] for value in column)}
        table = [['rank', 'loss', *varying, 'characters/s', 'state']]
        for i, trial in enumerate(self):
            table.append([f'{i + 1}' if trial.state == 'done' else '', _lossof(trial),
                          *(str(column[i]) for column in varying.values()),
                          f'{trial.rate:,.0f}' if math.isfinite(trial.rate) else '', trial.state])
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ['  '.join([cell.rjust(width) for cell, width in zip(row[:-1], widths)] + row[-1:]) for row in table]
        lines.append('Loss of the last validation, in nats/char.')
        lines += [f'{trial.name}: {trial.why}' for trial in self if trial.why]
        if self.best:
            lines.append(f"The best is in '{self.best.workdir}'.")
        return '\n'.join(lines)


def _lossof(trial: Trial) -> str:
    """A Trial's loss in a few characters, '' where there is none."""
    return '' if not math.isfinite(trial.loss) else f'{trial.loss:.4f}' if abs(trial.loss) < 1e6 else f'{trial.loss:.4g}'


def _draw(trials):
    """Write the picture of the best trials, where that can be done."""
    path = trials.workdir / PICTURE
    try:
        trials.plot(path)
    except (ImportError, ValueError):           # no matplotlib, or nothing to draw
        return
    except (OSError, WorkDirError) as error:
        report.warn(f'The picture {path} could not be written ({reason(error)}).')
    else:
        report.say(f'The learning curves are in {path}')

