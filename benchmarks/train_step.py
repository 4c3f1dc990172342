"""Time of a whole training step: ours, native and on NumPy, PyTorch's nn.GRU, and the machine's own matrix product, side by side.

    python benchmarks/train_step.py [--settings 2x128xB50xT50 3x256xB16xT100 ...] [--vocab 65] [--threads 2] [--repeats 9] [--profile]
                                    [--options] [--kernels AVX2 SSE2 ...]

Each contender runs in a process of its own and is asked for a few steps in turn, so that all meet the same noise and
no two thread pools are awake at once. Medians. GFLOP/s count what the mathematics needs, ((36 L - 18) H^2 + 6 H V) B T
a step, whatever a contender really does; "share" is that over the peak of a 2048 x 2048 float32 product by NumPy.
PyTorch is measured where it is installed (`pip install torch==2.13.0`). --options: what each option of training costs instead.
--kernels: the native step compiled for each of these instruction sets instead, as a share of the peak of the same set: NumPy's
product again, by the fastest of its BLAS's kernels for processors that had no more. PYTENSOR_FLAGS=cxx=clang++ has clang compile them.
"""

import argparse
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
AWAKE = 0.2         # seconds: OpenBLAS's threads spin for 0.11 before they sleep
SETTINGS = ['2x128xB50xT50', '3x256xB16xT100', '3x512xB64xT100']


def newmodel(L, H, B, T, V, **options):
    """(a ModelState for a text of V - 1 characters drawn at random, the directory that it lives in as long as it is kept); V counts the
    unknown character too."""
    import numpy as np

    import report
    from model import ModelState
    report.verbose = False
    codes = np.random.default_rng(0).integers(0, V - 1, max(40 * B * T, V))
    codes[:V - 1] = range(V - 1)
    directory = tempfile.TemporaryDirectory()
    srcfile = Path(directory.name) / 'text.txt'
    srcfile.write_text(''.join(chr(0x100 + c) for c in codes), encoding='utf-8')
    return ModelState.initfromsrcfile(srcfile, Path(directory.name) / 'work', seq_len=T, init_checkpoint=False, layers=L, state_size=H,
                                      **options), directory


def ours(L, H, B, T, V, **options):
    """A step of `trainmodel`, its row of the history included."""
    import report
    import train
    from advice import Advisor
    from run import Run
    ms, directory = newmodel(L, H, B, T, V, **options)
    train._placestate(ms.model, B, True)
    run = Run(10 ** 9, 10 ** 9, B, 1)
    accounts = train.Accounts(ms, train.Saver(ms, run, 0, None), Advisor(ms, run), report.Progress('', 10 ** 9, B * T))
    return lambda kept=directory: accounts.enter(train._step(ms, run, ms.data.batchepoch(B)))


def numpyops(*setting):
    """The same by the Ops' NumPy, as where there is no compiler."""
    os.environ['RN_GRU_KERNELS'] = 'numpy'
    return ours(*setting)


def bfloat16(*setting):
    """The same with operands of bfloat16."""
    import native
    if not native.accelerates('bfloat16'):
        raise ImportError('this processor has no instruction for it')
    return ours(*setting, precision='bfloat16')


