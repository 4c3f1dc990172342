"""Where a network computes: on the processor by the native kernels, or on what JAX drives, a GPU or TPU or the processor, by XLA.

Both kinds of device have the same methods, and a network (`compiled.Compiled`) asks the one that it is on to compile its graphs, to
say in which precision it trains, and to give arrays back. JAX is imported when a device of its kind is asked for, and not before.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import engine
import native
import report
from errors import checkint, short


@dataclass(frozen=True)
class Processor:
    """The processor: native kernels, or NumPy where they can't be compiled."""

    name = 'cpu'
    count = 1               # of devices that share a batch's rows out
    runson = False          # whether a call that updates shared variables comes back before it is carried out
    inwaves = False         # whether the layers of a network are best computed side by side, see `stack`
    failures = ()           # exceptions of a call that may have taken with it what it was to update

    def describe(self) -> str:
        """What computes, in words."""
        return native.describe()

    def trainable(self, precision: str) -> str:
        """The precision that a model of hyperparameter `precision` is trained in here, see `native.trainable`."""
        return native.trainable(precision)

    def chartype(self, vocab: int) -> str:
        """The integers that characters go over as."""
        return 'int32'

    def roundup(self, n: int, least: int = 1) -> int:
        """How many steps or rows to compute where n are asked for: all shapes are as good as any other."""
        return n

    def compile(self, what: str, inputs: Sequence, outputs: Sequence, updates: Sequence = (), rows: dict | None = None) -> Callable:
        """The compiled function of a graph, one thread in it at a time; says what was compiled and how long it took.

        rows: a dict from those of `inputs`, `outputs` and the shared variables that have the batch's rows to the axis of them; None: the
        graph is not of a batch. Only where several devices share the rows out does it make a difference.
        """
        native.library()                # what it refuses is said as it is: in the middle of compiling, classic Theano adds the graph
        start = time.perf_counter()
        f = engine.compilefunction(inputs, outputs, updates)
        report.say(f'Compiled {what} with {engine.version} in {time.perf_counter() - start:.1f} s.')
        lock = threading.Lock()         # its inputs and results lie in it during a call, and the kernels let other threads run

        def call(*values):
            with lock:
                return f(*values)
        return call

    def fetch(self, value: Any) -> np.ndarray:
        """A copy of a shared variable's value as an array."""
        return np.array(value)


CPU = Processor()
TURN = threading.RLock()    # a training step on a device writes over the parameters that it is given: none may read them while it begins


@dataclass(frozen=True)
class Accelerator:
    """A device of JAX. A graph is compiled to one XLA computation, anew for each shape of its inputs; parameters, caches and states stay on
    the device between calls, characters go over as small integers, what a call gives comes back as NumPy arrays.

    Products are float32 in float32, unless `jax.config.jax_default_matmul_precision` says otherwise, and bfloat16 in bfloat16 everywhere.
    """

    name: str
    jaxdevice: Any
    count = 1
    runson = True
    inwaves = True
    failures = RuntimeError, MemoryError

    def describe(self) -> str:
        import jax
        return f'{self.jaxdevice.device_kind} ({self.jaxdevice}) by JAX {jax.__version__}'

    def trainable(self, precision: str) -> str:
        return precision

    def chartype(self, vocab: int) -> str:
        return 'uint8' if vocab <= 1 << 8 else 'uint16' if vocab <= 1 << 16 else 'int32'

    def roundup(self, n: int, least: int = 1) -> int:
        return max(4 ** math.ceil(math.log(n, 4)), least)

    def compile(self, what: str, inputs: Sequence, outputs: Sequence, updates: Sequence = (), rows: dict | None = None) -> Callable:
        import jax
        f, linked = self._linked(inputs, outputs, updates, self._jit)
        shareds = f.get_shared()

        def prepare(values):
            for shared in shareds:
                if isinstance(engine.held(shared), np.ndarray):         # new, from the host
                    engine.hold(shared, jax.device_put(engine.held(shared), self.jaxdevice))
            return values
        return self._callable(what, f, prepare, linked, bool(updates))

    def _linked(self, inputs, outputs, updates, jit):
        """What `engine.compilejax` gives, and the seconds that it took."""
        import sampling_jax  # noqa: F401 (these two make all Ops known to JAX)
        import stack_jax  # noqa: F401
        start = time.perf_counter()
        return engine.compilejax(inputs, outputs, updates, jit), time.perf_counter() - start

    def _jit(self, function, inputs, outputs, updated):
        """The compiled form of a graph's function, as `engine.compilejax` asks for it: the memory of what is updated is used again."""
        import jax
        return jax.jit(function, donate_argnums=sorted(updated.values()))

    def _callable(self, what, f, prepare, linked, lazily):
        """`f` as `compile` gives it; prepare(values): what to call it with, once all is where it computes; linked: the seconds so far;
        lazily: whether a call needn't wait for what it gives."""
        import jax
        seen, version = set(), f'{engine.version} and JAX {jax.__version__}'

        def call(*values):
            with jax.enable_x64(True), jax.default_device(self.jaxdevice):
                shapes, isfirst = tuple(value.shape for value in values), not seen
                isnew = shapes not in seen
                try:
                    with TURN:
                        values = prepare(values)
                        start = time.perf_counter()
                        out = f(*values)
                    if lazily and not isnew:
                        for each in out:
                            each.copy_to_host_async()
                        return out
                    out = jax.device_get(out)
                except jax.errors.JaxRuntimeError as error:
                    if 'RESOURCE_EXHAUSTED' not in str(error):
                        raise
                    raise MemoryError(f'{self.name} has too little memory for {what} ({short(str(error))}): use a smaller state_size, '
                                      'batchsize or seq_len, or fewer layers') from error
                seen.add(shapes)
                if isnew and (isfirst or lazily):       # a text's other lengths come in the middle of it
                    report.say(f'Compiled {what} with {version} in {time.perf_counter() - start + linked * isfirst:.1f} s.')
                return out
        return call

    fetch = Processor.fetch


