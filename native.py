"""The native kernels, called from the Ops of `ops.py`: the library that `compiler.py` makes of `kernels/`.

The Ops call it through ctypes, not through C code of their own: every Op of C code costs the engine about a second to compile, and
needs Python's headers. Without a compiler, or with `RN_GRU_KERNELS=numpy` in the environment, the Ops compute with NumPy; with the name
of an instruction set there (`RN_GRU_KERNELS=SSE2`), by kernels for that one instead of the best one that the processor has.

Threads: as many as the process may use, `RN_GRU_THREADS` or `setthreads`. Their number doesn't change a result, bit for bit.
"""

import ctypes
import functools
import os
import subprocess

import numpy as np

import compiler
import report
from errors import checkint
from rounding import PRECISIONS

NOMEMORY, NOTNUMBERS = 1, 2  # what the kernels' functions return
MAXTHREADS = 256             # as many as the pool has seats for
_explained = set()           # the precisions of which `trainable` has said why


class Layer(ctypes.Structure):
    """`rngru_layer` of kernels/rngru.h."""

    _fields_ = ([(name, ctypes.c_int64) for name in ('T', 'B', 'K', 'H', 'N')] + [('input', ctypes.c_int), ('precision', ctypes.c_int)]
                + [(name, ctypes.c_void_p) for name in ('X', 'x', 'E', 'a', 's0', 'U', 'W', 'b', 'S', 'G', 'dS',
                                                        'dX', 'dE', 'da', 'ds0', 'dU', 'dW', 'db')])


class Optimizer(ctypes.Structure):
    """`rngru_optimizer` of kernels/rngru.h."""

    _fields_ = ([(name, ctypes.c_int) for name in ('optimizer', 'clipping')] + [('count', ctypes.c_int64)]
                + [(name, ctypes.c_void_p) for name in ('n', 'w', 'p', 'm', 'g', 'e', 'd')]
                + [(name, ctypes.c_double) for name in ('learnrate', 'decay', 'beta1', 'beta2', 'momentum', 'weight_decay', 'clip',
                                                        'regcost', 'ema', 'updates', 'cacheupdates', 'norm', 'share')])


