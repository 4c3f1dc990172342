"""A stack of layers on an NVIDIA GPU in one launch: `kernels/grustack.cu`, compiled by nvcc for the card, called by XLA.

In bfloat16, with nothing between layers, and of sizes that fit the card: a block of it keeps the weights of some units in shared memory,
and all blocks have to be there at once. Before it is used for a size, it has to give what the Ops' `perform` gives for some steps of
that. For everything else, and where there is no nvcc or anything goes wrong, the answer is no, one line says why, and XLA's own loop of
`stack_jax` computes the same. It is asked for by `RN_GRU_GPU_KERNEL=1` in the environment.

A wait between blocks that lasts for seconds is given up; then the results are NaN.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

import compiler
import engine
import report
from errors import reason
from rounding import bfloat16
from stack import GRUStack, GRUStackGrad

SOURCE = compiler.SOURCES / 'grustack.cu'
FORWARD, BACKWARD = 'rngru_grustack_forward', 'rngru_grustack_backward'
SWITCH = 'RN_GRU_GPU_KERNEL'
STEPS = 3               # of the trial


def usable(device, L, B, H):
    """Whether a stack of L layers of H units over B rows runs in one launch on a device of JAX's."""
    capability = getattr(device, 'compute_capability', '')
    if os.environ.get(SWITCH) != '1' or not capability.replace('.', '').isdecimal() or float(capability) < 8:
        return False
    kernels = library(capability)
    if kernels is None or not kernels.rngru_grustack_fits(device.local_hardware_id, L, B, H):
        return False
    return _tried(device, L, B, H)


def forward(first, W, U, b, s0):
    """(last (L, B, H), (s, zr, h) as `GRUStack` keeps them) from first (T, B, 3H), x U + b of the first layer, and all layers' W, U, b
    and s0."""
    (L, B, H), T = s0.shape, len(first)
    real, half = [(T + L - 1, L, B, H), (L, B, H), (T + L - 1, L, B, 2 * H), (T + L - 1, L, B, H)], [(L, T, B, H)] * 2
    s, last, zr, h, *_, count = _call(FORWARD, real, half, first, W, U, b, s0, s0.astype(jnp.bfloat16))
    return jnp.where(count[0], jnp.float32(jnp.nan), last), (s, zr, h)


def backward(W, U, s, zr, h, dtop):
    """(ds0 (L, B, H), (dzr (L, T, B, 2H), dh (L, T, B, H)) before the nonlinearities, 0 or where a wait was given up NaN) from W and U,
    what is kept, and dtop (T, B, H)."""
    (L, B, H), T = s.shape[1:], len(dtop)
    ds0, *dG, count = _call(BACKWARD, [(L, B, H)], [(L, T, B, 2 * H), (L, T, B, H)], W, U, s, zr, h, dtop)
    return ds0, dG, jnp.where(count[0], jnp.float32(jnp.nan), 0)


