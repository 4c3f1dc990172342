"""HyperParams: what shapes a network and its training, each with one name, one default and one comment."""

import difflib
import math
from dataclasses import asdict, dataclass, field, fields
from functools import wraps

import numpy as np

from errors import checkint, checkreal


def _hyper(default, comment, low, high=math.inf, islowallowed=True):
    """A field with its comment and its range: low <= value < high, or low < value < high."""
    return field(default=default, metadata={'comment': comment, 'low': low, 'high': high, 'islowallowed': islowallowed})


@dataclass
class HyperParams:
    """A network's hyperparameters.

        HyperParams(layers=3, state_size=256)       # the others at their defaults
        ms.hyper.learnrate = 0.0005                 # checked at once, holds from the next step on, stands in the next checkpoint

    layers and state_size shape the network: they are set once, when the model is made.
    A wrong name raises TypeError (AttributeError where it is assigned) and names the nearest right one; a value of the
    wrong type raises TypeError, one out of range ValueError.
    """

    layers: int = _hyper(1, 'GRU layers, one upon the other', 1, 101)
    state_size: int = _hyper(128, 'H, units of a layer', 1, 100_001)
    learnrate: float = _hyper(0.001, "RMSProp's step size", 0, islowallowed=False)
    decay: float = _hyper(0.95, "share of RMSProp's running mean of squared gradients that a step keeps", 0, 1)
    regcost: float = _hyper(0.0, "L2 penalty: regcost / 2 * the sum of the squared weights, beside a batch's summed loss", 0)

    def __setattr__(self, name, value):
        if name not in _FIELDS:
            raise AttributeError(_unknown(name))
        value = _checked(_FIELDS[name], value)
        if name in ('layers', 'state_size') and name in vars(self) and getattr(self, name) != value:
            raise AttributeError(f'{name} is {getattr(self, name)} for good, it shapes the network: make a new model for {name}={value}')
        super().__setattr__(name, value)

    def facts(self):
        """The values as a plain dict, for a file."""
        return asdict(self)


_FIELDS = {f.name: f for f in fields(HyperParams)}
HyperParams.__doc__ += '\n' + ''.join(f'    {f"{name}={f.default}":18}{f.metadata["comment"]}\n' for name, f in _FIELDS.items())


def _checked(f, value):
    low, high, islowallowed = (f.metadata[name] for name in ('low', 'high', 'islowallowed'))
    if isinstance(f.default, int):
        return checkint(f.name, value, low, high - 1)
    value = checkreal(f.name, value, low, high, islowallowed)
    with np.errstate(over='ignore'):
        checkreal(f.name, float(np.float32(value)), low, high, islowallowed)        # what training computes with
    return value


def nearest(name, names):
    """', did you mean ...?' with the one of `names` nearest to `name`, or '' where none is near."""
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f', did you mean {near[0]}?' if near else ''


def checknames(names, others=()):
    """TypeError for the first of `names` that is no hyperparameter's; it names the nearest of those and of `others`."""
    for name in names:
        if name not in _FIELDS:
            raise TypeError(_unknown(name, others))


def _unknown(name, others=()):
    return f'no hyperparameter is called {name!r}{nearest(name, [*_FIELDS, *others]) or ":"} There are {", ".join(_FIELDS)}'


def _withnames(init):
    @wraps(init)
    def __init__(self, *args, **hyper):
        checknames(hyper)
        init(self, *args, **hyper)
    return __init__


HyperParams.__init__ = _withnames(HyperParams.__init__)