class Sampler(ctypes.Structure):
    """`rngru_sampler` of kernels/rngru.h."""

    _fields_ = [*((name, ctypes.c_int64) for name in ('L', 'H', 'K', 'N', 'n', 'steps')),
                *((name, ctypes.c_int) for name in ('input', 'precision', 'layernorm')),
                ('temp', ctypes.c_double), ('top_k', ctypes.c_int64), ('top_p', ctypes.c_double), ('min_p', ctypes.c_double),
                *((name, ctypes.c_void_p) for name in ('E', 'a', 'U', 'W', 'b', 'Wv', 'c', 'allowed', 'uniforms',
                                                       'states', 'chars', 'out', 'S', 'kept'))]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels as a ctypes library, compiled if need be, or None where there is no way: then one line has said why."""
    wanted, threads = checkkernels(), checkthreads(None)
    if wanted == 'numpy':
        return None
    try:
        kernels = load(None if wanted == 'native' else wanted)
    except (OSError, subprocess.CalledProcessError) as error:
        report.say(f'Running on NumPy, two to three times slower than the native kernels: {compiler.why(error)}')
        return None
    kernels.rngru_set_threads(threads)
    return kernels


def checkkernels() -> str:
    """What the environment asks for: 'native', 'numpy' or one of `compiler.NAMES`; compiles nothing.

    Raises ValueError for anything else, and for an instruction set that this processor lacks or the compiler is too old for.
    """
    wanted = os.environ.get('RN_GRU_KERNELS') or 'native'
    return wanted.lower() if wanted.lower() in ('native', 'numpy') else compiler.named(wanted)


def load(name: str | None = None) -> ctypes.CDLL:
    """The kernels for the instruction set of this name (None: the best one) as a ctypes library; raises as `compiler.compiled` does."""
    path = compiler.compiled(name)
    try:
        kernels = ctypes.CDLL(str(path))
    except OSError:                             # damaged in the cache
        path.unlink()
        kernels = ctypes.CDLL(str(compiler.compiled(name)))
    _declare(kernels)
    return kernels


def setthreads(threads: int | None = None) -> int:
    """Use `threads` threads from now on; None: RN_GRU_THREADS or as many as the process may use. Their number.

    Raises TypeError or ValueError for what is no number of threads.
    """
    threads = checkthreads(threads)
    kernels = library()
    if kernels is None:
        if threads:
            report.say(f'threads={threads} changes nothing here: NumPy takes OPENBLAS_NUM_THREADS={threads} in the environment, '
                       'before Python starts.')
        return threads
    return kernels.rngru_set_threads(threads)


def checkthreads(threads: int | None) -> int:
    """The number of threads asked for by argument or environment as an int, 0: none asked for."""
    if threads is not None:
        return checkint('threads', threads, 1, MAXTHREADS)
    given = os.environ.get('RN_GRU_THREADS', '').strip()
    if not given:
        return 0
    if not given.isdecimal():
        raise ValueError(f'RN_GRU_THREADS takes a whole number, got {given!r}: correct it or unset it')
    return checkint('RN_GRU_THREADS', int(given), 1, MAXTHREADS)


def describe() -> str:
    """What computes: 'AVX2 kernels, 2 threads' or 'NumPy'."""
    kernels = library()
    if kernels is None:
        return 'NumPy'
    threads = kernels.rngru_get_threads()
    return f'{kernels.rngru_isa().decode()} kernels, {report.counted(threads, "thread")}'


def accelerates(precision: str) -> bool:
    """Whether this processor multiplies operands of `precision` faster than those of float32, and the kernels make use of it."""
    kernels = library()
    return kernels is not None and bool(kernels.rngru_accelerates(PRECISIONS.index(precision)))


def trainable(precision: str) -> str:
    """The precision that a model of hyperparameter `precision` computes in here: the same, or float32 where that is faster; then one line
    says so, once."""
    if precision == 'float32' or accelerates(precision):
        return precision
    if report.verbose and precision not in _explained:
        _explained.add(precision)
        report.say(f'Computing in float32: only kernels for AMX, or AMD\'s AVX-512, are faster in {precision} (here: {describe()}).')
    return 'float32'


def profile() -> dict[str, float]:
    """Seconds by phase of the kernels' calls since the last call of this function, a dict; the first call starts the clocks.
    NumPy has none: {}."""
    kernels = library()
    if kernels is None:
        return {}
    count = kernels.rngru_profile_read(None, None)
    names, seconds = (ctypes.c_char_p * count)(), (ctypes.c_double * count)()
    kernels.rngru_profile_read(names, seconds)
    kernels.rngru_profile(1)
    return {name.decode(): value for name, value in zip(names, seconds)}


# --- Calls --------------------------------------------------------------------------------------------------------------

def gruforward(source, precision, inputs, S, G):
    """Fill S (T, B, H) and G (T, B, 3H) from the inputs of `ops.GRU`."""
    layer, kept = _layer(source, precision, inputs, S, G)
    _call(library().rngru_gru_forward, ctypes.byref(layer))
    del kept


def grubackward(source, precision, inputs, S, G, dS, gradients):
    """Fill `gradients`, arrays in the order of the real inputs of `ops.GRU`."""
    S, G, dS = (np.ascontiguousarray(a) for a in (S, G, dS))
    layer, kept = _layer(source, precision, inputs, S, G)
    layer.dS = _address(dS)
    names = {'vectors': ['dX'], 'onehot': [], 'encoded': ['dE', 'da']}[source] + ['ds0', 'dU', 'dW', 'db']
    for name, array in zip(names, gradients):
        setattr(layer, name, _address(array))
    _call(library().rngru_gru_backward, ctypes.byref(layer))
    del kept


def softmaxloss(S, V, c, y, gradients=None):
    """The mean loss of y (T, B) behind S (T, B, H), a float; fills `gradients`, (dS, dV, dc), if given."""
    S, V, c, y = (np.ascontiguousarray(a) for a in (S, V, c, y))
    loss = ctypes.c_double()
    _call(library().rngru_softmax_loss, y.size, *V.shape, _address(S), _address(V), _address(c), _address(y),
          ctypes.byref(loss), *(_address(g) for g in gradients or ()), *() if gradients else (None, None, None))
    return loss.value


def update(optimizer, clipping, rates, w, params, caches, gradients):
    """One `update.Update`, in place: (norm, share).

    rates: attributes of the names of `update.RATES`; w (n,): factors; params, gradients: lists of n arrays; caches: such lists by kind,
    'm', 'g' or 'e'. All but w and gradients are C-contiguous.
    """
    n = len(params)
    w, gradients = np.ascontiguousarray(w), [np.ascontiguousarray(d) for d in gradients]
    lists = {name: (ctypes.c_void_p * n)(*map(_address, arrays)) for name, arrays in {'p': params, 'd': gradients, **caches}.items()}
    sizes = (ctypes.c_int64 * n)(*(p.size for p in params))
    pointers = {name: ctypes.addressof(each) for name, each in lists.items()}
    call = Optimizer(optimizer=('rmsprop', 'adam', 'adamw', 'sgd').index(optimizer), clipping=('value', 'norm').index(clipping), count=n,
                     n=ctypes.addressof(sizes), w=_address(w), **pointers, **vars(rates))
    _call(library().rngru_update, ctypes.byref(call))
    return call.norm, call.share


def dropout(S, out, threshold, scale, seed, updates, layer):
    """Fill `out`, a C-contiguous array of S's shape, as `dropout.Dropout` says."""
    S = np.ascontiguousarray(S)
    _call(library().rngru_dropout, S.size, _address(S), _address(out), threshold, scale, seed, updates, layer)