def pytorch(L, H, B, T, V):
    """The same with torch.nn: embedding, tanh, GRU, output, loss, backward, clip by value, RMSprop."""
    import torch
    from torch import nn
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    torch.manual_seed(0)
    embedding, gru, output = nn.Embedding(V, H), nn.GRU(H, H, L), nn.Linear(H, V)
    params = [p for m in (embedding, gru, output) for p in m.parameters()]
    optimiser = torch.optim.RMSprop(params, lr=0.001, alpha=0.95, eps=1e-3)
    x, y = torch.randint(1, V, (40, T, B)), torch.randint(1, V, (40, T, B))
    state, i = torch.zeros(L, B, H), 0

    def step():
        nonlocal state, i
        optimiser.zero_grad(set_to_none=True)
        states, state = gru(torch.tanh(embedding(x[i % 40])), state)
        loss = nn.functional.cross_entropy(output(states).reshape(-1, V), y[i % 40].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_value_(params, 5)
        optimiser.step()
        state, i = state.detach(), i + 1
        return loss.item()
    return step


def sgemm(L, H, B, T, V):
    """A product of two float32 matrices of 2048 x 2048."""
    import numpy as np
    a = np.random.default_rng(0).random((2048, 2048), np.float32)
    out = np.empty_like(a)
    return lambda: np.dot(a, a, out=out)


def withkernels(name, *setting):
    """A step by the kernels for this instruction set."""
    os.environ['RN_GRU_KERNELS'] = name
    return ours(*setting)


def withcoretype(coretype, *setting):
    """NumPy's product by its BLAS's kernels for this processor."""
    os.environ['OPENBLAS_CORETYPE'] = coretype
    return sgemm(*setting)


CONTENDERS = {'sgemm': sgemm, 'ours': ours, 'ours, bfloat16': bfloat16, 'ours, on NumPy': numpyops, 'pytorch': pytorch}
OPTIONS = {'rmsprop': {}, 'sgd': {'optimizer': 'sgd'}, 'adam': {'optimizer': 'adam'}, 'adamw': {'optimizer': 'adamw'},
           'clipping by norm': {'clipping': 'norm'}, 'dropout': {'dropout': 0.2}, 'ema': {'ema': 0.999}, 'regcost': {'regcost': 0.2},
           'layernorm': {'layernorm': True},
           'adamw and all': {'optimizer': 'adamw', 'clipping': 'norm', 'dropout': 0.2, 'ema': 0.999, 'regcost': 0.2}}

# For each instruction set processors that had no better one, by OpenBLAS's names: it has kernels of their own for these.
CORETYPES = {'AMX': ['SkylakeX', 'Cooperlake', 'SapphireRapids'], 'AVX-512': ['SkylakeX', 'Cooperlake'],
             'AVX2': ['Haswell', 'Zen'], 'AVX': ['Sandybridge'],
             'SSE2': ['Prescott', 'Core2', 'Nehalem', 'Barcelona'], 'NEON': ['ARMV8', 'NEOVERSEN1']}


def _worker(contender, setting, connection):
    try:
        step = contender(*setting)
        for _ in range(3):
            step()
        connection.send('ready')
    except ImportError as error:
        connection.send(str(error))
        return
    for steps in iter(connection.recv, 0):
        times, end = [], time.perf_counter() + AWAKE
        while time.perf_counter() < end:        # processors and a pool that have slept take a while to be awake
            step()
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        connection.send(times)


def measure(setting, repeats, contenders=CONTENDERS):
    """Median seconds a step by contender; those whose library is missing are left out.

    contenders: name -> a function of a module that a process of its own can import, from the setting to what takes a step.
    """
    context, workers = multiprocessing.get_context('spawn'), {}
    for name, contender in contenders.items():
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(contender, setting, there), daemon=True)
        process.start()
        there.close()                           # so that a worker that dies ends the wait for it
        if (answer := here.recv()) == 'ready':
            workers[name] = here
        else:
            print(f'{name} is left out: {answer}')
    times = {name: [] for name in workers}
    for _ in range(repeats):
        for name, connection in workers.items():
            time.sleep(AWAKE)                   # the pool of the one before falls asleep
            connection.send(5)
            times[name] += connection.recv()
    for connection in workers.values():
        connection.send(0)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--settings', nargs='+', default=SETTINGS, metavar='LxHxBxT')
    parser.add_argument('--vocab', type=int, default=65)
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--repeats', type=int, default=9, help='turns of 5 steps each')
    parser.add_argument('--profile', action='store_true', help='also where the time of the native steps goes, phase by phase')
    parser.add_argument('--options', action='store_true', help='what each option of training costs instead')
    parser.add_argument('--kernels', nargs='+', default=[], choices=list(CORETYPES), metavar='SET',
                        help=f'the step compiled for each of these instruction sets instead: {", ".join(CORETYPES)}')
    args = parser.parse_args()
    setthreads(args.threads)
    print(f'{processor()}, {args.threads} threads, Python {platform.python_version()}, V {args.vocab}')
    if args.options:
        return _options(args)
    if args.kernels:
        return _kernels(args)
    print(f'{"":18}{"ms a step":>12}{"GFLOP/s":>10}{"share":>8}{"x PyTorch":>11}')
    for text in args.settings:
        L, H, B, T = (int(number) for number in re.findall(r'\d+', text))
        times = measure((L, H, B, T, args.vocab), args.repeats)
        peak = 2 * 2048 ** 3 / times.pop('sgemm')
        flop = needed(L, H, B, T, args.vocab)
        print(f'{L} x {H}, B {B}, T {T}: peak {peak / 1e9:.0f} GFLOP/s')
        for name, seconds in times.items():
            ratio = f'{times["pytorch"] / seconds:11.2f}' if 'pytorch' in times else ''
            print(f'  {name:16}{seconds * 1e3:12.1f}{flop / seconds / 1e9:10.1f}{flop / seconds / peak:8.0%}{ratio}')
        if args.profile:
            for phase, seconds in _profile((L, H, B, T, args.vocab)).items():
                print(f'    {phase:24}{seconds * 1e3:8.2f} ms{seconds / times["ours"]:8.0%}')


