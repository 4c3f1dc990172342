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
from model import ModelState
from run import Run

needsjax = pytest.mark.skipif(engine.name != 'pytensor' or importlib.util.find_spec('jax') is None,
                              reason='needs PyTensor and JAX (requirements-jax.txt)')
SETTINGS = {'adam': dict(optimizer='adam', dropout=0.2, layernorm=True, precision='bfloat16'),
            'adamw': dict(modeltype='GRUResize', optimizer='adamw', clipping='norm', ema=0.99, regcost=0.1),
            'sgd': dict(optimizer='sgd', learnrate=0.05)}
RUN = dict(batchsize=8, train_len=30, print_every=0)
HELDOUT = dict(optimizer='adam', dropout=0.2, valid_frac=0.2)


def make(text, path, **hyper):
    return ModelState.initfromsrcfile(text, path, seed=3, seq_len=20, layers=2, state_size=24, **hyper)


def losses(ms):
    return [*ms.history().steps['loss'].tolist(), *ms.history().validations['loss'].tolist()]


# --- Children ---------------------------------------------------------------------------------------------------------

def child(job, *words, devices=1, **more):
    """A process that does `job` of those below, with so many virtual devices."""
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
    env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'error', 'OPENBLAS_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, __file__, job, *map(str, words)], env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **more)


def told(process, code=0):
    """What it wrote last, by JSON."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def compilations():
    """Gives a list of the training steps that are compiled in the block: (HLO text, FLOP of a device)."""
    import jax
    real, found = jax.jit, []

    def jit(*args, **options):
        f, isnew = real(*args, **options), True
        if not options.get('donate_argnums'):
            return f

        def call(*values):
            nonlocal isnew
            if isnew:
                done, isnew = f.lower(*values).compile(), False
                found.append((done.as_text(), done.cost_analysis()['flops']))
            return f(*values)
        return call
    jax.jit = jit
    try:
        yield found
    finally:
        jax.jit = real


def virtual(text, path):
    """One round on eight devices, one on two, one on the processor's kernels, the model loaded anew each time."""
    make(text, path)
    with compilations() as found:
        for how in {'devices': 'all'}, {'devices': 2}, {'device': 'cpu'}:
            ms = ModelState.load(path)
            ms.trainmodel(**RUN, valid_len=3, **how)
    hlo, flop8, flop2 = found[0][0], found[0][1], found[1][1]
    refused = []
    for wrong in ({'batchsize': 10, 'devices': 4}, {'batchsize': 3, 'devices': 'all'}, {'devices': 9}, {'devices': 2, 'device': 'cpu'},
                  {'devices': 2, 'device': 'jax:1'}, {'devices': 'two'}):
        try:
            ms.trainmodel(**wrong)
        except ValueError as error:
            refused.append(str(error))
    return {'losses': losses(ms), 'hlo': hlo, 'flop8': flop8, 'flop2': flop2, 'refused': refused, 'merged': merged()}


def merged():
    """(HLO, FLOP of a device) of a product that merges T and B, compiled for eight devices."""
    import jax
    P, mesh = jax.sharding.PartitionSpec, jax.sharding.Mesh(np.array(jax.devices()), ('rows',))
    shapes = [jax.ShapeDtypeStruct(shape, np.float32, sharding=jax.sharding.NamedSharding(mesh, spec))
              for shape, spec in (((20, 8, 24), P(None, 'rows')), ((24, 24), P()))]
    done = jax.jit(lambda X, W: (X.reshape(160, 24) @ W).reshape(20, 8, 24)).lower(*shapes).compile()
    return done.as_text(), done.cost_analysis()['flops']


def settings(text, path, *names):
    """Trains on one and on four devices with these SETTINGS."""
    device.native.trainable = lambda precision: precision           # bfloat16 whatever the processor has
    results = {}
    for name in names:
        results[name] = []
        for devices in 1, 4:
            ms = make(text, f'{path}/{name}{devices}', **SETTINGS[name])
            ms.trainmodel(**RUN, valid_len=3, device='jax', devices=devices)
            results[name].append(losses(ms))
        results[name].append([ms.sample(40, seed=1), ms.score('some words').nats])
        ms.restore(device='cpu')
        results[name].append([ms.sample(40, seed=1), ms.score('some words').nats])
    return results