def layernorm(S, out):
    """Fill `out`, a C-contiguous array of S's shape (T, B, H), as `layernorm.LayerNorm` says."""
    S = np.ascontiguousarray(S)
    _call(library().rngru_layer_norm, S.size // S.shape[-1], S.shape[-1], _address(S), _address(out))


def layernormgrad(S, dN, dS):
    """Fill dS, a C-contiguous array of S's shape (T, B, H), as `layernorm.LayerNormGrad` says."""
    S, dN = np.ascontiguousarray(S), np.ascontiguousarray(dN)
    _call(library().rngru_layer_norm_gradient, S.size // S.shape[-1], S.shape[-1], _address(S), _address(dN), _address(dS))


def sample(source, layers, V, c, chars, uniforms, temp, top_k, top_p, min_p, allowed, states, kept=None, precision='float32',
           layernorm=False):
    """Draw characters: (their indices (n, steps) int32, the packed weights for the next call's `kept`, or None where a logit is no number).

    source: [] (one-hot) or [E, a]; layers: (U, W, b) of each; chars (n,) int32, read first; uniforms (n, steps) float64; top_k in 1 .. V;
    allowed (V,) uint8; states (L, n, H), which is changed. kept: what a call gave; used where its network was of this shape and
    precision, and weights that have changed since are packed again. layernorm: whether a layer's state is read from above as
    `layernorm.LayerNorm` passes it.
    """
    uniforms, allowed, drawn = np.ascontiguousarray(uniforms), np.ascontiguousarray(allowed), np.empty(uniforms.shape, np.int32)
    kept = _sampled(source, layers, V, c, chars, drawn, states, kept, precision, layernorm, temp=temp, top_k=top_k, top_p=top_p,
                    min_p=min_p, allowed=_address(allowed), uniforms=_address(uniforms))
    return drawn, kept


def read(source, layers, V, c, x, states, S, kept, precision, layernorm):
    """Fill S (L, T, n, H) with the states after each character of x (T, n), T at least 1; the rest as in `sample`. The packed weights, or
    None where states are no numbers: S is undefined then."""
    following = np.ascontiguousarray(np.roll(x, -1, 0).T, np.int32)         # what the last one is followed by is not read
    return _sampled(source, layers, V, c, x[0], following, states, kept, precision, layernorm, S=_address(S))


def _sampled(source, layers, V, c, chars, out, states, kept, precision, layernorm, **more):
    """The packed weights behind a call of the sampler, None where it met what is no number; more: `Sampler`'s other fields."""
    source, (V, c) = [np.ascontiguousarray(i) for i in source], [np.ascontiguousarray(i) for i in (V, c)]
    layers, chars = [[np.ascontiguousarray(i) for i in layer] for layer in layers], np.array(chars, np.int32)
    n, steps = out.shape
    pointers = [(ctypes.c_void_p * len(layers))(*(_address(i) for i in arrays)) for arrays in zip(*layers)]
    sampler = Sampler(L=len(layers), H=len(V), K=len(layers[0][0]), N=len(c), n=n, steps=steps, input=2 if source else 1,
                      precision=PRECISIONS.index(precision), layernorm=layernorm, Wv=_address(V), c=_address(c),
                      states=_address(states), chars=_address(chars), out=_address(out), **more)
    for name, pointer in zip('UWb', pointers):
        setattr(sampler, name, ctypes.addressof(pointer))
    for name, array in zip('Ea', source):
        setattr(sampler, name, _address(array))
    key = tuple(getattr(sampler, name) for name in ('L', 'H', 'K', 'N', 'input', 'precision', 'layernorm'))
    if kept is None or kept[0] != key:
        kept = key, np.zeros(library().rngru_sample_kept(ctypes.byref(sampler)), np.float32)
    sampler.kept = _address(kept[1])
    return None if _call(library().rngru_sample, ctypes.byref(sampler)) == NOTNUMBERS else kept


def _layer(source, precision, inputs, S, G):
    """(a Layer that points to the arrays, the arrays that it must not outlive)."""
    *read, s0, U, W, b = kept = [np.ascontiguousarray(i) for i in inputs]
    (T, B, H), K = S.shape, U.shape[0]
    layer = Layer(T=T, B=B, K=K, H=H, N=1, input=('vectors', 'onehot', 'encoded').index(source), precision=PRECISIONS.index(precision),
                  S=_address(S), G=_address(G), s0=_address(s0), U=_address(U), W=_address(W), b=_address(b))
    if source == 'vectors':
        layer.X = _address(read[0])
    else:
        layer.x = _address(read[0])
    if source == 'encoded':
        layer.N, layer.E, layer.a = len(read[1]), _address(read[1]), _address(read[2])
    return layer, kept


def _address(array):
    """Where a C-contiguous array's numbers lie; a third of the time that `array.ctypes.data` takes."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):             # read-only, or empty
        return array.ctypes.data


def _call(function, *arguments):
    code = function(*arguments)
    if code == NOMEMORY:
        raise MemoryError('the kernels found no memory for a step: use a smaller batchsize, seq_len or network')
    return code


def _declare(kernels):
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    kernels.rngru_gru_forward.argtypes = kernels.rngru_gru_backward.argtypes = [ctypes.POINTER(Layer)]
    kernels.rngru_softmax_loss.argtypes = [size, size, size] + [pointer] * 4 + [ctypes.POINTER(ctypes.c_double)] + [pointer] * 3
    kernels.rngru_update.argtypes = [ctypes.POINTER(Optimizer)]
    kernels.rngru_dropout.argtypes = [size, pointer, pointer, ctypes.c_uint32, ctypes.c_float] + [ctypes.c_uint64] * 2 + [ctypes.c_uint32]
    kernels.rngru_layer_norm.argtypes = [size, size, pointer, pointer]
    kernels.rngru_layer_norm_gradient.argtypes = [size, size, pointer, pointer, pointer]
    kernels.rngru_sample.argtypes = kernels.rngru_sample_kept.argtypes = [ctypes.POINTER(Sampler)]
    kernels.rngru_sample_kept.restype = size
    kernels.rngru_isa.restype = ctypes.c_char_p
    kernels.rngru_accelerates.argtypes = [ctypes.c_int]
    kernels.rngru_profile.restype = None
