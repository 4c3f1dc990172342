"""What a new model takes over from the one that it goes on from: `start_from` of ModelState.initfromsrcfile."""

import os
from typing import TYPE_CHECKING

import report
from checkpoint import WorkDir
from errors import CheckpointError, WorkDirError, checkpath, short
from hyperparams import HyperParams

if TYPE_CHECKING:
    from model import ModelState


def opened(kind: type['ModelState'], start_from: 'str | os.PathLike | ModelState', workdir: WorkDir) -> 'ModelState':
    """The ModelState to go on from, its network in memory; nothing is written and nothing compiled.

    kind: the class ModelState. start_from: such a model, or the directory of one, whose newest whole checkpoint counts.
    workdir: the new model's WorkDir. Raises TypeError, ValueError, OSError, WorkDirError or CheckpointError, each with one sentence.
    """
    if not isinstance(start_from, (kind, str, bytes, os.PathLike)):
        raise TypeError(f"start_from takes a model's directory or a ModelState, got {short(start_from)}")
    other = start_from if isinstance(start_from, kind) else kind.load(checkpath('start_from', start_from))
    path = other.workdir.path
    if os.path.realpath(path) == os.path.realpath(workdir.path):
        raise WorkDirError(f"'{path}' is the directory of start_from: name another workdir for the new model")
    try:
        other.model
    except CheckpointError as error:
        raise CheckpointError(f'{str(error).rpartition(": ")[0]}: put good copies back, or start from another model') from error
    if other is not start_from and other.checkpoint is None:
        raise CheckpointError(f"'{path}' holds a model but no checkpoint to start from: train that model first, or start from another")
    return other


def settings(other: 'ModelState', modeltype: str, hyper: dict) -> tuple[str, HyperParams]:
    """(modeltype, HyperParams) of a model that goes on from `other`: its own, but for those of the dict `hyper`.

    Raises ValueError where another network is asked for than the other's.
    """
    theirs = {'modeltype': other.modeltype, **other.hyper.facts()}
    for name, value in {'modeltype': modeltype, **hyper}.items():
        if name in ('modeltype', 'layers', 'state_size', 'layernorm') and value != theirs[name]:
            raise ValueError(f"the model to start from has {name}={theirs[name]!r} for good, got {value!r}: leave {name} out, or start "
                             'from another model')
    return other.modeltype, HyperParams(**{**other.hyper.facts(), **hyper})


def origin(other: 'ModelState') -> str:
    """In words, for the new model's facts: which model it goes on from, and from where in that one's training."""
    return f'{other.workdir.path.name!r} at epoch {other.model.epoch}, position {other.model.pos}'


def takeover(ms: 'ModelState', other: 'ModelState') -> None:
    """Give the fresh network of `ms` the parameters of `other`; those of characters that `other` lacks stay as they were drawn.

    The entries of characters, which the charsets number differently, are moved: BYCHARACTER of the model type tells their axis.
    """
    index = ms.charset.encode(other.charset.chars)          # the index here of each character there
    params, theirs = ms.model.get_params(), other.model.get_params()
    for name, axis in ms.model.BYCHARACTER.items():
        params[name][(slice(None),) * axis + (index,)] = theirs.pop(name)
    ms.model.set_params({**params, **theirs})
    new = sorted(set(ms.charset.chars) - set(other.charset.chars))
    listed = ', '.join(map(ascii, new[:8])) + (', ...' if len(new) > 8 else '')
    report.say(f'The parameters are those of {ms.startedfrom}; ' + (
        f'{len(new):,} character{"s are" if len(new) > 1 else " is"} new to them and start{"s" * (len(new) == 1)} afresh: {listed}'
        if new else 'no character is new to them.'))
