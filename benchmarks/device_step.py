"""Time of a whole training step on a device of JAX's, by precision and by the way in which the layers are computed, side by side.

    python benchmarks/device_step.py [--device jax] [--settings 3x512xB64xT100 ...] [--ways 'bfloat16 kernel' ...] [--vocab 65]
                                     [--repeats 7] [--devices 4] [--peer] [--tiny]

The ways: `float32`, `tf32` or `bfloat16`, then `chain` (a loop for each layer), `waves` (one for all, `stack_jax`) or `kernel` (one launch,
`stack_cuda`; on an NVIDIA GPU in bfloat16, of sizes that fit it). Each takes some steps in turn, so that all meet the same noise; medians.
Every loss is fetched, behind the next step's start, as `train.Accounts` does. Before that, each has to make the first step that the
processor makes in float32: "error" is the greatest difference between their gradients of a parameter, as a share of its norm, and counts
as WRONG from 1e-3 on, with bfloat16 from 3e-2.
--peer: the same step by PyTorch's nn.GRU (cuDNN's, in tf32 and bfloat16), as people write it and captured in a CUDA graph, each in a
process of its own behind ours.
--devices: so many share the batch's rows out; XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment makes eight of the
processor, which share its cores. --tiny: small sizes, to try the script.
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
SETTINGS = ['3x512xB64xT100', '2x128xB50xT50', '3x1024xB128xT128', '3x512xB128xT50', '3x256xB16xT100']
TINY = ['2x32xB18xT6', '1x32xB4xT3']
WAYS = ['tf32 waves', 'bfloat16 waves', 'bfloat16 kernel']
PEERS = ['pytorch tf32', 'pytorch bfloat16', 'pytorch graph tf32', 'pytorch graph bfloat16']
RATE = 1e3          # so large that a parameter's change tells its gradient's digits


class Way:
    """A network on a device, trained in one way."""

    def __init__(self, name, device, setting, vocab):
        import numpy as np

        import layers
        from hyperparams import HyperParams
        L, H, B, T = setting
        self.name, self.precision = name, name.split()[0]
        self.hyper = HyperParams(optimizer='sgd', momentum=0.0, clip=1e9, layers=L, state_size=H,
                                 precision='bfloat16' if self.precision == 'bfloat16' else 'float32')
        self.model = layers.GRUEncode(vocab, L, H, 1, self.hyper)
        self.model.place(device)
        rng = np.random.default_rng(0)
        self.model.set_state(rng.uniform(-0.5, 0.5, (L, B, H)).astype(np.float32))
        self.x = rng.integers(0, vocab, (T, B)).astype('int32')
        self.y = (3 * self.x + 1) % vocab
        self.times = []

    def step(self, learnrate=1e-3):
        """The loss of a training step. What is compiled at the first one is so in this way."""
        import jax
        tf32 = jax.default_matmul_precision('tensorfloat32') if self.precision == 'tf32' else contextlib.nullcontext()
        with tf32, self._only():
            return self.model.trainstep(self.x, self.y, self.hyper, learnrate)[0]

    @contextlib.contextmanager
    def _only(self):
        """Within it, layers are computed in this way."""
        import device
        import stack_cuda
        inwaves = device.Accelerator.inwaves
        os.environ[stack_cuda.SWITCH] = str(int(self.name.endswith('kernel')))
        device.Accelerator.inwaves = not self.name.endswith('chain')
        try:
            yield
        finally:
            device.Accelerator.inwaves = inwaves

    def gradients(self):
        """A dict of name -> gradient of the first step, from the change that it makes; the parameters are as before then."""
        before = self.model.get_params()
        self.step(RATE)
        after = self.model.get_params()
        self.model.set_params(before)
        return {name: (before[name].astype('float64') - after[name]) / RATE for name in before}

    def measure(self, steps):
        start, before = time.perf_counter(), 0.0
        for _ in range(steps):
            loss = self.step()
            float(before)
            before = loss
        float(before)
        self.times.append((time.perf_counter() - start) / steps)


def peer(name, setting, vocab, repeats):
    """Print a line on the same step by PyTorch: embedding, tanh, nn.GRU, output, loss, backward, clip by value, RMSprop."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F
    L, H, B, T = setting
    card, isgraph, bfloat16 = 'cuda' if torch.cuda.is_available() else 'cpu', 'graph' in name, 'bfloat16' in name
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(1)
    x = np.random.default_rng(0).integers(0, vocab, (T, B))
    x, y = (torch.from_numpy(a).to(card) for a in (x, (3 * x + 1) % vocab))
    embedding, gru, output = nn.Embedding(vocab, H).to(card), nn.GRU(H, H, L).to(card), nn.Linear(H, vocab).to(card)
    params, state = [p for m in (embedding, gru, output) for p in m.parameters()], torch.zeros(L, B, H, device=card)
    optimizer = torch.optim.RMSprop(params, lr=1e-3, alpha=0.95, eps=1e-3, foreach=True, **{'capturable': True} if isgraph else {})

    def step():
        nonlocal state
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(card, torch.bfloat16, enabled=bfloat16):
            S, last = gru(torch.tanh(embedding(x)), state)
            loss = F.cross_entropy(output(S).flatten(0, 1).float(), y.flatten())
        loss.backward()
        nn.utils.clip_grad_value_(params, 5, foreach=True)
        optimizer.step()
        if isgraph:
            state.copy_(last.detach())
        else:
            state = last.detach().float()
        return loss.detach()
    if isgraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(4):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            told = step()

        def step():
            graph.replay()
            return told
    for _ in range(3):
        float(step())
    times = [0.0] * repeats
    start = time.perf_counter()
    float(step())
    steps = max(2, min(100, round(0.15 / (time.perf_counter() - start))))
    for i in range(repeats):
        start = time.perf_counter()
        for _ in range(steps):
            float(step())
        times[i] = (time.perf_counter() - start) / steps
    say(name, times)


