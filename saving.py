"""What of a ModelState stands in its checkpoints: writing it, putting it back, and telling its checkpoints from another's."""

import hashlib
import math
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

import cluster
import device as places
import native
import report
from checkpoint import KINDS, Checkpoint
from dataset import trainchars
from errors import CheckpointError, WorkDirError, checkbool, checkchoice, checkint, checkreal, short
from hyperparams import FORGOOD, HyperParams
from layers import MODELTYPES, ModelParams
from rounding import PRECISIONS
from run import MOST, Run

if TYPE_CHECKING:
    from model import ModelState

COUNTS = 'updates', 'cacheupdates', 'characters'        # of the network, 0 in checkpoints that were written before there were any


def _identity(ms: 'ModelState') -> str:
    """What tells this model's checkpoints from another's whose shapes are the same: a SHA-256."""
    facts = repr((ms.modeltype, ms.charset.chars, ms.textchecksum, ms.seq_len))
    return hashlib.sha256(facts.encode('utf-8', 'surrogatepass')).hexdigest()


def training(ms: 'ModelState', checkpoint: Checkpoint) -> tuple[HyperParams, int]:
    """(HyperParams, batch size) of a checkpoint; CheckpointError where it doesn't belong to this model."""
    try:
        hyper = HyperParams(**checkpoint.facts['hyper'])
        for name in FORGOOD:
            if getattr(hyper, name) != getattr(ms.hyper, name):
                raise ValueError(f'it is of a model with {name}={getattr(hyper, name)}')
        if checkpoint.facts.get('model', _identity(ms)) != _identity(ms):             # the first ones had none
            raise ValueError('it was trained on another text')
        batchsize = checkint('batchsize', checkpoint.facts['batchsize'], 1, MOST)
        for count in COUNTS:
            checkint(count, checkpoint.facts.get(count, 0), 0, MOST)
        checkreal('seconds', checkpoint.facts.get('seconds', 0.0), 0)
        if 'run' in checkpoint.facts:
            run = Run.fromfacts(checkpoint.facts['run'])
            if not run.isover and (run.batchsize != batchsize or (run.valid_len > 0) != (hyper.valid_frac == 0)):
                raise ValueError('its run of training is none')
        numseqs = -(-trainchars(ms.numchars, ms.seq_len, hyper.valid_frac) // ms.seq_len)
        if checkpoint.pos and checkpoint.pos >= -(-numseqs // batchsize):
            raise ValueError(f'its position {checkpoint.pos} lies beyond an epoch')
        return hyper, batchsize
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f'the checkpoint {checkpoint.name} is damaged or of another model ({error}): restore another') from error


def filled(ms: 'ModelState', name: str | None, model: ModelParams, first: Checkpoint | None = None) -> ModelParams:
    """`model` with the checkpoint called `name`, or None: with `first` or the newest whole one, or else as the seed has it.

    Raises before anything has changed; CheckpointError also where the seed isn't where the first parameters came from.
    """
    if name is None:
        checkpoint, arrays = ms.workdir.newest(lambda each: _expected(ms, each), first)
    else:
        checkpoint = ms.workdir.checkpoint(name)
        arrays = ms.workdir.loadarrays(checkpoint, _expected(ms, checkpoint))
    if checkpoint is None:
        if ms.startedfrom:
            raise CheckpointError(f"'{ms.workdir.path}' holds no checkpoint, and the first parameters, from {ms.startedfrom}, can't be "
                                  'drawn again: copy a checkpoint back, or make the model anew in another directory')
        model.set_arrays(ms._newmodel().arrays(), ms.hyper)
        model.epoch = model.pos = model.characters = 0
        model.seconds = 0.0
    else:
        hyper = training(ms, checkpoint)[0]
        model.set_arrays(arrays, hyper)
        for count in COUNTS:
            setattr(model, count, checkpoint.facts.get(count, 0))
        model.epoch, model.pos, model.seconds = checkpoint.epoch, checkpoint.pos, float(checkpoint.facts.get('seconds', 0))
        if name is not None or ms.checkpoint is None or checkpoint.name != ms.checkpoint.name:
            ms.hyper = hyper
    ms.checkpoint = checkpoint
    return model


def restore(ms: 'ModelState', name: str | None, precision: str | None, device: str | None, threads: int | None, verbose: bool) -> None:
    """What `ModelState.restore` does."""
    native.checkthreads(threads)
    native.checkkernels()
    verbose, place = checkbool('verbose', verbose), places.chosen(device, ms.device)
    if precision is not None:
        checkchoice('precision', precision, PRECISIONS)
    with report.quiet(not verbose):
        before = vars(ms).pop('_parts', None)
        try:
            ms._parts                           # so that it is checked again
        except BaseException:
            if before:
                ms._parts = before
            raise
        # One that is there keeps its functions.
        ms.model = model = filled(ms, name, vars(ms).get('model') or ms._newmodel())
        ms._place(place)
        report.say(f'Restored {ms.checkpoint.name}: epoch {model.epoch}, position {model.pos}.' if ms.checkpoint
                   else 'No checkpoint yet: parameters drawn from the seed.')
        native.setthreads(threads)
        model.read(precision)
        model.sampletext, model.allstates


def _expected(ms, checkpoint):
    """Shapes and types of the arrays that the checkpoint must have; CheckpointError where it doesn't belong to this model."""
    hyper, batchsize = training(ms, checkpoint)
    return MODELTYPES[ms.modeltype].expected(len(ms.charset), hyper.layers, hyper.state_size, batchsize, hyper)


def write(ms: 'ModelState', loss: float, losskind: str, **facts: object) -> Checkpoint:
    """Write a checkpoint of the network as it is; the Checkpoint. losskind: 'validation', 'training' or 'untrained'.

    A 'training' one takes the place of the 'training' one that the network has come through; one that restore() has left
    behind stays. Raises FloatingPointError, and writes nothing, where the training has
    diverged, OSError or WorkDirError where the disk refuses or the model's directory is gone.
    """
    if losskind not in KINDS:
        raise ValueError(f'losskind takes one of {", ".join(KINDS)}, got {short(losskind)}')
    ms.workdir.statefile()                  # none: an empty directory in the model's place, as where a disk is unplugged
    model, before = ms.model, ms.checkpoint
    model.prepare(ms.hyper)                 # so that facts and arrays agree
    arrays = model.arrays()
    slot = before and (before.name if before.kind == 'training' else before.facts.get('slot'))
    if not math.isfinite(loss) or not all(np.isfinite(array).all() for array in arrays.values()):
        raise FloatingPointError(diverged(ms))
    checkpoint = ms.checkpoint = ms.workdir.writecheckpoint(
        loss, model.epoch, model.pos,
        {'losskind': losskind, 'batchsize': arrays['state'].shape[1], 'hyper': ms.hyper.facts(), 'model': _identity(ms), 'slot': slot,
         **{count: getattr(model, count) for count in COUNTS}, 'seconds': model.seconds, **facts},
        arrays)
    if losskind == 'training':
        found, chain = {each.name: each for each in ms.workdir.scan()[0]}, []
        while slot in found and found[slot] not in chain:               # more than one where a kill came between writing and removing
            chain.append(found[slot])
            slot = found[slot].facts.get('slot')
        ms.workdir.remove(reversed(chain))                              # the oldest first, so that a kill leaves no link missing
    return checkpoint


def agree(ms: 'ModelState') -> None:
    """Make the network, its place in the text, the hyperparameters and the last checkpoint those of process 0, in all processes that train
    together (`cluster`). Raises what process 0 meets in reading them, WorkDirError where another process has not its model.
    """
    if not cluster.isshared():
        return
    told = cluster.first(lambda: _tell(ms))
    own = ms.modeltype, ms.seed, _identity(ms), *(getattr(ms.hyper, name) for name in FORGOOD)
    same = cluster.gather([list(own) == told['own']])
    if others := [str(i) for i, (each,) in enumerate(same) if not each]:
        raise WorkDirError(f"process {', '.join(others)} of {cluster.count} has another model or text in '{ms.workdir.path}' than process "
                           '0: give all of them the same directory, or copies of it')
    if cluster.isfirst():
        cluster.broadcast(ms.model.arrays())
        return
    ms.hyper, counts = HyperParams(**told['hyper']), told['counts']
    model = vars(ms).get('model') or ms._newmodel()
    expected = model.expected(len(ms.charset), ms.hyper.layers, ms.hyper.state_size, told['batchsize'], ms.hyper)
    arrays = cluster.broadcast({name: np.zeros(shape, dtype) for name, (shape, dtype) in expected.items()})
    model.set_arrays(arrays, ms.hyper, counts['updates'], counts['cacheupdates'])
    for name, value in counts.items():
        setattr(model, name, value)
    ms.model, ms.checkpoint = model, received(told['checkpoint'])


def _tell(ms):
    ms.model.prepare(ms.hyper)
    return {'own': [ms.modeltype, ms.seed, _identity(ms), *(getattr(ms.hyper, name) for name in FORGOOD)], 'hyper': ms.hyper.facts(),
            'counts': {name: getattr(ms.model, name) for name in (*COUNTS, 'epoch', 'pos', 'seconds')},
            'batchsize': ms.model.get_state().shape[1], 'checkpoint': sent(ms.checkpoint)}


def sent(checkpoint: Checkpoint | None) -> dict | None:
    """A Checkpoint, or None, as process 0 tells the others of it."""
    return {**asdict(checkpoint), 'time': checkpoint.time.isoformat()} if checkpoint else None


def received(told: dict | None) -> Checkpoint | None:
    """The Checkpoint, or None, that `sent` told of."""
    return Checkpoint(**{**told, 'time': datetime.fromisoformat(told['time'])}) if told else None


def diverged(ms: 'ModelState', updates: int | None = None, epoch: int | None = None, pos: int | None = None) -> str:
    """The sentence for a network whose numbers are none any more, here or behind the update at that place."""
    if updates is None:
        updates, epoch, pos = ms.model.updates, ms.model.epoch, ms.model.pos
    return (f'the training has diverged at update {updates:,}, epoch {epoch}, position {pos}: go on from '
            f'the last checkpoint, or ms.restore(name) an earlier one, with a learnrate below {ms.hyper.learnrate:g}')