Device = Processor | Accelerator


def chosen(device: str | None, before: Device, devices: int | str | None = None) -> Device:
    """The device called `device`: 'cpu', 'jax' (JAX's default one), or a platform of JAX's, with or without a number ('cuda', 'cuda:1');
    None: `before`. devices: how many of that platform's, or 'all'; None: as before where `device` is None too, else one.

    TypeError or ValueError for what is no device's name, or not so many, or not here, ModuleNotFoundError where JAX isn't installed.
    """
    if devices is not None and devices != 'all':
        if isinstance(devices, str):
            raise ValueError(f"devices takes a number or 'all', got {short(devices)}")
        devices = checkint('devices', devices, 1)
    what = f'devices={devices!r}' if device is None else f'device={device!r}'
    if device is None:
        if devices is None or devices == before.count == 1:
            return before
        device = 'jax' if before is CPU else before.name if devices is None else before.name.partition(':')[0]
    if not isinstance(device, str):
        raise TypeError(f"device takes a name, as 'cpu', 'jax' or 'cuda:1', got {short(device)}")
    found = re.fullmatch(r'([a-z_]+)(?::([0-9]{1,4}))?', device.lower())
    if not found:
        raise ValueError(f"device takes 'cpu', 'jax' or a name like 'cuda' or 'cuda:1', got {short(device)}")
    platform, number = found[1], int(found[2] or 0)
    if devices not in (None, 1) and (found[0] == 'cpu' or found[2]):
        raise ValueError(f"devices={devices!r} and device={device!r} contradict each other: leave one of them out, or say device='jax', "
                         "'cuda' or 'tpu'")
    if found[0] == 'cpu':
        return CPU
    if platform == 'cpu':
        raise ValueError(f"device={device!r}: the processor is one device, device='cpu' (for JAX's own way to compute on it say 'jax' with "
                         'JAX_PLATFORMS=cpu in the environment)')
    engine.checkjax(what)
    import jax
    try:
        there = jax.devices(None if platform == 'jax' else platform)
    except RuntimeError as error:
        raise ValueError(f'no device {device!r} here: JAX has {_listed(jax.devices())} ({" ".join(str(error).split())[:200]})') from None
    here = [each for each in there if each.process_index == jax.process_index()]
    if devices not in (None, 1):
        count = devices if isinstance(devices, int) else len(there)
        if count > len(there):
            raise ValueError(f'no {count} devices here: JAX has {len(there)}, {_listed(there)}')
        if count > 1:
            from sharding import Devices  # it builds on this module
            return Devices(found[0], here[0], tuple(there[:count]))
    if number >= len(here):
        raise ValueError(f'no device {device!r} here: JAX has {_listed(here)}')
    return Accelerator(found[0], here[number])


def _listed(devices):
    return ', '.join(f'{each.platform}:{each.id}' for each in devices[:8]) + (', ...' if len(devices) > 8 else '')


def checkrows(batchsize: int, device: Device) -> None:
    """ValueError where the rows of a batch can't be shared out evenly between the devices."""
    below = batchsize // device.count * device.count
    if below != batchsize:
        nearest = ' or '.join(str(size) for size in (below, below + device.count) if size)
        raise ValueError(f'batchsize {batchsize} does not divide by {device.count} devices: use {nearest}, or another number of devices')