def _call(name, real, half, *inputs):
    """The results of a kernel: float32 of the shapes `real`, bfloat16 of the shapes `half`, and its counters."""
    L, _, B, _ = half[0]
    results = [(shape, jnp.float32) for shape in real] + [(shape, jnp.bfloat16) for shape in half]
    results.append(((64 * (1 + L * -(-B // 16)),), jnp.uint32))         # as `launch` clears them
    return jax.ffi.ffi_call(name, [jax.ShapeDtypeStruct(*each) for each in results])(*inputs)


@functools.cache
def library(capability):
    """The kernels for cards of this compute capability, '9.0' say, known to XLA; None where there is no way: then one line has said why."""
    try:
        path = _compiled(capability)
        try:
            return load(path, 'CUDA')
        except OSError:                         # damaged in the cache
            path.unlink()
            return load(_compiled(capability), 'CUDA')
    except (OSError, subprocess.CalledProcessError) as error:
        if isinstance(error, subprocess.CalledProcessError):
            lines = [line for line in (error.stderr or '').splitlines() if 'error' in line] or [f'it ended with {error.returncode}']
            why = f'nvcc failed ({lines[0].strip()[:200]})'
        else:
            why = 'there is no nvcc, which the CUDA toolkit brings' if isinstance(error, FileNotFoundError) else reason(error)
        return _without(why)


def load(path, platform):
    """The library at `path`, its functions made known to XLA for a platform of JAX's."""
    kernels = ctypes.CDLL(str(path))
    for name in (FORWARD, BACKWARD):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(kernels, name)), platform=platform)
    return kernels


def _without(why):
    report.say(f"In bfloat16 the layers run as a loop of XLA's, not as one GPU kernel, which is faster: {why}.")


def _compiled(capability):
    """Path of the library, compiled if it isn't in the cache; OSError or subprocess.CalledProcessError where that can't be."""
    homes = [os.path.join(home, 'bin') for home in (os.environ.get('CUDA_HOME'), '/usr/local/cuda') if home]
    nvcc = shutil.which('nvcc') or shutil.which('nvcc', path=os.pathsep.join(homes))
    if not nvcc:
        raise FileNotFoundError
    flags = ['-O3', '-std=c++17', f'-arch=sm_{capability.replace(".", "")}', '-Xcompiler', '-fPIC', '-I', jax.ffi.include_dir()]
    made = repr((nvcc, compiler.run(nvcc, '--version'), jaxlib.__version__, flags, SOURCE.read_bytes()))
    directory = Path(engine.theano.config.base_compiledir, 'rn-gru')
    path = directory / f'grustack-{hashlib.sha256(made.encode()).hexdigest()[:20]}.so'
    if not path.exists():
        report.say('Compiling the GPU kernel, once for this machine ...')
        start = time.perf_counter()
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            target = os.path.join(temporary, path.name)
            compiler.run(nvcc, *flags, '-shared', str(SOURCE), '-o', target)
            os.replace(target, path)            # whole or not at all, whoever else compiles
        report.say(f'Compiled the GPU kernel with {nvcc} in {time.perf_counter() - start:.1f} s.')
    return path


@functools.cache
def _tried(device, L, B, H):
    """Whether the kernel gives what `perform` gives for these sizes; else one line says what it does."""
    try:
        error = _error(device, L, B, H)
    except Exception as failed:                 # whatever JAX makes of a launch that fails
        return bool(_without(f'its trial failed ({reason(failed)})'))
    return bool(error < 0.01) or bool(_without(f'its trial was wrong by {error:.1%}'))


def _error(device, L, B, H):
    """The greatest difference between the kernels' results and `perform`'s, as a share of their norm, for inputs that are drawn."""
    rng = np.random.default_rng(0)

    def drawn(*shape, most=1.0):
        return rng.uniform(-most, most, shape).astype(np.float32)
    X, dtop, s0s = drawn(STEPS, B, H), drawn(STEPS, B, H), [drawn(B, H) for _ in range(L)]
    weights = [[drawn(H, 3 * H, most=H ** -0.5), drawn(H, 3 * H, most=H ** -0.5), drawn(3 * H)] for _ in range(L)]
    stack = GRUStack('vectors', 'bfloat16', L)
    given = [X, *s0s, *sum(weights, [])]
    outputs = stack(*given)
    gradients = GRUStackGrad(stack)(*given, *outputs[1:L + 1], *outputs[-3:], dtop)
    expected = engine.evaluate([*outputs[L + 1:2 * L + 1], *gradients[1:L + 1], *gradients[L + 3::3]], {})      # last, ds0, db
    U, W, b = (np.stack(each) for each in zip(*weights))
    first = bfloat16(X) @ bfloat16(U[0]) + b[0]
    with jax.ensure_compile_time_eval(), jax.default_device(device):       # while something else is being compiled
        last, kept = jax.jit(forward)(first, W, U, b, np.stack(s0s))
        ds0, dG, _ = jax.jit(backward)(W, U, *kept, dtop)
        db = np.concatenate([np.asarray(d, np.float32).sum(axis=(1, 2)) for d in dG], axis=1)
    got = [*np.asarray(last), *np.asarray(ds0), *db]
    return max(np.linalg.norm(g - e) / np.linalg.norm(e) for g, e in zip(got, expected))