def together(text, path, processes, process, port, dies):
    """Trains with other processes; process `dies` ends by a kill. What is told is told before."""
    opened = []

    def listen(event, args):
        if (event in ('os.mkdir', 'os.rename', 'os.remove', 'os.truncate', 'os.link') or
                event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and path in str(args[0]):
            opened.append(f'{event} {args[0]}')
    sys.addaudithook(listen)
    cluster.join(f'127.0.0.1:{port}', int(processes), int(process))
    report.verbose, results = True, {'refused': []}
    ms = make(text, path, **HELDOUT)
    for wrong in ({'batchsize': 3}, {'devices': 1}, {'batchsize': 10 ** 6}):
        try:
            ms.trainmodel(**wrong)
        except ValueError as error:
            results['refused'].append(str(error))
    ms.trainmodel(**{**RUN, 'print_every': 20}, num_rounds=2)
    results['one'] = losses(ms)
    # A learning rate that spoils it, and so an end on the best checkpoint.
    ms.hyper.learnrate = 0.5
    ms.trainmodel(**RUN, patience=1)
    results['best'], ms.hyper.learnrate = [ms.checkpoint.facts['copyof'], ms.checkpoint.name], 0.001
    results['V'] = float(ms.model.get_params()['V'].sum(dtype=np.float64))
    # By the clock of process 0, whatever the others' say.
    timed, measure, replan, plans = make(text, f'{path}/timed', **HELDOUT), train._measure, Run.replan, []
    train._measure = lambda *args: (lambda step, validation, count: (step, validation + 2 * int(process), count))(*measure(*args))
    train.MEASURE, Run.replan = 0.2, lambda run, *times: replan(run, *times) or plans.append(run.steps)
    timed.trainmodel(**{**RUN, 'train_len': 1})             # which compiles
    timed.trainmodel(minutes=0.08, batchsize=8, print_every=0)
    results['plans'] = [*plans, timed.model.updates]
    # A Ctrl-C in process 1.
    real, steps = train._step, 0

    def step(*args):
        nonlocal steps
        steps += 1
        if steps == 40 and process == '1':
            signal.raise_signal(signal.SIGINT)
        if steps == 170 and process == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    train._step = step
    ms.trainmodel(**{**RUN, 'train_len': 200})
    results.update(stopped=ms.model.updates, checkpoint=ms.checkpoint.name, V2=float(ms.model.get_params()['V'].sum(dtype=np.float64)))
    print(json.dumps({**results, 'opened': opened}), flush=True)
    ms.trainmodel(resume=True, print_every=0)


if __name__ == '__main__':
    report.verbose = False
    print(json.dumps({'virtual': virtual, 'settings': settings, 'together': together}[sys.argv[1]](*sys.argv[2:])))
    sys.exit()


# --- One process ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp('parallel') / 'text.txt'
    # Of which a fifth, held out, is ten steps of eight rows and three characters more.
    path.write_text(''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(300))[:8004])
    return path


@pytest.fixture(scope='module')
def eight(source, tmp_path_factory):
    """What `virtual` tells, and the losses of the same rounds on the processor's kernels."""
    directory = tmp_path_factory.mktemp('eight')
    process = child('virtual', source, directory / 'work', devices=8)
    ms = make(source, directory / 'one', verbose=False)
    ms.trainmodel(**RUN, num_rounds=3, valid_len=3, verbose=False)
    return {**told(process), 'one': losses(ms)}


@needsjax
def test_rounds_on_eight_devices_on_two_and_on_one_lose_what_all_on_one_lose(eight):
    np.testing.assert_allclose(eight['losses'], eight['one'], atol=1e-5)


@needsjax
def test_a_step_sums_the_gradients_at_once_and_sends_nothing_else(eight):
    sums = re.findall(r'= (.*) all-reduce(?:-start)?\(', eight['hlo'])
    assert sorted(each.count('f32[') for each in sums) == [0, 10] and 'f64[]' in sums[0] + sums[1]     # of 10 parameters; the loss
    assert not re.search('all-gather|all-to-all|collective-permute|reduce-scatter', eight['hlo'])


@needsjax
def test_each_device_computes_its_own_rows_only(eight):
    products = [int(size) for shape in re.findall(r'= f32\[([0-9,]+)\]\S* dot\(', eight['hlo']) for size in shape.split(',')]
    assert products and 8 not in products and 160 not in products          # B, T B; a device has 1 row of 20 steps
    # What is left beside the rows: the table of the characters' products, and the update.
    needed = ((36 * 2 - 18) * 24 ** 2 + 6 * 24 * 29) * 20 * 8
    assert eight['flop8'] < needed / 3 and eight['flop8'] < eight['flop2'] / 2
    # What it would look like: T and B merged.
    hlo, flop = eight['merged']
    assert flop >= 2 * 20 * 8 * 24 * 24 and 'all-gather' in hlo


@needsjax
def test_what_devices_cannot_share_is_refused_with_what_they_can(eight):
    assert eight['refused'] == [
        'batchsize 10 does not divide by 4 devices: use 8 or 12, or another number of devices',
        'batchsize 3 does not divide by 8 devices: use 8, or another number of devices',
        'no 9 devices here: JAX has 8, cpu:0, cpu:1, cpu:2, cpu:3, cpu:4, cpu:5, cpu:6, cpu:7',
        "devices=2 and device='cpu' contradict each other: leave one of them out, or say device='jax', 'cuda' or 'tpu'",
        "devices=2 and device='jax:1' contradict each other: leave one of them out, or say device='jax', 'cuda' or 'tpu'",
        "devices takes a number or 'all', got 'two'"]


def checksettings(results):
    for name, (one, four, spread, alone) in results.items():
        # Operands that are rounded to 8 bits fall now to one side, now to the other.
        np.testing.assert_allclose(four, one, atol=2e-4 if SETTINGS[name].get('precision') == 'bfloat16' else 1e-5)
        assert spread[0] == alone[0] and spread[1] == pytest.approx(alone[1], abs=1e-3)
    return True


