"""HyperParams: what shapes a network and its training, each with one name, one default and one comment."""

import difflib
import math
import numbers
from dataclasses import asdict, dataclass, fields
from functools import wraps

from errors import checkint


@dataclass
class HyperParams:
    """A network's hyperparameters.

        HyperParams(layers=3, state_size=256)       # the others at their defaults
        ms.hyper.learnrate = 0.0005                 # checked at once, holds from the next step on, stands in the next checkpoint

    layers and state_size shape the network: they are set once, when the model is made.
    A wrong name raises TypeError (AttributeError where it is assigned) and names the nearest right one; a value of the
    wrong type raises TypeError, one out of range ValueError.
    """

    layers: int = 1                 # GRU layers, one upon the other
    state_size: int = 128           # H, units of a layer
    learnrate: float = 0.001        # RMSProp's step size
    decay: float = 0.95             # of RMSProp's running mean of squared gradients, a step
    regcost: float = 0.0            # L2 penalty: regcost / 2 * the squared weights, beside a batch's summed loss

    def __setattr__(self, name, value):
        if name not in _RANGES:
            raise AttributeError(_unknown(name))
        value = _checked(name, value)
        if name in ('layers', 'state_size') and getattr(self, name) != value and name in vars(self):
            raise AttributeError(f'{name} is {getattr(self, name)} for good, it shapes the network: make a new model for {name}={value}')
        super().__setattr__(name, value)

    def facts(self):
        """The values as a plain dict, for a file."""
        return asdict(self)


# Type, smallest and largest value, and whether the smallest itself is allowed.
_RANGES = {'layers': (int, 1, 1000, True), 'state_size': (int, 1, 100_000, True), 'learnrate': (float, 0, math.inf, False),
           'decay': (float, 0, 1, True), 'regcost': (float, 0, math.inf, True)}


def _checked(name, value):
    kind, low, high, lowallowed = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        raise TypeError(f'{name} takes {"a whole number" if kind is int else "a number"}, got {value!r}')
    if kind is int:
        return checkint(name, value, low, high)
    value = float(value)
    if not (low <= value < high) or (value == low and not lowallowed):
        wanted = f'{"at least" if lowallowed else "more than"} {low}' + (f' and below {high}' if high < math.inf else ' and finite')
        raise ValueError(f'{name} must be {wanted}, got {value}')
    return value


def nearest(name, names):
    """', did you mean ...?' with the one of `names` nearest to `name`, or '' where none is near."""
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f', did you mean {near[0]}?' if near else ''


def _unknown(name):
    names = [f.name for f in fields(HyperParams)]
    return f'no hyperparameter is called {name!r}{nearest(name, names) or ":"} There are {", ".join(names)}'


def _withnames(init):
    @wraps(init)
    def __init__(self, *args, **hyper):
        for name in hyper:
            if name not in _RANGES:
                raise TypeError(_unknown(name))
        init(self, *args, **hyper)
    return __init__


HyperParams.__init__ = _withnames(HyperParams.__init__)
