"""The settings of a grid of trials: their names and values, checked, and what each setting's directory is called."""

import collections
import hashlib
import inspect
import itertools
import numbers

import numpy as np

from errors import checkchoice, checkint, checkreal, nearest, short
from hyperparams import HyperParams, checkgiven
from layers import MODELTYPES
from model import ModelState
from run import MOST, SCHEDULES

LONGEST = 120           # characters of a directory's name; some file systems take no more than 143

HYPER = HyperParams().facts()
RUN = {name: inspect.signature(ModelState.trainmodel).parameters[name].default for name in (
    'num_rounds', 'batchsize', 'train_len', 'valid_len', 'minutes', 'schedule', 'warmup', 'end_learnrate', 'patience')}
# What may stand in a grid, in the order of the directories' names, and its defaults.
GRID = {**HYPER, 'valid_frac': 0.1, 'modeltype': 'GRUEncode', 'seq_len': 100, 'seed': 1, **RUN}
BESIDE = {'encoding': None, 'save_every': 600, 'keep': None}                # what may stand beside it only
ELSEWHERE = 'device', 'devices'         # trainmodel's: processes that train side by side would take a device's memory from each other
LOWEST = {'seq_len': 1, 'seed': 0, 'num_rounds': 1, 'batchsize': 1, 'train_len': 0, 'valid_len': 0, 'warmup': 0, 'patience': 1, 'keep': 1}


def settingsof(grid: dict | list | tuple, fixed: dict) -> tuple[list[dict], dict]:
    """(a list of dicts of name -> value, the settings of a grid; the dict `fixed`), all names and values checked by themselves."""
    fixed = {name: _checked(name, value, {**GRID, **BESIDE}) for name, value in fixed.items()}
    if isinstance(grid, dict):
        lists = {name: _values(name, values) for name, values in grid.items()}
        settings = [dict(zip(lists, values)) for values in itertools.product(*lists.values())] if lists else []
    elif isinstance(grid, (list, tuple)):
        for setting in grid:
            if not isinstance(setting, dict):
                raise TypeError(f'grid takes a dict of lists or a list of dicts, got a list with {short(setting)}')
        settings = [{name: _checked(name, value) for name, value in setting.items()} for setting in grid]
    else:
        raise TypeError(f'grid takes a dict of lists or a list of dicts, got {short(grid)}')
    if not settings:
        raise ValueError("grid is empty: give it a name and its values, as in {'learnrate': [0.001, 0.004]}")
    for name in fixed:
        if all(name in setting for setting in settings):
            raise ValueError(f'{name} stands in the grid, and beside it as {name}={short(fixed[name])}: leave one of them out')
    settings = [{name: setting[name] for name in GRID if name in setting} for setting in settings]
    if len({{**GRID, **fixed, **setting}['valid_frac'] for setting in settings}) > 1:
        raise ValueError('valid_frac must be the same for all settings: losses on different parts of the text tell nothing of each other')
    for name, times in collections.Counter(map(nameof, settings)).items():
        if times > 1:
            raise ValueError(f'the setting {name} stands in the grid twice: leave one of them out')
    for setting in settings:
        checkgiven({name: value for name, value in {**fixed, **setting}.items() if name in HYPER})
    return settings, fixed


def _values(name, values):
    """The values that a grid lists for a name, each checked."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple, range)):
        isone = values is None or isinstance(values, (str, bytes, numbers.Number, np.generic))
        raise TypeError(f'{name} takes a list of values in a grid, got {short(values)}: '
                        + (f'write [{short(values)}]' if isone else 'make a list of it'))
    if not values:
        raise ValueError(f'{name} has no values in the grid: give it one or more')
    return [_checked(name, value) for value in values]


def _checked(name, value, known=GRID):
    """A setting's value as it stands in files and names, plain; TypeError or ValueError where there is no such name or value."""
    if name in ELSEWHERE:
        raise TypeError(f'trials compute on the processor, several at a time: leave {name}={short(value)} out, or train on there with the '
                        'best of them')
    if name not in known:
        where = 'beside the grid only' if name in BESIDE else ''
        raise TypeError(f'{name} stands {where}: tryhyper(..., {name}={short(value)})' if where else
                        f'no setting is called {short(name)}{nearest(name, known) or ":"} There are {", ".join(known)}')
    if name in HYPER:
        return getattr(HyperParams(**{name: value}), name)
    if value is None and {**GRID, **BESIDE}[name] is None:
        return None
    if name in LOWEST:
        return checkint(name, value, LOWEST[name], MOST)
    if name == 'encoding':                      # checksource looks at it
        return value
    if name in ('modeltype', 'schedule'):
        return checkchoice(name, value, list(MODELTYPES) if name == 'modeltype' else SCHEDULES)
    return checkreal(name, value, 0, islowallowed=name != 'minutes')


def nameof(setting: dict) -> str:
    """A setting as a directory's name, legal on every file system; one too long ends in a checksum."""
    name = ','.join(f'{name}={value}' for name, value in setting.items()) or 'defaults'
    return name if len(name) <= LONGEST else f'{name[:LONGEST - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}'
