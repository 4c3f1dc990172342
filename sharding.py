"""Several of JAX's devices that train together: each has all parameters and its share of the batch's rows.

A step is computed by all of them at once, each on its own rows (`jax.shard_map` over a mesh of one axis), up to the loss and the gradients,
whose means over the devices (`ops.AllReduce`) are the whole batch's. Then each makes the same update. So the parameters agree without
ever being sent, and what goes between devices is the gradients, once a step.

Text is generated and read on one device, with the copy of the parameters that lies there.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

import engine
from device import Accelerator

AXIS = 'rows'           # of the mesh


@dataclass(frozen=True)
class Devices(Accelerator):
    """Several devices, `jaxdevices`, of this process or of several (`cluster`); jaxdevice: the one that does what isn't shared out."""

    jaxdevices: tuple = ()

    @property
    def count(self):
        return len(self.jaxdevices)

    @cached_property
    def mesh(self):
        import jax
        return jax.sharding.Mesh(np.array(self.jaxdevices), (AXIS,))

    def describe(self):
        return f'{self.count} x {super().describe()}'

    def compile(self, what, inputs, outputs, updates=(), rows=None):
        if rows is None:
            return super().compile(what, inputs, outputs, updates)
        import jax

        import ops_jax
        axes, outaxes = {variable.name: axis for variable, axis in rows.items()}, [rows.get(output) for output in outputs]

        def jit(function, inputs, outputs, updated):
            into = tuple(self._spec(axes.get(i.name)) for i in inputs)
            out = tuple(into[updated[k]] if k in updated else self._spec(outaxes[k]) for k in range(len(outputs)))
            # What goes to the host goes whole to each process.
            kept = tuple(self._sharding(spec if k in updated else self._spec(None)) for k, spec in enumerate(out))
            return jax.jit(jax.shard_map(function, mesh=self.mesh, in_specs=into, out_specs=out), out_shardings=kept,
                           donate_argnums=sorted(updated.values()))
        with ops_jax.sharded(AXIS, self.count):
            f, linked = self._linked(inputs, outputs, updates, jit)
        shareds = [(shared, self._sharding(self._spec(axes.get(shared.name)))) for shared in f.get_shared()]
        given = [(axes.get(each.name), self._sharding(self._spec(axes.get(each.name)))) for each in inputs]

        def prepare(values):
            for shared, sharding in shareds:
                if getattr(engine.held(shared), 'sharding', None) != sharding:
                    engine.hold(shared, self._spread(self.fetch(engine.held(shared)), sharding))
            return [self._spread(value, sharding) for value, (_, sharding) in zip(values, given)]
        together, alone = self._callable(what, f, prepare, linked, bool(updates)), []

        def call(*values):
            if all(axis is None or value.shape[axis] % self.count == 0 for value, (axis, _) in zip(values, given)):
                return together(*values)
            if not alone:                       # the last characters of a text, say, in one row
                alone.append(super(Devices, self).compile(what, inputs, outputs, updates))
            return alone[0](*values)
        return call

    def _jit(self, function, inputs, outputs, updated):
        f = super()._jit(function, inputs, outputs, updated)
        return lambda *values: f(*(value.addressable_data(0) if hasattr(value, 'addressable_data') else value for value in values))

    def _spec(self, axis):
        """Where the batch's rows lie: along this axis of an array, or None: in none, each device has it whole."""
        import jax
        return jax.sharding.PartitionSpec(*(() if axis is None else (*[None] * axis, AXIS)))

    def _sharding(self, spec):
        import jax
        return jax.sharding.NamedSharding(self.mesh, spec)

    def _spread(self, value, sharding):
        """A NumPy array, the same in each process, as an array on the devices."""
        import jax
        return jax.make_array_from_callback(value.shape, sharding, lambda index: np.asarray(value[index]))

    def fetch(self, value):
        """A copy of a shared variable's value as an array. Of what lies in parts in several processes all of them have to ask for it."""
        if getattr(value, 'is_fully_addressable', True) or value.is_fully_replicated:
            return super().fetch(value)
        from jax.experimental import multihost_utils
        return np.array(multihost_utils.process_allgather(value, tiled=True))
