"""Which Theano: PyTensor where it is installed, else classic Theano 1.0.5.

The only module that knows the difference. Everything else says `from engine import theano, T` and gets the
same names from either. `RN_GRU_ENGINE=pytensor` or `RN_GRU_ENGINE=theano` in the environment forces one.

Names handed out
----------------
theano, T       the engine and its tensor module
Op              base class of our Ops; a subclass declares its gradient once, as `pullback`, and may have a native body
Apply           a node of the graph
Disconnected    `Disconnected()`: the gradient of an input (an index, say) that has none
isdisconnected  whether a gradient is such a one
compilefunction, compilejax, checkjax, evaluate
Expression      the type of a graph's variables, in signatures
held, hold      the array in a shared variable as it lies there, and to put one there
"""

import configparser
import importlib.util
import logging
import os
import shutil
import stat
import sys
import tempfile
import warnings
from typing import Any

import numpy as np

NAMES = ('pytensor', 'theano')
Expression = Any            # in signatures: a variable of the engine's graphs, or what one is made of


def _choose():
    """Name of the engine to import.

    Raises, in one sentence, ImportError when RN_GRU_ENGINE names none, ModuleNotFoundError when the one it names isn't installed.
    """
    wanted = os.environ.get('RN_GRU_ENGINE')
    if wanted and wanted not in NAMES:
        raise ImportError(f"RN_GRU_ENGINE={wanted!r} is no engine: use 'pytensor' or 'theano', or unset it")
    for name in (wanted,) if wanted else NAMES:
        if importlib.util.find_spec(name):
            return name
    raise ModuleNotFoundError(f'this Python has no {wanted or "PyTensor (nor classic Theano)"}', name=wanted or 'pytensor')


def _setenvironment():
    """Give the engines what they can't be imported without, and a bare environment lacks: a home, a PATH."""
    if os.path.expanduser('~') == '~':          # no HOME, and a user without a name, as containers have them
        os.environ['HOME'] = os.sep
    os.environ.setdefault('PATH', os.defpath)   # else gcc finds no linker


def _setflags(name):
    """Put the flags we need into the environment, unless the user has set them there or in his rc file; why the cache moves, or ''."""
    flags, rc = f'{name.upper()}_FLAGS', f'{name.upper()}RC'
    files = configparser.RawConfigParser(strict=False)
    try:
        files.read(os.path.expanduser(path) for path in os.environ.get(rc, f'~/.{name}rc').split(os.pathsep))
    except configparser.Error:
        pass                                    # the engine itself will say what is wrong with the file
    theirs = os.environ.get(flags, '')
    given = {item.split('=')[0].strip().replace('__', '.') for item in theirs.split(',')}

    def isgiven(key):
        section, _, option = key.replace('__', '.').rpartition('.')
        return key.replace('__', '.') in given or files.has_option(section or 'global', option)
    # An empty ldflags: classic Theano fails to link on newer NumPy, and the system's BLAS may be a slow one.
    wanted = {'floatX': 'float32', 'blas__ldflags' if name == 'pytensor' else 'blas.ldflags': ''}
    home = os.path.expanduser(f'~/.{name}')
    parent = home if os.path.isdir(home) else os.path.dirname(home)
    reason = ''
    if not isgiven('base_compiledir') and not (os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK)):
        wanted['base_compiledir'], reason = _privatedir(name, parent), f"{parent} can't be written"
    # On Linux the engines look for g++ only.
    if sys.platform == 'linux' and not shutil.which('g++') and (compiler := shutil.which('clang++') or shutil.which('c++')):
        wanted['cxx'] = compiler
    os.environ[flags] = ','.join([*filter(None, [theirs]), *(f'{key}={value}' for key, value in wanted.items() if not isgiven(key))])
    return reason


def _privatedir(name, parent):
    """A temporary directory, the same one in each process, that nobody else can put code into; ImportError, in one sentence, where there is
    none, as where the whole system can only be read: the engine wants one when it is imported."""
    try:
        path = os.path.join(tempfile.gettempdir(), f'{name}-{os.getuid()}')
    except FileNotFoundError:
        raise ImportError(f"neither {parent} nor a temporary directory can be written, and {name} needs one of them: "
                          "set TMPDIR to a directory that can be written") from None
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            return tempfile.mkdtemp(prefix=f'{name}-')
    return path


name = _choose()
_setenvironment()
nohome = _setflags(name)            # why compiled code goes to a temporary directory; '': it doesn't

if name == 'pytensor':
    import pytensor as theano
    import pytensor.tensor as T
    from pytensor.graph.basic import Apply, Constant
    from pytensor.link.c.op import COp as _Op
else:
    # Classic Theano's import warns of deprecations in NumPy and of the BLAS that we chose not to link.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.getLogger('theano.tensor.blas').setLevel(logging.ERROR)
        logging.getLogger('theano.configdefaults').setLevel(logging.ERROR)
        import theano
        import theano.tensor as T
    from theano import Apply, Constant

    class _Op(theano.Op):           # type: ignore[no-redef]
        """Theano's Op under PyTensor's way to declare a gradient."""

        def L_op(self, inputs, outputs, output_grads):
            return self.pullback(inputs, outputs, output_grads)


