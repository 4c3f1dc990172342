"""Data parallel training: what several devices give is what one gives. XLA's virtual devices on the processor stand for all, and processes
that talk over the loopback for machines.

A process has as many virtual devices as its environment said when JAX began, so all of it happens in children: `python test_parallel.py`.
"""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cluster
import device
import engine
import report
import train
from errors import WorkDirError
from model import ModelState

needsjax = pytest.mark.skipif(engine.name != 'pytensor' or importlib.util.find_spec('jax') is None,
                              reason='needs PyTensor and JAX (requirements-jax.txt)')
SETTINGS = {'rmsprop': dict(), 'adamw': dict(modeltype='GRUResize', optimizer='adamw', clipping='norm', ema=0.99, regcost=0.1),
            'adam': dict(optimizer='adam', dropout=0.2, layernorm=True, valid_frac=0.2),
            'sgd': dict(optimizer='sgd', learnrate=0.05, precision='bfloat16')}
RUN = dict(batchsize=8, train_len=30, print_every=0)


def make(text, path, **hyper):
    return ModelState.initfromsrcfile(text, path, seed=3, seq_len=20, layers=2, state_size=24, **hyper)


def losses(ms):
    return [*ms.history().steps['loss'].tolist(), *ms.history().validations['loss'].tolist()]


# --- Children ---------------------------------------------------------------------------------------------------------

def child(job, *words, devices=1, **more):
    """A process that does `job` of those below, with so many virtual devices."""
    env = {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu',
           'PYTHONWARNINGS': 'error', 'OPENBLAS_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, __file__, job, *map(str, words)], env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **more)


def told(process, code=0):
    """What it wrote last, by JSON."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def compilations():
    """Gives a list of what is compiled for several devices in the block: (HLO text, its FLOP)."""
    import jax
    real, found = jax.jit, []

    def jit(*args, **options):
        f = real(*args, **options)
        if 'out_shardings' not in options:
            return f

        def call(*values):
            if call is not None and not any(each is f for each, *_ in found):
                done = f.lower(*values).compile()
                found.append((f, done.as_text(), done.cost_analysis()['flops']))
            return f(*values)
        return call
    jax.jit = jit
    try:
        yield found
    finally:
        jax.jit = real


def virtual(text, path):
    """Trains on 1, 2, 4 and 8 of eight devices in one process."""
    device.native.trainable = lambda precision: precision           # bfloat16 whatever the processor has
    results = {}
    for name, settings in SETTINGS.items():
        for devices in (1, 4):
            ms = make(text, f'{path}/{name}{devices}', **settings)
            with compilations() as found:
                ms.trainmodel(**RUN, **{} if 'valid_frac' in settings else {'valid_len': 3}, device='jax', devices=devices)
            results[f'{name} {devices}'] = losses(ms)
            if name == 'rmsprop' and devices == 4:
                results['hlo'], results['flop'] = [each[1:] for each in found][0]
                results['text'] = ms.sample(40, seed=1)
    for devices in (2, 8):
        ms = make(text, f'{path}/{devices}')
        ms.trainmodel(**RUN, valid_len=3, devices=devices)
        results[f'rmsprop {devices}'] = losses(ms)
    results['device'] = ms.device.describe()
    # Three rounds: one on eight devices, one more on two, and the last on the processor's own kernels.
    ms = make(text, f'{path}/moved')
    for devices in (8, 2, 1):
        ms.trainmodel(**RUN, valid_len=3, **{'devices': devices} if devices > 1 else {'device': 'cpu'})
    results['moved'] = losses(ms)
    results['refused'] = []
    for wrong in ({'batchsize': 10, 'devices': 4}, {'batchsize': 3, 'devices': 'all'}, {'devices': 9}, {'devices': 2, 'device': 'cpu'},
                  {'devices': 2, 'device': 'jax:1'}):
        try:
            ms.trainmodel(**wrong)
        except ValueError as error:
            results['refused'].append(str(error))
    results['merged'] = merged()
    with compilations() as found:
        ms.trainmodel(batchsize=8, train_len=1, valid_len=1, print_every=0, devices=1, device='jax')
    return results


def merged():
    """(HLO, FLOP of one device, FLOP of one without the others) of a product that merges T and B, compiled for eight devices."""
    import jax
    P, mesh = jax.sharding.PartitionSpec, jax.sharding.Mesh(np.array(jax.devices()), ('rows',))
    T, B, H = 20, 8, 24
    shapes = [jax.ShapeDtypeStruct((T, B, H), np.float32, sharding=jax.sharding.NamedSharding(mesh, P(None, 'rows'))),
              jax.ShapeDtypeStruct((H, H), np.float32, sharding=jax.sharding.NamedSharding(mesh, P()))]
    done = jax.jit(lambda X, W: (X.reshape(T * B, H) @ W).reshape(T, B, H).sum()).lower(*shapes).compile()
    return done.as_text(), done.cost_analysis()['flops'], 2 * T * B * H * H


def together(text, path, processes, process, port, written):
    """Trains with other processes; the results of the first part are written to a file, since the last part ends in death."""
    opened = []
    sys.addaudithook(lambda event, args: opened.append([event, str(args[0])]) if
                     (event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                      or event in ('os.mkdir', 'os.rename', 'os.remove', 'os.truncate')) and str(path) in str(args[0]) else None)
    process, results = int(process), {}
    cluster.join(f'127.0.0.1:{port}', int(processes), process)
    report.verbose = True
    ms = make(text, path, **SETTINGS['adam'])
    for wrong in ({'batchsize': 3}, {'devices': 1}, {'patience': 0}):
        try:
            ms.trainmodel(**wrong)
        except ValueError as error:
            results[str(wrong)] = str(error)
    ms.trainmodel(**{**RUN, 'print_every': 20}, num_rounds=2, patience=5)
    results.update(first=losses(ms), checkpoint=ms.checkpoint.name, updates=ms.model.updates)
    steps, real = [0], train._step

    def step(*args):
        steps[0] += 1
        if steps[0] == 40 and process == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*args)
    train._step = step
    ms.trainmodel(batchsize=8, train_len=10 ** 6, print_every=0)
    results.update(stopped=ms.model.updates, then=ms.checkpoint.name, opened=opened)
    print(json.dumps(results))
    with open(written, 'w') as file:
        json.dump(results, file)

    def dying(*args):
        if ms.model.updates == results['stopped'] + 20 and process == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    train._step = dying
    ms.trainmodel(batchsize=8, train_len=10 ** 6, print_every=0)


if __name__ == '__main__':
    report.verbose = False
    result = {'virtual': virtual, 'together': together}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(result))
    sys.exit()
