"""A run of training: what it was asked for, how far it is, and the learning rate of each of its steps.

It stands in every checkpoint as plain facts, so that `trainmodel(resume=True)` finishes a run that was broken off, exactly as it would
have ended (one that is planned by time: by the plan that it had then).
"""

import inspect
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Self

from errors import checkchoice, checkint, checkreal, short

if TYPE_CHECKING:
    from checkpoint import Checkpoint, WorkDir
    from model import ModelState

SCHEDULES = ('constant', 'linear', 'cosine', 'plateau')
MOST = 2 ** 63 - 1      # of a number in a run
MOSTROUNDS = 10         # of a run that is planned by time
PLATEAU = 2             # validations in a row without a new best one, at which schedule 'plateau' halves the rate


@dataclass
class Run:
    """What trainmodel was asked for, checked, and where it stands."""

    steps: int                  # of the whole run
    train_len: int              # steps of a round; the last one may be shorter
    batchsize: int
    valid_len: int              # steps of a validation
    schedule: str = 'constant'
    warmup: int = 0             # steps
    end_learnrate: float = 0.0
    patience: int = 0           # validations; 0: none
    bestlast: bool = False      # whether the run ends on the best checkpoint
    done: int = 0               # steps
    validated: int = 0          # rounds whose validation is done
    best: float = math.inf      # the lowest validation loss, nats per character,
    since: int = 0              # and the validations since then
    halvings: int = 0           # of the rate, by 'plateau'

    def facts(self) -> dict:
        """The run as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def fromfacts(cls, facts: dict) -> Self:
        """The run that `facts()` told of; ValueError where the facts are none."""
        try:
            run = cls(**facts)
        except TypeError:
            raise ValueError('its run of training is none') from None
        for field in fields(cls):
            value = getattr(run, field.name)
            most = math.inf if field.name == 'best' else MOST
            if type(value) is not field.type or (field.type in (int, float) and not 0 <= value <= most):
                raise ValueError(f'its run of training has {field.name}={short(value)}')
        begun = min(run.validated * run.train_len, run.steps)
        if not (run.train_len and run.batchsize and run.warmup < run.steps and run.schedule in SCHEDULES and run.validated <= run.rounds
                and begun <= run.done <= min(begun + run.train_len, run.steps) and max(run.since, run.halvings) <= run.validated):
            raise ValueError('its run of training is none')
        return run

    @property
    def rounds(self) -> int:
        """How many rounds the run has."""
        return -(-self.steps // max(self.train_len, 1))

    @property
    def round(self) -> int:
        """The steps of the round in hand, at the end of which it is validated."""
        return min(self.train_len, self.steps - self.validated * self.train_len)

    @property
    def left(self) -> int:
        """The steps of it that are still to be made."""
        return self.validated * self.train_len + self.round - self.done

    @property
    def isover(self) -> bool:
        """Whether nothing is left to do: all rounds are done, or patience has run out."""
        return self.validated == self.rounds or 0 < self.patience <= self.since

    def learnrate(self, peak: float) -> float:
        """The next step's learning rate, where the hyperparameter says `peak`.

        It rises to `peak` in `warmup` equal steps. Then 'constant' keeps it; 'linear' and 'cosine' (half a period; Loshchilov and Hutter
        2017, arXiv:1608.03983, without restarts) take it to `end_learnrate`, which the step behind the last would have; 'plateau' halves it
        whenever PLATEAU validations in a row have brought no new best one, down to `end_learnrate`.
        """
        if self.done < self.warmup:
            return peak * (self.done + 1) / self.warmup
        way = (self.done - self.warmup) / (self.steps - self.warmup)
        if self.schedule == 'linear':
            return peak + (self.end_learnrate - peak) * way
        if self.schedule == 'cosine':
            return self.end_learnrate + (peak - self.end_learnrate) * (1 + math.cos(math.pi * way)) / 2
        if self.schedule == 'plateau':
            return max(peak * 0.5 ** self.halvings, min(self.end_learnrate, peak))
        return peak

    def validate(self, loss: float) -> None:
        """The round in hand has ended with this validation loss."""
        self.validated += 1
        if loss < self.best:
            self.best, self.since = loss, 0
            return
        self.since += 1
        if self.schedule == 'plateau' and self.since % PLATEAU == 0:
            self.halvings += 1

    def replan(self, seconds: float, stepseconds: float, validationseconds: float) -> None:
        """Have as many steps in all as `seconds` more allow, in rounds as long as before; a plan of one round stays one."""
        seconds += self.done * stepseconds + self.validated * validationseconds
        isone = self.train_len == self.steps
        steps = _fitting(seconds, None if isone else self.train_len, stepseconds, validationseconds)
        self.steps = max(min(steps, MOST // 2), self.done, self.warmup + 1)
        if isone:
            self.train_len = self.steps


def requested(ms: 'ModelState', asked: dict) -> tuple[Run, float | None]:
    """(the Run that a dict of trainmodel's arguments asks for, seconds that it shall take or None).

    With seconds the Run has no steps yet: `planned` gives it some. TypeError or ValueError where an argument is wrong or contradicts
    another.
    """
    schedule, minutes, end, patience = (asked[name] for name in ('schedule', 'minutes', 'end_learnrate', 'patience'))
    num_rounds, epochsteps = checkint('num_rounds', asked['num_rounds'], 1, MOST), ms.data.batchepoch(asked['batchsize'])
    train_len, valid_len, warmup = (checkint(name, asked[name], 0, MOST) for name in ('train_len', 'valid_len', 'warmup'))
    minutes = None if minutes is None else checkreal('minutes', minutes, 0, islowallowed=False)
    end = None if end is None else checkreal('end_learnrate', end, 0)
    patience = 0 if patience is None else checkint('patience', patience, 1, MOST)
    schedule = checkchoice('schedule', schedule, SCHEDULES)
    if end is not None and schedule == 'constant':
        raise ValueError(f"end_learnrate={end:g} does nothing with schedule='constant': leave it out, or choose 'linear', 'cosine' "
                         "or 'plateau'")
    if end is not None and end > ms.hyper.learnrate:
        raise ValueError(f'end_learnrate {end:g} lies above the learnrate {ms.hyper.learnrate:g} that the schedule begins with: use less')
    if minutes is not None and num_rounds != 1:
        raise ValueError(f'num_rounds={num_rounds} and minutes={minutes:g} both say when to stop: leave one of them out')
    if ms.heldout and valid_len:
        raise ValueError(f'valid_len={valid_len} does nothing here, since validation is on all of the {ms.heldout.numchars:,} characters '
                         'that valid_frac holds out: leave it out')
    bestlast = bool(ms.heldout and (minutes or patience))
    run = Run(0, train_len, int(asked['batchsize']), valid_len, schedule, warmup, end or 0.0, patience, bestlast)
    if minutes is not None:
        return run, 60 * minutes
    train_len = train_len or epochsteps
    valid_len = 0 if ms.heldout else valid_len or epochsteps
    return _checked(replace(run, train_len=train_len, steps=num_rounds * train_len, valid_len=valid_len)), None


def resumed(ms: 'ModelState', asked: dict) -> tuple[Run, None]:
    """(the Run that the last checkpoint stands in, None); asked: a dict of arguments that must be as they are by default.

    ValueError where there is none to finish.
    """
    defaults = inspect.signature(ms.trainmodel).parameters
    for name, value in asked.items():
        default = defaults[name].default
        if type(value) is not type(default) or value != default:
            raise ValueError(f'{name}={short(value)} does nothing with resume=True, which finishes a run as it was begun: leave {name} out')
    model, last = ms.model, ms.checkpoint       # the newest whole one, where none was restored
    if last is None or 'run' not in last.facts:
        raise ValueError('there is no run to finish: begin one, without resume=True')
    run = Run.fromfacts(last.facts['run'])
    if isended(ms.workdir, last):
        raise ValueError('there is no run to finish: the last one ended as it was meant to, so train on without resume=True')
    if (model.updates, model.epoch, model.pos) != (last.facts.get('updates', 0), last.epoch, last.pos):
        raise ValueError(f'the network in memory is not that of its last checkpoint, {last.name}, from which resume=True goes on: '
                         'ms.restore() brings that one back')
    return run, None


def isended(workdir: 'WorkDir', last: 'Checkpoint') -> bool:
    """Whether the run that the Checkpoint `last`, a WorkDir's latest, stands in has ended as it was meant to."""
    run, best = Run.fromfacts(last.facts['run']), workdir.scan()[0].best
    # One that ends on the best checkpoint has still to go back, where that isn't the last one or its copy.
    return run.isover and (not run.bestlast or 'copyof' in last.facts or best is None or best.name == last.name)


def planned(run: Run, seconds: float, stepseconds: float, validationseconds: float, validationsteps: int) -> Run:
    """`run` with as many steps as `seconds` allow, and, where nothing else was asked for, rounds whose validations take a twentieth of them
    at most.

    validationseconds: of a validation of `validationsteps`, all of the held-out part or, where there is none, an epoch
    """
    seconds = min(seconds, float(MOST))
    if not run.bestlast:                # validated on the steps behind a round
        one = validationseconds / validationsteps
        run = replace(run, valid_len=run.valid_len or min(validationsteps, max(int(seconds / 20 / MOSTROUNDS / one), 1)))
        validationseconds = run.valid_len * one
    if run.train_len:
        return _checked(replace(run, steps=max(_fitting(seconds, run.train_len, stepseconds, validationseconds), 1)))
    rounds = max(min(int(seconds / 20 / validationseconds), MOSTROUNDS), 1)
    steps = max(int((seconds - rounds * validationseconds) / stepseconds), 1)
    return _checked(replace(run, steps=steps, train_len=-(-steps // rounds)))


def _fitting(seconds, train_len, stepseconds, validationseconds):
    """How many steps fit into `seconds`, validations behind each round of train_len included; None: behind the last step alone.

    A last round that is not whole has to take twice its validation at least: else it isn't begun, and the run ends that much early.
    """
    round_ = (train_len or math.inf) * stepseconds + validationseconds
    whole = max(int(seconds / round_), 0)
    if whole and seconds - whole * round_ < 2 * validationseconds:
        return whole * train_len
    return int((seconds - (whole + 1) * validationseconds) / stepseconds)


def _checked(run):
    if run.steps > MOST:                # no checkpoint with it could be read again
        raise ValueError(f'a run takes at most {MOST:,} steps in all, got {short(run.steps)}: ask for fewer rounds, steps or minutes')
    if run.warmup >= run.steps:
        raise ValueError(f'warmup={run.warmup} leaves none of the {run.steps:,} steps of the run: use less')
    return run
