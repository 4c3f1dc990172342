"""HyperParams: what shapes a network and its training, each with one name, one default and one comment."""

import inspect
import math
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import wraps

import numpy as np

from errors import checkbool, checkchoice, checkint, checkreal, nearest, short

# What only some optimizers read.
_READBY = {'decay': ('rmsprop',), 'beta1': ('adam', 'adamw'), 'beta2': ('adam', 'adamw'), 'momentum': ('sgd',), 'weight_decay': ('adamw',)}


def _hyper(default, comment, low=0, high=math.inf, islowallowed=True, forgood=''):
    """A field with its comment and its range: low <= value < high, or low < value < high. forgood: why it is set once, if it is."""
    return field(default=default, metadata={'comment': comment, 'low': low, 'high': high, 'islowallowed': islowallowed, 'forgood': forgood})


def _choice(comment, *choices, forgood=''):
    """A field that takes one of some strings, the first by default."""
    comment = f'{comment}: {", ".join(map(repr, choices))}'
    return field(default=choices[0], metadata={'comment': comment, 'choices': choices, 'forgood': forgood})


def _switch(comment, forgood=''):
    """A field that is True or False, False by default."""
    return field(default=False, metadata={'comment': comment, 'forgood': forgood})


@dataclass
class HyperParams:
    """A network's hyperparameters.

        # the others at their defaults
        HyperParams(layers=3, state_size=256)
        # checked at once, holds from the next step on, stands in the
        # next checkpoint
        ms.hyper.learnrate = 0.0005
        # from the next training on, which starts with caches of zeros
        # and keeps the parameters
        ms.hyper.optimizer = 'adam'

    layers, state_size, layernorm, init and valid_frac are set once, when
    the model is made. The defaults of the first five, and RMSProp, are
    the original's, small and careful. A lower loss in the same time:
    optimizer='adamw', learnrate=0.004, ema=0.999, init='lookup',
    trainmodel(schedule='linear', end_learnrate=0.0004).
    A wrong name raises TypeError (AttributeError where it is assigned)
    and names the nearest right one; a value of the wrong type raises
    TypeError, one out of range ValueError.
    """

    layers: int = _hyper(1, 'GRU layers, one upon the other', 1, 101, forgood='it shapes the network')
    state_size: int = _hyper(128, 'H, units of a layer', 1, 100_001, forgood='it shapes the network')
    learnrate: float = _hyper(0.001, 'step size', islowallowed=False)
    decay: float = _hyper(0.95, "share of RMSProp's running mean of squared gradients that a step keeps", high=1)
    regcost: float = _hyper(0.0, "L2 penalty: regcost / 2 * the sum of the squared weights, beside a batch's summed loss")
    optimizer: str = _choice('rule of the update', 'rmsprop', 'adam', 'adamw', 'sgd')
    beta1: float = _hyper(0.9, "share of Adam's and AdamW's running mean of gradients that a step keeps", high=1)
    beta2: float = _hyper(0.999, "share of Adam's and AdamW's running mean of squared gradients that a step keeps", high=1)
    momentum: float = _hyper(0.9, "share of SGD's velocity that a step keeps", high=1)
    weight_decay: float = _hyper(0.1, "share, times learnrate, by which AdamW's step shrinks the weight matrices")
    clipping: str = _choice('what `clip` bounds, each element of the gradient or its norm over all parameters', 'value', 'norm')
    clip: float = _hyper(5.0, 'the bound beyond which a gradient is clipped', islowallowed=False)
    dropout: float = _hyper(0.0, 'share of the values between layers that a training step sets to 0', high=1)
    layernorm: bool = _switch("each layer's output is normalised on its way to the next one and out", forgood='it shapes the network')
    ema: float = _hyper(0.0, 'share of the running mean of the parameters, which then generates text, that a step keeps; 0: none', high=1)
    precision: str = _choice('operands of the products in training, where the processor has bfloat16', 'float32', 'bfloat16')
    init: str = _choice('first weights: within 1 / sqrt(rows), with orthogonal recurrent ones, or with those of characters within 1',
                        'uniform', 'orthogonal', 'lookup', forgood='the first parameters were drawn by it')
    valid_frac: float = _hyper(0.0, 'share of the text, at its end, that is held out from training', high=1, forgood='it parts the text')

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _FIELDS:
            raise AttributeError(_unknown(name))
        value = _checked(_FIELDS[name], value)
        why = _FIELDS[name].metadata['forgood']
        if why and name in vars(self) and getattr(self, name) != value:
            raise AttributeError(f'{name} is {getattr(self, name)} for good, {why}: make a new model for {name}={value}')
        super().__setattr__(name, value)

    def facts(self) -> dict:
        """The values as a plain dict, for a file."""
        return asdict(self)


_FIELDS = {f.name: f for f in fields(HyperParams)}
FORGOOD = [name for name, f in _FIELDS.items() if f.metadata['forgood']]
HyperParams.__doc__ = f'{inspect.cleandoc(HyperParams.__doc__ or "")}\n\n' + ''.join(        # none: `python3 -OO`
    textwrap.fill(f'{f"{name}={f.default}":20}{f.metadata["comment"]}', 70, subsequent_indent=' ' * 20,      # help() indents by 9
                  break_on_hyphens=False) + '\n' for name, f in _FIELDS.items())


def _checked(f, value):
    if 'choices' in f.metadata:
        return checkchoice(f.name, value, f.metadata['choices'])
    if isinstance(f.default, bool):
        return checkbool(f.name, value)
    low, high, islowallowed = (f.metadata[name] for name in ('low', 'high', 'islowallowed'))
    if isinstance(f.default, int):
        return checkint(f.name, value, low, high - 1)
    value = checkreal(f.name, value, low, high, islowallowed)
    with np.errstate(over='ignore'):
        checkreal(f.name, float(np.float32(value)), low, high, islowallowed)        # what training computes with
    return value


def checknames(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """TypeError for the first of `names` that is no hyperparameter's; it names the nearest of those and of `others`."""
    for name in names:
        if name not in _FIELDS:
            raise TypeError(_unknown(name, others))


def checkgiven(given: dict) -> None:
    """ValueError for a hyperparameter that another makes useless; `given`: a dict of those that a person chose in one call, checked values.

    Only for such: in a model whose optimizer was changed later, what the one before read may well stand.
    """
    optimizer = given.get('optimizer', _FIELDS['optimizer'].default)
    for name in given:
        if optimizer not in _READBY.get(name, (optimizer,)):
            raise ValueError(f'{name}={short(given[name])} does nothing with optimizer={optimizer!r}: leave it out, or set optimizer='
                             f'{" or ".join(map(repr, _READBY[name]))}')
    if given.get('layernorm') and given.get('state_size') == 1:
        raise ValueError('layernorm=True leaves nothing of a single unit, got state_size=1: use a larger one, or leave layernorm out')


def _unknown(name, others=()):
    return f'no hyperparameter is called {name!r}{nearest(name, [*_FIELDS, *others]) or ":"} There are {", ".join(_FIELDS)}'


def _withnames(init):
    @wraps(init)
    def __init__(self, *args, **hyper):
        checknames(hyper)
        init(self, *args, **hyper)
    return __init__


HyperParams.__init__ = _withnames(HyperParams.__init__)         # type: ignore[method-assign]