class Op(_Op):
    """Base class of our Ops: `perform` is their truth in NumPy, `kernel` says what a compiled function runs in its place."""

    def kernel(self, node):
        """A native function (inputs, output storages) that does what `perform` does, or None where only that can."""
        return None

    def make_thunk(self, node, storage_map, compute_map, no_recycling, impl=None):
        work = self.kernel(node)
        if work is None:
            return super().make_thunk(node, storage_map, compute_map, no_recycling, impl)
        inputs, outputs = [storage_map[i] for i in node.inputs], [storage_map[o] for o in node.outputs]
        computed = [compute_map[o] for o in node.outputs]

        def thunk():
            work([i[0] for i in inputs], outputs)
            for flag in computed:
                flag[0] = True
        thunk.inputs, thunk.outputs, thunk.lazy = inputs, outputs, False
        return thunk


if theano.config.cxx and not shutil.which(theano.config.cxx) and not shutil.which(theano.config.cxx.split()[0]):
    theano.config.cxx = ''       # named, but not there: as without one

version = f'{"PyTensor" if name == "pytensor" else "Theano"} {theano.__version__}'


def Disconnected():
    """The gradient of an input that has none."""
    return theano.gradient.DisconnectedType()()


def isdisconnected(gradient):
    """Whether `gradient` says that nothing depends on what it belongs to."""
    return isinstance(gradient.type, theano.gradient.DisconnectedType)


def compilefunction(inputs, outputs, updates=()):
    """A callable from symbolic `inputs` to `outputs` that carries out `updates` (pairs of shared variable, value).

    Ops that work in place are welcome. Intermediate arrays are kept between calls: a training step would otherwise
    spend its time on fresh pages.
    """
    mode = theano.compile.mode.Mode(linker='vm_nogc', optimizer='fast_run')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')         # classic Theano: deprecations in NumPy
        f = theano.function(inputs, outputs, updates=list(updates), mode=mode, accept_inplace=True,
                            on_unused_input='ignore')
    f.trust_input = True
    return f


def checkjax(what):
    """ValueError or ModuleNotFoundError where `what`, an argument or a call, needs JAX and it can't be used."""
    if name != 'pytensor':
        raise ValueError(f"{what} needs PyTensor, and this is classic Theano, which computes on the CPU only: "
                         "pip install -r requirements.txt, or device='cpu'")
    if importlib.util.find_spec('jax') is None:
        raise ModuleNotFoundError(f"{what} needs JAX, which isn't installed: pip install -r requirements-jax.txt "
                                  '(for an NVIDIA GPU pip install "jax[cuda13]")', name='jax')


def compilejax(inputs, outputs, updates, jit):
    """As `compilefunction`, but the whole graph as one computation by JAX; PyTensor only.

    jit(function, inputs, outputs, updated): the compiled form of `function`, which takes the values of the symbolic `inputs`, the shared
    variables behind those given here, to a tuple of those of `outputs`, the new values of shared variables behind those given here;
    updated: a dict from the index of such an output to that of the input that it takes the place of.
    """
    from pytensor.link.jax.linker import JAXLinker

    class Linker(JAXLinker):
        def jit_compile(self, function):
            graph = self.fgraph
            return jit(function, graph.inputs, graph.outputs, dict(graph.update_mapping or {}))
    mode = theano.compile.mode.Mode(linker=Linker(), optimizer=theano.compile.mode.JAX.provided_optimizer)
    f = theano.function(inputs, outputs, updates=list(updates), mode=mode, accept_inplace=True, on_unused_input='ignore')
    f.trust_input = True            # else what comes from the device would become NumPy's
    return f


def held(shared):
    """The array in a shared variable, no copy: NumPy's, or behind a function of `compilejax` JAX's."""
    return shared.container.storage[0]


def hold(shared, array):
    """Put an array of its type, NumPy's or JAX's, into a shared variable as it is."""
    shared.container.storage[0] = array


def evaluate(outputs, givens):
    """Values of `outputs` (variables) given those of others (a dict), by each Op's NumPy `perform`: nothing is compiled.

    For graphs of our own Ops; shared variables and constants stand for themselves.
    """
    values = dict(givens)
    return [_value(variable, values) for variable in outputs]


def _value(variable, values):
    """The variable's value, from those in the dict `values`, which it adds to. No closure that calls itself: such a cycle would keep all
    arrays until Python's collector happens to run."""
    if variable not in values:
        node = variable.owner
        if node is None:
            values[variable] = (variable.data if isinstance(variable, Constant)
                                else np.asarray(held(variable)))
        else:
            storage = [[None] for _ in node.outputs]
            node.op.perform(node, [_value(i, values) for i in node.inputs], storage)
            values.update(zip(node.outputs, (s[0] for s in storage)))
    return values[variable]