@needsjax
@pytest.mark.long
def test_dropout_layernorm_and_bfloat16_on_four_devices_are_those_of_one(source, tmp_path):
    assert checksettings(told(child('settings', source, tmp_path, 'adam', devices=4)))


@needsjax
@pytest.mark.long
def test_all_optimizers_on_four_devices_are_those_of_one(source, tmp_path):
    assert checksettings(told(child('settings', source, tmp_path, 'adamw', 'sgd', devices=4)))


@pytest.mark.skipif(engine.name != 'theano', reason='what classic Theano says')
def test_classic_theano_refuses_several_devices_and_processes_and_names_pytensor():
    with pytest.raises(ValueError, match='devices=2 needs PyTensor, and this is classic Theano'):
        device.chosen(None, device.CPU, 2)
    with pytest.raises(ValueError, match='needs PyTensor, and this is classic Theano'):
        cluster.join('127.0.0.1:1234', 2, 0)


# --- Several processes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, error, sentence', [
    ((1234, 2, 0), TypeError, "address takes a machine's name or number and a port, as '10.0.0.1:1234', got 1234"),
    (('10.0.0.1', 2, 0), ValueError, "address takes a machine's name or number and a port, as '10.0.0.1:1234', got '10.0.0.1'"),
    (('10.0.0.1:1234', 0, 0), ValueError, 'processes must be at least 1, got 0'),
    (('10.0.0.1:1234', 2, 2), ValueError, 'process must be from 0 to 1, got 2')])
def test_what_no_process_can_join_with_is_refused(arguments, error, sentence):
    with pytest.raises(error) as caught:
        cluster.join(*arguments)
    assert str(caught.value) == sentence


def runtogether(source, tmp_path, processes, dies, devices):
    """(what each process told, or None, its standard output and error, its exit code; seconds from the kill to the last one's end)."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = [child('together', source, tmp_path / 'work', processes, i, port, dies, devices=devices) for i in range(processes)]
    children[dies].wait(300)
    start = time.monotonic()
    outputs = [process.communicate(timeout=60) for process in children]
    seconds = time.monotonic() - start
    assert all('"stopped"' in out for out, err in outputs), [out + err for out, err in outputs]
    found = [json.loads(next(line for line in out.splitlines() if '"stopped"' in line)) for out, err in outputs]
    return found, outputs, [process.returncode for process in children], seconds


def checktogether(source, tmp_path, processes, dies, devices):
    found, outputs, codes, seconds = runtogether(source, tmp_path, processes, dies, devices)
    total = processes * devices
    # All saw the same: losses, refusals, the best checkpoint, the step of a Ctrl-C, parameters.
    for each in found:
        assert {**each, 'opened': 0} == {**found[0], 'opened': 0}
    assert found[0]['refused'][0] == f'batchsize 3 does not divide by {total} devices: use {total}, or another number of devices'
    assert 'is not in all of them' in found[0]['refused'][1] and 'needs at least 1000000 sequences' in found[0]['refused'][2]
    assert len(found[0]['plans']) > 1
    # Process 0 writes and speaks, the others don't.
    assert found[0]['opened'] and not any(each['opened'] for each in found[1:])
    said = [[line for line in out.splitlines() if '[Gloo]' not in line and 'peer ranks' not in line and '"stopped"' not in line]
            for out, _ in outputs]
    assert any('--- sample at step 20 ---' in line for line in said[0]) and not any(said[1:])
    # The kill: each says so, within seconds.
    for i, (_, err) in enumerate(outputs):
        assert codes[i] == (-signal.SIGKILL if i == dies else 1), err
        assert i == dies or err.splitlines()[-1] == (
            f'Process {i} of {processes} ends, because process {dies} has ended: start them all again, and resume=True (--resume) goes on '
            'from the last checkpoint.')
    assert seconds < 15
    # On one device: the first rounds, and the last run as another number of devices finishes it.
    one = make(source, tmp_path / 'one', verbose=False, **HELDOUT)
    one.trainmodel(**RUN, num_rounds=2, verbose=False)
    np.testing.assert_allclose(found[0]['one'], losses(one), atol=1e-5)
    rest = ModelState.load(tmp_path / 'work')
    assert rest.checkpoint.name == found[0]['checkpoint'] and rest.model.updates == found[0]['stopped']
    rest.trainmodel(resume=True, print_every=0, verbose=False)
    assert found[0]['best'][0] == rest.checkpoints()[2].name
    one.trainmodel(**{**RUN, 'train_len': 200}, verbose=False)
    assert rest.checkpoint.loss == pytest.approx(one.checkpoint.loss, abs=1e-4)


@needsjax
def test_two_processes_lose_what_one_does_and_end_together(source, tmp_path):
    checktogether(source, tmp_path, 2, 1, 2)


@needsjax
@pytest.mark.long
def test_four_processes_lose_what_one_does_and_end_with_the_first(source, tmp_path):
    checktogether(source, tmp_path, 4, 0, 1)