def say(name, times, *more):
    ms = [seconds * 1e3 for seconds in times]
    print(f'  {name:22}{statistics.median(ms):9.3f} ms ({min(ms):.3f} .. {max(ms):.3f})', *more, sep=', ', flush=True)


def compare(setting, vocab, ways, device, repeats):
    """Measure a setting, and print a line for each way."""
    import numpy as np

    import stack_cuda
    from device import CPU
    L, H, B, T = setting
    reference = Way('float32 cpu', CPU, setting, vocab).gradients()
    made = []
    for name in ways:
        os.environ[stack_cuda.SWITCH] = '1'
        if name.endswith('kernel') and not stack_cuda.usable(device.jaxdevice, L, B, H):
            print(f'  {name:22} not for these sizes here', flush=True)
            continue
        way, start = Way(name, device, setting, vocab), time.perf_counter()
        try:
            gradients = way.gradients()
        except Exception as error:              # the others may do
            print(f'  {name:22} FAILED: {" ".join(str(error).split())[:200]}', flush=True)
            continue
        way.compiled = time.perf_counter() - start
        way.error, way.worst = max((np.linalg.norm(gradients[key] - g) / np.linalg.norm(g), key) for key, g in reference.items())
        made.append(way)
    for way in made:
        for _ in range(3):
            way.step()
        way.measure(2)
        way.steps = max(2, min(100, round(0.15 / way.times.pop())))
    for _ in range(repeats):
        for way in made:
            way.measure(way.steps)
    for way in made:
        wrong = '' if way.error < (3e-2 if way.precision == 'bfloat16' else 1e-3) else ' WRONG'
        say(way.name, way.times, f'error {way.error:.1e} of {way.worst}{wrong}', f'compiled in {way.compiled:.1f} s')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='jax')
    parser.add_argument('--settings', nargs='+', metavar='LxHxBxT')
    parser.add_argument('--ways', nargs='+', default=WAYS)
    parser.add_argument('--vocab', type=int, default=65)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--devices', type=int)
    parser.add_argument('--peer', action='store_true')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--tiny', action='store_true')
    args = parser.parse_args()
    settings = [(text, tuple(int(number) for number in re.findall('[0-9]+', text)))
                for text in args.settings or (TINY if args.tiny else SETTINGS)]
    if args.one:
        return peer(args.one, settings[0][1], args.vocab, args.repeats)
    import device
    where = device.chosen(args.device, device.CPU, args.devices)
    print(f'{where.describe()}, V {args.vocab}')
    start = time.perf_counter()
    for text, setting in settings:
        print('{} x {}, B {}, T {}'.format(*setting), flush=True)
        compare(setting, args.vocab, args.ways, where, args.repeats)
        for name in PEERS if args.peer else ():
            code = subprocess.run([sys.executable, __file__, '--one', name, '--settings', text, '--vocab', str(args.vocab), '--repeats',
                                   str(args.repeats)]).returncode
            if code:
                print(f'  {name:22} FAILED', flush=True)
    print(f'{time.perf_counter() - start:.0f} s in all')


if __name__ == '__main__':
    main()
