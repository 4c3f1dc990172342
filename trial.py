"""One trial of hyperparameters: a model in a working directory like any other, with one file more, trial.p: what is tried, and its end.

    Trial           what is tried, how far it is and what came of it
    runtrial        begins it, or finishes it, in a process of its own or wherever an executor has it run
"""

import math
import os
import pathlib
import threading
import warnings

import history
import report
from checkpoint import WorkDir
from errors import RNGRUError, WorkDirError, sentence, short
from grid import GRID, HYPER, RUN, nameof
from history import Table
from hyperparams import HyperParams
from model import ModelState
from run import isended
from storage import loadfacts, savefacts

FACTS = 'trial.p'

_one = threading.Lock()         # trials that an executor runs in threads of one process take turns: much there is one for all


class Trial:
    """One setting that was tried: a model in a working directory like any
    other.

    Attributes: name (of its directory), workdir (its path), setting (a
    dict of what the grid gave it), hyper (HyperParams), loss (of the last
    validation, nats per character; NaN before any), rate (characters a
    second in training), state ('done', 'interrupted', 'waiting',
    'diverged' or 'failed') and why, a sentence for the last two.
    """

    def __init__(self, directory: pathlib.Path, setting: dict, fixed: dict, checksum: str) -> None:
        """directory: the path of what all trials are in; fixed: a dict of what
        holds for all; checksum: the text's."""
        self.name, self.setting = nameof(setting), setting
        self.workdir = directory / self.name
        self.full = {**GRID, **{name: value for name, value in fixed.items() if name in GRID}, **setting}
        self.hyper = HyperParams(**{name: self.full[name] for name in HYPER})
        self.facts = {'setting': self.full, 'text': checksum, 'encoding': fixed.get('encoding')}
        self.state, self.loss, self.rate, self.why, self.steps = 'waiting', math.nan, math.nan, '', 0

    def __repr__(self) -> str:
        return f'<Trial {self.name}: {self.state}, loss {self.loss:.4f}, {str(self.workdir)!r}>'

    def load(self) -> ModelState:
        """Its model, the ModelState of its last checkpoint, to go on from."""
        return ModelState.load(self.workdir)

    def read(self) -> None:
        """Take state and loss from its directory; WorkDirError where that is of
        another trial."""
        self.state = 'waiting'
        if self.workdir.exists() and not self.workdir.is_dir():
            raise WorkDirError(f"'{self.workdir}' is a file: name another workdir for the trials")
        try:
            facts = loadfacts(self.workdir / FACTS)
        except FileNotFoundError:
            if self.workdir.is_dir() and any(name.endswith('.p') for name in os.listdir(self.workdir)):
                raise WorkDirError(f"'{self.workdir}' is no trial's directory: name another workdir for the trials") from None
            return
        if (facts.get('text'), facts.get('encoding')) != (self.facts['text'], self.facts['encoding']):
            raise WorkDirError(f"'{self.workdir}' was a trial of another text, or of an earlier state of this one: name another workdir")
        before = facts['setting'] if isinstance(facts.get('setting'), dict) else {}
        for name, value in self.full.items():
            if before.get(name, GRID[name]) != value:
                raise WorkDirError(f"'{self.workdir}' was a trial with {name}={short(before.get(name, GRID[name]))}, not "
                                   f'{short(value)}: name another workdir')
        if 'diverged' in facts:
            self.state, self.why = 'diverged', str(facts['diverged'])
        elif 'loss' in facts:
            self.state = 'done'
        else:
            self.state = 'interrupted'
            validated = [each for each in WorkDir(self.workdir).scan()[0] if each.kind == 'validation']
            facts = _achieved(validated[-1]) if validated else {}
        self.loss, seconds = float(facts.get('loss', math.nan)), facts.get('seconds', 0)
        self.rate = facts['characters'] / seconds if seconds else math.nan

    @property
    def isended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state in ('done', 'diverged')

    def history(self) -> Table:
        """Its steps and validations, a history.Table, empty before any."""
        try:
            return history.read(self.workdir)
        except FileNotFoundError:
            return history.empty()

    def latest(self) -> tuple[int, float]:
        """(updates so far, the last loss in its history), (0, NaN) before any."""
        try:
            return history.latest(self.workdir) or (0, math.nan)
        except (OSError, RNGRUError):
            return 0, math.nan

    def rank(self) -> tuple:
        """What trials are sorted by: done before not done, a lower loss before a
        higher one."""
        return self.state != 'done', math.isnan(self.loss), self.loss if math.isfinite(self.loss) else 0.0

    def task(self, srcfile: str, fixed: dict, threads: int | None) -> dict:
        """What `runtrial` takes, plain values."""
        options = {'threads': threads, **{name: fixed[name] for name in ('save_every', 'keep') if name in fixed}}
        new = {'encoding': fixed.get('encoding'), **{name: self.full[name] for name in (*HYPER, 'modeltype', 'seq_len', 'seed')}}
        # What an optimizer doesn't read may not be given.
        new = {name: value for name, value in new.items() if name not in HYPER or value != HYPER[name]}
        return {'directory': str(self.workdir), 'srcfile': srcfile, 'facts': self.facts, 'new': new, 'options': options,
                'run': {name: self.full[name] for name in RUN}}


# --- Carrying it out ----------------------------------------------------------------------------------------------------

def runtrial(task: dict) -> dict:
    """Begin a trial, or finish it: what an executor is given to call, with a task of `Trial.task`.

    Gives a dict: 'why' it failed, a sentence, or ''; 'isinterrupted', whether a Ctrl-C ended it; 'warnings', what should not go unnoticed.
    How it ended otherwise, and its loss, stand in its directory.
    """
    with _one, report.quiet(True), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', UserWarning)
        why, isinterrupted = '', False
        try:
            isinterrupted = _train(task)
        except (RNGRUError, OSError, ValueError, TypeError, LookupError, MemoryError, RuntimeError) as error:
            why = sentence(error)
    return {'why': why, 'isinterrupted': isinterrupted, 'warnings': [str(each.message) for each in caught if each.category is UserWarning]}


def _train(task):
    """Whether a Ctrl-C ended the trial's training."""
    path, options = pathlib.Path(task['directory']), {**task['options'], 'print_every': 0, 'verbose': False}
    path.mkdir(exist_ok=True)
    if not (path / FACTS).exists():
        savefacts(path / FACTS, task['facts'])
    try:
        WorkDir(path).statefile()
    except WorkDirError:                        # none yet
        ModelState.initfromsrcfile(task['srcfile'], path, verbose=False, **task['new'])
    ms = ModelState.load(path)
    begun = ms.checkpoint is not None and 'run' in ms.checkpoint.facts
    if not begun or not isended(ms.workdir, ms.checkpoint):
        try:
            ms.trainmodel(**options, **({'resume': True} if begun else task['run']))
        except FloatingPointError as error:     # the same bits would bring it about again
            savefacts(path / FACTS, {**task['facts'], 'diverged': sentence(error)})
            return False
        if 'run' not in ms.checkpoint.facts or not isended(ms.workdir, ms.checkpoint):      # no step of it was made, or not all
            return True
    savefacts(path / FACTS, {**task['facts'], **_achieved(ms.checkpoint)})
    return False


def _achieved(checkpoint):
    """What a trial has come to with this checkpoint, its last validation's, for a file and for the table."""
    return {'loss': checkpoint.loss, 'characters': checkpoint.facts.get('characters', 0),
            'seconds': float(checkpoint.facts.get('seconds', 0))}
