"""What all tests share: the engine made quiet, the library silent, and a GRU written out number by number.

`python -m pytest` with PyTensor's environment or with classic Theano's runs the same tests on that engine.
"""

import contextlib
import os
import signal
import sys
import warnings

import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:         # a shell's background job; the tests' own processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')       # machine code as it comes, made in half the time

# A home that can't be written gets its compile directory from engine.py, so none is chosen here.
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import engine
    from engine import T, theano


def pytest_configure(config):
    if engine.name == 'theano':                 # it uses what NumPy and Python have deprecated since
        for category in ('DeprecationWarning', 'PendingDeprecationWarning', 'FutureWarning'):
            config.addinivalue_line('filterwarnings', f'ignore::{category}:theano.*')
            config.addinivalue_line('filterwarnings', f'ignore::{category}:numpy.*')


STARTSJAX = 'test_device', 'test_ops_jax', 'test_papers', 'test_parallel', 'test_stack', 'test_stack_cuda'


def pytest_collection_modifyitems(config, items):
    """Leave the `anyengine` tests to PyTensor, unless the long ones run, so that both suites end within minutes; and what starts JAX to the
    end, since a process with its threads must not fork, as other tests do."""
    items.sort(key=lambda item: item.path.stem in STARTSJAX)
    if engine.name == 'pytensor' or config.getoption('markexpr') != 'not long':
        return
    left = [item for item in items if item.get_closest_marker('anyengine') and item.get_closest_marker('anyengine').args != (False,)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_report_header(config):
    return f'{engine.version}, NumPy {np.__version__}'


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """The library says nothing, unless a test sets `report.verbose` itself."""
    import report
    monkeypatch.setattr(report, 'verbose', False)


@pytest.fixture
def threads_as_before():
    """The kernels have their own number of threads again, whatever the test has set."""
    import native
    library = native.library()
    yield
    if library is not None:
        library.rngru_set_threads(0)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text(''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(300)))
    return path


FOXES = ''.join(f'Line {i}: the quick brown fox, {i * i}.\n' for i in range(60))


@pytest.fixture
def srcfile(tmp_path):
    """FOXES in a file."""
    path = tmp_path / 'text.txt'
    path.write_text(FOXES)
    return path


# --- The naive network: float64, one number at a time, straight from DESIGN's formulas --------------------------

def hard_sigmoid(v):
    v = 0.2 * v + 0.5
    return 0.0 if v < 0 else 1.0 if v > 1 else v


def naive_step(x, s, U, W, b):
    """The next state (H,), a list, of one row: x (K,) the input vector, s (H,) the state. Every gate written out, number by number."""
    H, K = len(s), len(x)

    def into(column, state):
        total = b[column]
        for k in range(K):
            total = total + x[k] * U[k][column]
        for j in range(H):
            total = total + state[j] * W[j][column]
        return total

    z = [hard_sigmoid(into(i, s)) for i in range(H)]
    r = [hard_sigmoid(into(H + i, s)) for i in range(H)]
    rs = [r[j] * s[j] for j in range(H)]
    h = [float(np.tanh(into(2 * H + i, rs))) for i in range(H)]
    return [(1 - z[i]) * h[i] + z[i] * s[i] for i in range(H)]


def naive_gru(X, s0, U, W, b):
    """S (T, B, H) in float64 of a GRU over vectors X (T, B, K) from s0 (B, H): row by row, step by step."""
    X, s0, U, W, b = (np.asarray(i, np.float64).tolist() for i in (X, s0, U, W, b))
    S = []
    state = s0
    for x in X:
        state = [naive_step(x[row], state[row], U, W, b) for row in range(len(state))]
        S.append(state)
    return np.array(S)


def naive_vectors(source, inputs):
    """The vectors (T, B, K), float64, that a GRU of this source reads; `inputs`: (X,), (x, V) for 'onehot' or (x, E, a)."""
    if source == 'vectors':
        return np.asarray(inputs[0], np.float64)
    x = inputs[0]
    T, B = x.shape
    size = inputs[1] if source == 'onehot' else inputs[1].shape[1]
    X = np.zeros((T, B, size))
    for t in range(T):
        for row in range(B):
            if source == 'onehot':
                X[t, row, x[t, row]] = 1
            else:
                for k in range(size):
                    X[t, row, k] = np.tanh(float(inputs[1][x[t, row], k]) + float(inputs[2][k]))
    return X


def naive_layernorm(S):
    """S (..., H) in float64, each row less its mean and over the root of its variance and 1e-5: row by row, number by number."""
    out = np.array(S, np.float64)
    for index in np.ndindex(*out.shape[:-1]):
        row = out[index].tolist()
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        out[index] = [(value - mean) / (variance + 1e-5) ** 0.5 for value in row]
    return out


def naive_states(params, x, s0, layernorm=False):
    """Every layer's states, a list of (T, B, H) in float64, of the network `params` (get_params' dict) over x (T, B) from s0 (L, B, H)."""
    if 'E' in params:
        X = naive_vectors('encoded', (x, params['E'], params['a']))
    else:
        X = naive_vectors('onehot', (x, params['U0'].shape[0]))
    states = []
    for l in range(len(s0)):
        S = naive_gru(X, s0[l], params[f'U{l}'], params[f'W{l}'], params[f'b{l}'])
        states.append(S)
        X = naive_layernorm(S) if layernorm else S
    return states


