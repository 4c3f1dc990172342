"""What the tests of the native kernels share: inputs of the Ops, how the kernels are called and compared, and processes of their own."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

import native
import ops
from conftest import ROOT, kernel, perform, rates, symbol, uniform
from engine import theano
from rn_rnn_char import ModelState
from update import CACHES, Update

SOURCES = ('vectors', 'onehot', 'encoded')
SIZES = [1, 15, 16, 17, 63, 64, 65, 100, 256]
RULES = [(optimizer, clipping, averaged) for optimizer in CACHES for clipping in ('value', 'norm') for averaged in (False, True)]
NETWORK = 8                 # of SampleText's inputs, the first one of the network
STEERING = [{}, {'temp': 0.3}, {'temp': 0}, {'top_k': 5}, {'top_p': 0.8}, {'min_p': 0.1},
            {'temp': 0.8, 'top_k': 20, 'top_p': 0.9, 'min_p': 0.05}]
CXX = theano.config.cxx
KERNELS = native.library()
needskernels = pytest.mark.skipif(KERNELS is None, reason='there are no native kernels here')
needscompiler = pytest.mark.skipif(not CXX, reason='there is no C++ compiler here')
lower = pytest.mark.parametrize('precision', ['bfloat16', 'int8'])


# --- Cases ------------------------------------------------------------------------------------------------------

def grucase(source, T=3, B=2, H=16, K=4, V=5, seed=0, scale=1.0):
    """Inputs of a GRU Op in float32 whose products stay about `scale`, whatever the sizes."""
    rng = np.random.RandomState(seed)
    x = rng.randint(0, V, (T, B)).astype('int32')
    first = {'vectors': lambda: [uniform(rng, T, B, K)], 'onehot': lambda: [x],
             'encoded': lambda: [x, uniform(rng, V, K), uniform(rng, K)]}[source]()
    rows = V if source == 'onehot' else K
    return first + [uniform(rng, B, H), uniform(rng, rows, 3 * H, scale=scale / (1 if source == 'onehot' else K ** 0.5)),
                    uniform(rng, H, 3 * H, scale=scale / H ** 0.5), uniform(rng, 3 * H, scale=scale)]


def gradcase(source, saturated=0.2, dscale=1.0, seed=0, **shape):
    """Inputs of a GRUGrad Op: states and gates are drawn, a share `saturated` of the gates exactly 0 or 1."""
    inputs = grucase(source, seed=seed, **shape)
    rng = np.random.RandomState(seed + 1)
    (steps, B), H = inputs[0].shape[:2], len(inputs[-2])
    G = uniform(rng, steps, B, 3 * H)
    gates = G[:, :, :2 * H]
    gates[:] = abs(gates)
    closed = rng.rand(*gates.shape) < saturated
    gates[closed] = np.round(gates[closed])
    return inputs + [uniform(rng, steps, B, H), G, uniform(rng, steps, B, H) * np.float32(dscale)]


def losscase(T=3, B=2, H=16, V=5, seed=0, scale=1.0):
    rng = np.random.RandomState(seed)
    return [uniform(rng, T, B, H), uniform(rng, H, V, scale=scale * 3 / H ** 0.5), uniform(rng, V, scale=scale),
            rng.randint(0, V, (T, B)).astype('int32')]


def samplecase(encoded, L=2, H=16, V=66, n=1, seed=0, steps=200, temp=1.0, top_k=None, top_p=1.0, min_p=0.0, scale=3.0):
    """Inputs of a SampleText Op in float32 whose logits differ by some units, a fifth of the characters forbidden."""
    rng = np.random.RandomState(seed)
    allowed = (rng.rand(V) < 0.8).astype('int8')
    allowed[rng.randint(V)] = 1
    network = [uniform(rng, V, H), uniform(rng, H)] if encoded else []
    for l in range(L):
        rows = H if l or encoded else V
        network += [uniform(rng, rows, 3 * H, scale=scale / H ** 0.5), uniform(rng, H, 3 * H, scale=scale / H ** 0.5), uniform(rng, 3 * H)]
    network += [uniform(rng, H, V, scale=scale / H ** 0.5), uniform(rng, V)]
    return [rng.randint(0, V, n).astype('int32'), rng.uniform(size=(n, steps)), np.array(float(temp)), np.array(top_k or V),
            np.array(float(top_p)), np.array(float(min_p)), allowed, uniform(rng, L, n, H), *network]


def named(encoded, inputs):
    """The network of a samplecase as get_params gives it."""
    network = inputs[NETWORK:]
    layers = (len(network) - 2) // 3
    names = ['E', 'a'] * encoded + [f'{name}{l}' for l in range(layers) for name in 'UWb'] + ['V', 'c']
    return dict(zip(names, network))


def updatecase(shapes, seed=0, scale=1.0, optimizer='rmsprop', averaged=False, **given):
    """Inputs of an Update Op; gradients within +-4 scale, a regcost in half of the cases."""
    rng = np.random.RandomState(seed)
    params, *caches, gradients = ([uniform(rng, *shape) for shape in shapes] for _ in range(2 + len(CACHES[optimizer]) + averaged))
    if 'm' in CACHES[optimizer]:
        caches[0] = [abs(m) for m in caches[0]]
    given = {'learnrate': 0.01, 'decay': 0.95, 'beta1': 0.9, 'beta2': 0.99, 'momentum': 0.8, 'weight_decay': 0.3, 'ema': 0.9,
             'regcost': float(rng.rand() < 0.5), 'clip': 5, 'cacheupdates': 3, 'updates': 40, **given}
    return [rates(**given), uniform(rng, len(shapes)), *params, *sum(caches, []), *(np.float32(scale) * 4 * d for d in gradients)]


def large():
    """(op, inputs) large enough for several threads, with sizes that no vector divides."""
    for source in SOURCES:
        yield ops.GRU(source), grucase(source, T=6, B=13, H=65, K=37, V=40)
        yield ops.GRUGrad(source), gradcase(source, T=6, B=13, H=65, K=37, V=40)
    yield ops.SoftmaxLoss(False), losscase(T=10, B=13, H=65, V=67)
    yield ops.SoftmaxLoss(True), losscase(T=10, B=13, H=65, V=67)
    for rule in RULES:
        yield Update(*rule, 3), updatecase([(100, 301), (17,), (50, 50)], 0, 1, rule[0], rule[2], regcost=0.1)


def bits(op, inputs):
    """The outputs as bytes, of copies of the inputs: the update works in place."""
    return [np.asarray(output).tobytes() for output in kernel(op, [np.array(i) for i in inputs])]


# --- How they are called ----------------------------------------------------------------------------------------

def truth(op, inputs):
    """The same by `perform` in float64, on the same numbers."""
    with np.errstate(all='ignore'):
        return perform(op, *(i.astype('float64') if i.dtype == 'float32' else i for i in inputs))


def perform_(op, inputs):
    """`perform`, called as `kernel` is."""
    return perform(op, *inputs)


ways = pytest.mark.parametrize('how', [pytest.param(perform_, id='numpy'), pytest.param(kernel, marks=needskernels, id='native')])


def assert_close(got, expected, rtol=1e-5, atol=1e-30):
    """Norm-wise: the error's norm is below rtol times that of what is expected. atol, an element:
    where denormals are flushed or sums cancel."""
    assert len(got) == len(expected)
    for i, (g, e) in enumerate(zip(got, expected)):
        assert g.shape == e.shape, i
        e, g = np.asarray(e, 'float64'), np.asarray(g, 'float64')
        assert np.isfinite(e).all() and np.isfinite(g).all(), i
        error, size = np.linalg.norm(g - e), np.linalg.norm(e)
        assert error <= rtol * size + atol * g.size ** 0.5, f'output {i}: {error:g} of {size:g}'


LAYOUTS = ('plain', 'fortran', 'transposed', 'strided', 'reversed', 'offset', 'readonly')


def laid_out(a, layout):
    """The same values in another layout."""
    if a.ndim == 0 or layout == 'plain':
        return a
    if layout == 'fortran':
        return np.asfortranarray(a)
    if layout == 'transposed':
        return np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0)
    if layout == 'strided':
        big = np.full([2 * n for n in a.shape], 77, a.dtype)
        view = big[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        return view
    if layout == 'reversed':
        return a[::-1].copy()[::-1]
    if layout == 'offset':
        view = np.full(a.size + 1, 77, a.dtype)[1:].reshape(a.shape)
        view[...] = a
        return view
    a = a.copy()
    a.flags.writeable = False
    return a


def laid_out_each(inputs, seed):
    rng = np.random.RandomState(seed)
    return [laid_out(i, LAYOUTS[rng.randint(len(LAYOUTS))]) for i in inputs]


def fenced(node, shapes):
    """(storages that hold buffers one float off the vectors' boundary between fences, a function that checks the fences)."""
    fence, arrays = 80, []
    for output, shape in zip(node.outputs, shapes):
        arrays.append(np.full(int(np.prod(shape)) + 2 * fence + 1, 12345, output.dtype))
    storages = [[a[fence + 1:-fence].reshape(shape)] for a, shape in zip(arrays, shapes)]

    def check():
        for a in arrays:
            assert (a[:fence + 1] == 12345).all() and (a[-fence:] == 12345).all()
    return storages, check


def fenced_kernel(op, inputs):
    """The kernel's outputs, written between fences; the fences stand and the inputs are as before."""
    node = op.make_node(*map(symbol, inputs))
    before = [i.copy() for i in inputs]
    storages, check = fenced(node, [output.shape for output in truth(op, inputs)])
    got = kernel(op, inputs, storages)
    check()
    for now, then in zip(inputs, before):
        np.testing.assert_array_equal(now, then)
    return got


# --- Processes of their own -------------------------------------------------------------------------------------

def process(code, cxx=None, base=None, sources=None, **environment):
    """A started process with `native`, whose engine is but what native asks of it: fast to start, and its cache where we say."""
    env = {key: value for key, value in os.environ.items() if not key.startswith('RN_GRU_')}
    config = f'cxx={cxx or CXX!r}, base_compiledir={str(base or theano.config.base_compiledir)!r}'
    start = (f'import sys, os\nfrom pathlib import Path\nfrom types import SimpleNamespace as N\nsys.path.insert(0, {ROOT!r})\n'
             f'sys.modules["engine"] = N(nohome="", theano=N(config=N({config})))\nimport compiler, native\n'
             + (f'compiler.SOURCES = Path({str(sources)!r})\n' if sources else ''))
    return subprocess.Popen([sys.executable, '-c', start + code], env={**env, **environment}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    return out


def inchild(function):
    """(what a forked child's function(connection) sent, its exit status); None and a negative status for one that died or hung."""
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(False)
    process = context.Process(target=function, args=(theirs,))
    process.start()
    theirs.close()
    try:
        said = ours.recv() if ours.poll(30) else None
    except EOFError:
        said = None
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
    return said, process.exitcode


# --- Training ---------------------------------------------------------------------------------------------------

def losses(text, workdir, rounds, steps, **options):
    """Training and validation losses of each round, and the arrays, of a model trained end to end."""
    ms = ModelState.initfromsrcfile(text, workdir, **{'seq_len': 10, 'state_size': 17, 'layers': 2, 'seed': 7, **options})
    ms.trainmodel(num_rounds=rounds, train_len=steps, batchsize=5, valid_len=5, print_every=0)
    return np.array([(c.facts['trainloss'], c.loss) for c in ms.checkpoints()[1:]]), ms.model.arrays()
