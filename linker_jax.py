"""What PyTensor's JAX linker is told: how to convert an Op to a function of JAX arrays, and over which devices a batch is split."""

import contextlib
import contextvars
from typing import NamedTuple

import engine

if engine.name != 'pytensor':
    raise ImportError('JAX is reached through PyTensor, and this is classic Theano: install PyTensor, and set no other RN_GRU_ENGINE')

# Behind the engine, by whose flags PyTensor goes, and so what PyTensor sets in JAX.
from jax import lax
from pytensor.link.jax.dispatch import jax_funcify

register = jax_funcify.register     # (Op class): a decorator of the function (op, node, ...) -> the function of arrays


class Shards(NamedTuple):
    """The mesh axis along which a `shard_map` splits batch rows evenly, and over how many devices."""

    axis: str
    count: int

    def varying(self, array):
        """An array that is the same on all devices, as the start of a sum that won't be."""
        return lax.pcast(array, self.axis, to='varying')


_current = contextvars.ContextVar('shards', default=None)


def current():
    """The Shards of the `sharded` around this call, or None."""
    return _current.get()


@contextlib.contextmanager
def sharded(axis, count):
    """Within it, functions are converted to JAX for a `shard_map` that splits batch rows over `count` devices, along the mesh axis `axis`.

    Dropout then counts its elements in the whole batch, and `ops.AllReduce` takes means over the devices; all else sees but its own rows.
    It has to surround the making of a function, when the linker converts Ops; its calls, which trace it, no longer need it.
    """
    token = _current.set(Shards(axis, count))
    try:
        yield
    finally:
        _current.reset(token)