def naive_logits(params, x, s0, layernorm=False):
    """(logits (T, B, V), last states (L, B, H)) in float64."""
    states = naive_states(params, x, s0, layernorm)
    V, c = np.asarray(params['V'], np.float64), np.asarray(params['c'], np.float64)
    top = naive_layernorm(states[-1]) if layernorm else states[-1]
    return np.einsum('tbh,hv->tbv', top, V) + c, np.array([S[-1] for S in states])


def naive_nll(logits, y):
    """Mean negative log-likelihood of y under softmax(logits): a log-sum-exp for each character, in float64."""
    rows, y = np.asarray(logits, np.float64).reshape(-1, np.shape(logits)[-1]), np.ravel(y)
    total = 0.0
    for row, char in zip(rows, y):
        top = max(row)
        total += top + np.log(sum(np.exp(value - top) for value in row)) - row[char]
    return total / len(y)


def naive_kept(logits, allowed, temp=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """The characters that may be drawn, a dict of index -> share, by the definition: rank those allowed, then leave out some."""
    ranking = sorted((v for v in range(len(logits)) if allowed[v]), key=lambda v: (-logits[v], v))
    shares = {v: float(np.exp((logits[v] - logits[ranking[0]]) / temp)) for v in ranking}
    ranking = ranking[:top_k]
    total, kept, reached = sum(shares[v] for v in ranking), [], 0.0
    for v in ranking:
        if top_p < 1 and reached >= top_p * total:
            break
        kept.append(v)
        reached += shares[v]
    return {v: shares[v] for v in sorted(kept) if shares[v] >= min_p * shares[ranking[0]]}


def naive_sample(params, s0, first, uniforms, temp, allowed, layernorm=False, **steering):
    """Indices and the state (L, H) before the last of them is read: the whole text through the naive GRU again for each draw."""
    read = [first]
    for uniform in uniforms:
        logits, last = naive_logits(params, np.array(read)[:, None], s0[:, None, :], layernorm)
        logits = logits[-1, 0]
        if temp == 0:
            char = max((v for v in range(len(logits)) if allowed[v]), key=lambda v: logits[v])
        else:
            shares = naive_kept(logits, allowed, temp, **steering)
            left = uniform * sum(shares.values())
            for char, share in shares.items():      # noqa: B007 (char is read behind the loop)
                left -= share
                if left < 0:
                    break
        read.append(char)
    return read[1:], last[:, 0]


# --- Calls of Ops ------------------------------------------------------------------------------------------------

def uniform(rng, *shape, scale=1.0):
    return rng.uniform(-scale, scale, shape).astype('float32')


def symbol(value):
    value = np.asarray(value)
    return (T.scalar, T.vector, T.matrix, T.tensor3, T.tensor4)[value.ndim](dtype=str(value.dtype))


def between(ms, actions):
    """Have `actions[n]` called before the n-th step from now."""
    trainstep, count = ms.model.trainstep, [0]

    def step(*args):
        count[0] += 1
        actions.get(count[0], int)()
        return trainstep(*args)
    ms.model.trainstep = step


def perform(op, *values):
    """What the Op's `perform` gives for NumPy arrays."""
    values = [np.asarray(value) for value in values]
    node = op.make_node(*map(symbol, values))
    storage = [[None] for _ in node.outputs]
    op.perform(node, values, storage)
    return [s[0] for s in storage]


def kernel(op, inputs, storages=None):
    """What the Op's native kernel gives, outputs in a list; fails if there is no kernel."""
    node = op.make_node(*map(symbol, inputs))
    work = op.kernel(node)
    assert work is not None
    storages = storages or [[None] for _ in node.outputs]
    work(list(inputs), storages)
    return [storage[0] for storage in storages]


def rates(**given):
    """The rates that an Update Op takes; 0 where none is given."""
    from update import RATES
    assert set(given) <= set(RATES)
    return np.array([given.get(name, 0.0) for name in RATES], 'float64')


def assert_needs(monkeypatch, numbers, kind, *sizes, **given):
    """That a machine with memory for so many float32 numbers may train this, a layers.ModelParams of these sizes, and none with less."""
    import errors
    for memory, fits in ((4 * numbers, True), (4 * numbers - 1, False)):
        monkeypatch.setattr(errors.os, 'sysconf', lambda name: {'SC_PAGE_SIZE': 1}.get(name, memory))
        with contextlib.nullcontext() if fits else pytest.raises(MemoryError):
            kind.checkmemory(*sizes, **given)


@pytest.fixture
def nocompiler(monkeypatch):
    """Compiling anything fails."""
    def fail(*args, **kwargs):
        raise AssertionError('something was compiled')
    monkeypatch.setattr(engine, 'compilefunction', fail)
    monkeypatch.setattr(theano, 'function', fail)
