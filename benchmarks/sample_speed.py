"""Characters a second that texts are drawn with: ours, native and on NumPy, and PyTorch's GRUCell step loop, side by side.

    python benchmarks/sample_speed.py [--settings 2x128 3x256 3x512] [--texts 1 16 64 256] [--vocab 66] [--chars 1000]
        [--threads 2] [--repeats 9] [--precision float32 bfloat16 int8]

Each contender runs in a process of its own and draws its texts in turn, so that all meet the same noise. Medians. One text is limited by
the bytes of weights that a character needs, (6 L - 3) H^2 + H V of 4 bytes, 2 in bfloat16, 1 in int8, that the caches give (GB/s);
many, drawn side by side, by the arithmetic, twice as many FLOP as weights (GFLOP/s).
PyTorch is measured where it is installed (`pip install torch==2.13.0`), with one thread and with all; "x PyTorch" is to the better.
"""

import argparse
import os
import platform
import re
from functools import partial

import train_step

BYTES = {'float32': 4, 'bfloat16': 2, 'int8': 1}


def ours(L, H, V, n, chars, precision='float32'):
    """n texts as `ModelState.sample` draws them, from a network with its initial weights."""
    import numpy as np

    import report
    from engine import T, compilefunction
    from layers import GRUEncode
    from sampling import SampleText
    report.verbose = False
    model, rng = GRUEncode(V, L, H, 0), np.random.default_rng(0)
    values = [np.ones(n, np.int32), np.array(0.7), np.array(V), np.array(1.0), np.array(0.0), np.ones(V, np.int8),
              np.zeros((L, n, H), np.float32)]
    uniforms = T.matrix(dtype='float64')
    first, *others = (T.as_tensor_variable(value) for value in values)
    draw = compilefunction([uniforms], SampleText(True, precision)(first, uniforms, *others, *model.params.values()))
    return lambda: draw(rng.random((n, chars)))


def oursalone(*setting, precision='float32'):
    """The same by one thread."""
    os.environ['RN_GRU_THREADS'] = '1'
    return ours(*setting, precision=precision)


def numpyops(*setting):
    """The same by the Op's NumPy, as where there is no compiler."""
    os.environ['RN_GRU_KERNELS'] = 'numpy'
    return ours(*setting)


def pytorch(L, H, V, n, chars):
    """The usual loop over nn.GRUCell: embedding, tanh, cells, output, softmax, draw."""
    import torch
    from torch import nn
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    torch.manual_seed(0)
    embedding, output = nn.Embedding(V, H), nn.Linear(H, V)
    cells = nn.ModuleList(nn.GRUCell(H, H) for _ in range(L))

    @torch.inference_mode()
    def draw():
        states, char, drawn = [torch.zeros(n, H) for _ in cells], torch.ones(n, dtype=torch.long), []
        for _ in range(chars):
            x = torch.tanh(embedding(char))
            for l, cell in enumerate(cells):
                x = states[l] = cell(x, states[l])
            char = torch.multinomial(torch.softmax(output(x) / 0.7, 1), 1)[:, 0]
            drawn.append(char.tolist())
        return drawn
    return draw


def pytorchalone(*setting):
    """The same by one thread."""
    os.environ['OMP_NUM_THREADS'] = '1'
    return pytorch(*setting)


def contenders(precisions):
    """Name -> the function that makes what is timed, and the precision of its weights."""
    found = {}
    for precision in precisions:
        found[f'ours, {precision}'] = partial(ours, precision=precision), precision
        found[f'ours, {precision}, 1 thread'] = partial(oursalone, precision=precision), precision
    others = {'ours, on NumPy': numpyops, 'pytorch': pytorch, 'pytorch, 1 thread': pytorchalone}
    return {**found, **{name: (make, 'float32') for name, make in others.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--settings', nargs='+', default=['2x128', '3x256', '3x512'], metavar='LxH')
    parser.add_argument('--texts', nargs='+', type=int, default=[1, 16, 64, 256], help='how many side by side')
    parser.add_argument('--vocab', type=int, default=66)
    parser.add_argument('--chars', type=int, default=1000, help='of all texts together, and at least 10 of each')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--repeats', type=int, default=9, help='turns of 5 texts each')
    parser.add_argument('--precision', nargs='+', default=list(BYTES), choices=list(BYTES), help='of our weights')
    args = parser.parse_args()
    train_step.setthreads(args.threads)
    print(f'{train_step.processor()}, {args.threads} threads, Python {platform.python_version()}, V {args.vocab}')
    print(f'{"":28}{"chars/s":>12}{"us a char":>12}{"GB/s":>8}{"GFLOP/s":>9}{"x PyTorch":>11}')
    for text in args.settings:
        L, H = (int(number) for number in re.findall(r'\d+', text))
        weights = (6 * L - 3) * H * H + H * args.vocab
        for n in args.texts:
            steps = max(args.chars // n, 10)
            all_ = contenders(args.precision)
            times = train_step.measure((L, H, args.vocab, n, steps), args.repeats, {name: make for name, (make, _) in all_.items()})
            best = min((seconds for name, seconds in times.items() if name.startswith('pytorch')), default=None)
            print(f'{L} x {H}, {n} text{"s" * (n > 1)}')
            for name, seconds in times.items():
                ratio = f'{best / seconds:11.2f}' if best else ''
                rate = n * steps / seconds
                print(f'  {name:26}{rate:12,.0f}{1e6 / rate:12.1f}'
                      f'{BYTES[all_[name][1]] * weights * steps / seconds / 1e9:8.1f}{2 * weights * rate / 1e9:9.1f}{ratio}')


if __name__ == '__main__':
    main()
