"""How the time of a training step grows with the state size H, the batch B, the steps T, the layers L, the vocabulary V and the threads,
each alone, the others as in 2x256xB16xT64 with 65 characters: a table, and a picture if asked for.

    python benchmarks/scaling.py [--vary H B T L V threads] [--precision float32] [--repeats 5] [--plot scaling.png]

Each point is a process of its own and the median of its steps (see train_step.py). Beside it the limit: the FLOP that the mathematics
needs at the peak of this machine, that of a 2048 x 2048 float32 product by NumPy on as many threads, measured at the same time.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from train_step import measure, needed, ours, processor, setthreads, sgemm

BASE = {'L': 2, 'H': 256, 'B': 16, 'T': 64, 'V': 65}
AVAILABLE = len(os.sched_getaffinity(0))
VALUES = {'H': (32, 64, 128, 256, 512, 1024), 'B': (1, 2, 4, 8, 16, 32, 64, 128), 'T': (8, 16, 32, 64, 128, 256), 'L': (1, 2, 3, 4, 6),
          'V': (16, 65, 256, 1000, 4000, 16000), 'threads': sorted({1, 2, 3, 4, 6, 8, 12, 16, AVAILABLE} & set(range(1, AVAILABLE + 1)))}
NAMES = {'H': 'state size H', 'B': 'batch B', 'T': 'steps T', 'L': 'layers L', 'V': 'vocabulary V', 'threads': 'threads'}


def point(letter, value, precision, repeats):
    """(seconds of a step, seconds that the limit allows) with one of BASE, or the threads, changed."""
    setthreads(value if letter == 'threads' else AVAILABLE)
    setting = BASE if letter == 'threads' else {**BASE, letter: value}
    times = measure(tuple(setting.values()), repeats, {'ours': partial(ours, precision=precision), 'sgemm': sgemm})
    return times['ours'], needed(**setting) * times['sgemm'] / (2 * 2048 ** 3)


def draw(path, points, title):
    """One panel for each letter, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
    figure = Figure((3.2 * min(len(points), 3), 2.8 * -(-len(points) // 3)), 120, layout='constrained')
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(-(-len(points) // 3), min(len(points), 3), squeeze=False, sharey=True).ravel()
    for axis, (letter, rows) in zip(axes, points.items()):
        values, ours_, limits = zip(*rows)
        axis.loglog(values, [1e3 * s for s in limits], color='#999999', linestyle='--', label='limit: the FLOP at the peak of SGEMM')
        axis.loglog(values, [1e3 * s for s in ours_], color='#0072B2', marker='o', label='RN-GRU')
        axis.set_xticks(values, [f'{value:,}' for value in values], rotation=45 if max(values) > 999 else 0)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter('{x:g}')
        axis.minorticks_off()
        axis.set_xlabel(NAMES[letter])
        axis.grid(alpha=0.3)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    for axis in axes[len(points):]:
        axis.remove()
    for axis in axes[::3]:
        axis.set_ylabel('ms a step')
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--vary', nargs='+', choices=VALUES, default=list(VALUES))
    parser.add_argument('--precision', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--repeats', type=int, default=5, help='turns of 5 steps each')
    parser.add_argument('--plot', metavar='FILE', help='.png, .svg or .pdf; takes matplotlib')
    args = parser.parse_args()
    title = f'{processor()}, {AVAILABLE} threads, {args.precision}, {", ".join(f"{letter} {value}" for letter, value in BASE.items())}'
    print(title)
    print(f'{"":16}{"ms a step":>12}{"limit":>10}{"share":>8}')
    points = {}
    for letter in args.vary:
        for value in VALUES[letter]:
            seconds, limit = point(letter, value, args.precision, args.repeats)
            points.setdefault(letter, []).append((value, seconds, limit))
            print(f'{letter:>8} {value:<7,}{1e3 * seconds:12.2f}{1e3 * limit:10.2f}{limit / seconds:8.0%}', flush=True)
    if args.plot:
        draw(args.plot, points, title)
        print(f'The picture is in {args.plot}')


if __name__ == '__main__':
    main()
