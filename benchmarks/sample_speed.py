"""Characters a second that one text is drawn with: ours, native and on NumPy, and PyTorch's GRUCell step loop, side by side.

    python benchmarks/sample_speed.py [--settings 2x128 3x256 3x512] [--vocab 66] [--chars 200] [--threads 2] [--repeats 9]

Each contender runs in a process of its own and draws a few texts in turn, so that all meet the same noise. Medians. GB/s: the
weights that a character needs, 4 ((6 L - 3) H^2 + H V) bytes, over the time; the limit is what the caches give.
PyTorch is measured where it is installed (`pip install torch==2.13.0`), with one thread and with all; "x PyTorch" is to the better.
"""

import argparse
import os
import platform
import re

import train_step


def ours(L, H, V, chars):
    """A text as `ModelState.sample` draws it, from a network with its initial weights."""
    import numpy as np

    import report
    from layers import GRUEncode
    report.verbose = False
    model, rng = GRUEncode(V, L, H, 0), np.random.default_rng(0)
    allowed, s0 = np.ones(V, np.int8), np.zeros((L, H), np.float32)
    return lambda: model.sampletext(1, rng.random(chars), 0.7, allowed, s0)


def oursalone(*setting):
    """The same by one thread."""
    os.environ['RN_GRU_THREADS'] = '1'
    return ours(*setting)


def numpyops(*setting):
    """The same by the Op's NumPy, as where there is no compiler."""
    os.environ['RN_GRU_KERNELS'] = 'numpy'
    return ours(*setting)


def pytorch(L, H, V, chars):
    """The usual loop over nn.GRUCell: embedding, tanh, cells, output, softmax, draw."""
    import torch
    from torch import nn
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    torch.manual_seed(0)
    embedding, output = nn.Embedding(V, H), nn.Linear(H, V)
    cells = nn.ModuleList(nn.GRUCell(H, H) for _ in range(L))

    @torch.inference_mode()
    def draw():
        states, char, drawn = [torch.zeros(1, H) for _ in cells], torch.tensor([1]), []
        for _ in range(chars):
            x = torch.tanh(embedding(char))
            for l, cell in enumerate(cells):
                x = states[l] = cell(x, states[l])
            char = torch.multinomial(torch.softmax(output(x) / 0.7, 1), 1)[:, 0]
            drawn.append(int(char))
        return drawn
    return draw


def pytorchalone(*setting):
    """The same by one thread."""
    os.environ['OMP_NUM_THREADS'] = '1'
    return pytorch(*setting)


CONTENDERS = {'ours': ours, 'ours, 1 thread': oursalone, 'ours, on NumPy': numpyops, 'pytorch': pytorch, 'pytorch, 1 thread': pytorchalone}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--settings', nargs='+', default=['2x128', '3x256', '3x512'], metavar='LxH')
    parser.add_argument('--vocab', type=int, default=66)
    parser.add_argument('--chars', type=int, default=200, help='of a text')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--repeats', type=int, default=9, help='turns of 5 texts each')
    args = parser.parse_args()
    train_step.setthreads(args.threads)
    print(f'{train_step.processor()}, {args.threads} threads, Python {platform.python_version()}, V {args.vocab}, texts of {args.chars}')
    print(f'{"":20}{"chars/s":>12}{"us a char":>12}{"GB/s":>8}{"x PyTorch":>11}')
    for text in args.settings:
        L, H = (int(number) for number in re.findall(r'\d+', text))
        times = train_step.measure((L, H, args.vocab, args.chars), args.repeats, CONTENDERS)
        best = min((seconds for name, seconds in times.items() if name.startswith('pytorch')), default=None)
        print(f'{L} x {H}')
        for name, seconds in times.items():
            seconds /= args.chars
            weights = 4 * ((6 * L - 3) * H * H + H * args.vocab)
            ratio = f'{best / args.chars / seconds:11.2f}' if best else ''
            print(f'  {name:18}{1 / seconds:12,.0f}{seconds * 1e6:12.1f}{weights / seconds / 1e9:8.1f}{ratio}')


if __name__ == '__main__':
    main()