def needed(L, H, B, T, V):
    """FLOP that the mathematics of a step needs."""
    return ((36 * L - 18) * H * H + 6 * H * V) * B * T


def _kernels(args):
    """Print the time of a step by the kernels for each instruction set, and its share of that set's peak."""
    contenders = {}
    for name in args.kernels:
        contenders[name] = partial(withkernels, name)
        contenders |= {(name, coretype): partial(withcoretype, coretype) for coretype in CORETYPES[name]}
    print(f'{"":12}{"ms a step":>12}{"GFLOP/s":>10}{"peak":>10}{"share":>8}   of NumPy\'s product for')
    for text in args.settings:
        setting = *(int(number) for number in re.findall(r'\d+', text)), args.vocab
        times = measure(setting, args.repeats, contenders)
        print(text)
        for name in args.kernels:
            speed = needed(*setting) / times[name]
            seconds, coretype = min((times[name, coretype], coretype) for coretype in CORETYPES[name])
            peak = 2 * 2048 ** 3 / seconds
            print(f'  {name:10}{times[name] * 1e3:12.1f}{speed / 1e9:10.1f}{peak / 1e9:10.1f}{speed / peak:8.0%}   {coretype}')


def _options(args):
    """Print the time of a step with each option, and how much more it is than without any."""
    contenders = {name: partial(ours, **hyper) for name, hyper in OPTIONS.items()}
    for text in args.settings:
        times = measure((*(int(number) for number in re.findall(r'\d+', text)), args.vocab), args.repeats, contenders)
        plain = times['rmsprop']
        print(text)
        for name, seconds in times.items():
            print(f'  {name:18}{seconds * 1e3:10.2f} ms{seconds / plain - 1:+9.1%}')


def _profile(setting, steps=10):
    """Mean seconds a step by phase of the kernels, measured in this process."""
    import native
    step = ours(*setting)
    step()
    native.profile()
    for _ in range(steps):
        step()
    return {phase: seconds / steps for phase, seconds in native.profile().items()}


def setthreads(threads):
    """Let the workers use so many threads each, whatever they compute with."""
    for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'RN_GRU_THREADS'):
        os.environ[variable] = str(threads)
    for variable in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE'):      # they choose slower kernels than the processor has
        os.environ.pop(variable, None)


def processor():
    """The processor's name."""
    try:
        return re.search(r'model name\s*:\s*(.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


if __name__ == '__main__':
    main()
