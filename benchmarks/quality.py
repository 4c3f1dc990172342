"""The validation loss that a text's last part has after so many seconds of training, everything included but the compilation of the
kernels; and beside it what PyTorch's nn.GRU reaches by the same recipe in the same seconds.

    python benchmarks/quality.py --text tinyshakespeare.txt [--seconds 98] [--seeds 3] [--peer] [--plot quality.png]
    python benchmarks/quality.py --text tinyshakespeare.txt --anchor            # as many seconds as nanogpt.py takes here
    python benchmarks/quality.py --text tinyshakespeare.txt --characters 2e6 precision=bfloat16 state_size=384

name=value: another recipe, of what initfromsrcfile and trainmodel take; without, the README's for two minutes and a megabyte. bfloat16 is
computed in whatever the processor: without the instruction slower, but with the same result. Each run is a process of its own; imports,
encoding and compilation of the graphs are in its seconds; the kernels, compiled once for a machine, are made ready before. It validates
at its end alone, but where --plot asks for a curve.

Losses are in nats per character over the whole held-out part: "carried on", as the library reads it, the state going on from its
beginning to its end in as many stretches as the batch has rows; "in windows", as transformers are measured, every 64 characters afresh.
--peer: `pip install torch==2.13.0`.
"""

import time

START = time.time()                             # before anything is imported

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for variable in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE'):          # they choose slower kernels than the processor has
    os.environ.pop(variable, None)

# What the README recommends for two minutes and a megabyte.
MODEL = {'layers': 2, 'state_size': 256, 'seq_len': 64, 'optimizer': 'adamw', 'learnrate': 0.004, 'beta2': 0.99, 'ema': 0.999}
TRAINING = {'batchsize': 16, 'schedule': 'linear', 'end_learnrate': 0.0004}
WINDOW = 64
NAMES = {'ours': 'RN-GRU', 'peer': 'PyTorch nn.GRU'}


# --- One run, in a process of its own: prints its validations and its last losses as a line of JSON -----------------------

def ours(args, make):
    """Train with the library: ([(seconds, characters, loss) of each validation], a function (x, y) -> loss from a zero state)."""
    import numpy as np

    import native
    import report
    report.verbose = args.verbose
    if MODEL.get('precision') == 'bfloat16':
        native.accelerates = lambda precision: True
    ms = make()
    if args.characters:
        steps = max(round(args.characters / TRAINING['batchsize'] / ms.data.seq_len), 1)
        rounds = 10 if args.plot else 1
        length = {'num_rounds': rounds, 'train_len': -(-steps // rounds)}
    else:
        length = {'minutes': (args.seconds - (time.time() - START)) / 60, 'train_len': 0 if args.plot else 10 ** 9}
    ms.trainmodel(**length, print_every=0, keep=1, **TRAINING)
    validations = ms.history().validations
    seconds = validations['time'].astype('int64') / 1e3 - START
    points = list(zip(seconds.tolist(), validations['characters'].tolist(), validations['loss'].tolist()))

    def fresh(x, y):
        return ms.model.evaluate(x, y, [np.zeros((x.shape[1], ms.hyper.state_size), np.float32)] * ms.hyper.layers)[0]
    return ms, points, fresh


def peer(args, make):
    """The same with PyTorch: embedding, tanh, nn.GRU layer by layer, output; the recipe's rule of update, schedule and clipping."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    import report
    from run import Run
    report.verbose = False
    torch.manual_seed(args.seed)
    ms = make()
    data, heldout, hyper, B = ms.data, ms.heldout, ms.hyper, TRAINING['batchsize']
    V, H, L = len(ms.charset), hyper.state_size, hyper.layers
    embedding, output, grus = nn.Embedding(V, H), nn.Linear(H, V), nn.ModuleList(nn.GRU(H, H) for _ in range(L))
    network = nn.ModuleList([embedding, output, grus])
    betas = {'betas': (hyper.beta1, hyper.beta2)}
    kind, options = {'adam': (torch.optim.Adam, betas), 'adamw': (torch.optim.AdamW, {**betas, 'weight_decay': hyper.weight_decay}),
                     'rmsprop': (torch.optim.RMSprop, {'alpha': hyper.decay}), 'sgd': (torch.optim.SGD, {'momentum': hyper.momentum})
                     }[hyper.optimizer]
    clip = nn.utils.clip_grad_norm_ if hyper.clipping == 'norm' else nn.utils.clip_grad_value_

    def loss(x, y, states, training=False):
        S, last = torch.tanh(embedding(torch.from_numpy(x).long())), []
        for gru, state in zip(grus, states):
            S, state = gru(S, state[None])
            last.append(state[0])
            S = F.layer_norm(S, (H,)) if hyper.layernorm else S
            S = F.dropout(S, hyper.dropout, training)
        return F.cross_entropy(output(S).flatten(0, 1), torch.from_numpy(y).long().flatten()), last

    def evaluate(x, y, states):
        with torch.no_grad():
            value, last = loss(x, y, [torch.from_numpy(np.ascontiguousarray(s)) for s in states])
        return value.item(), [s.numpy() for s in last]

    params, averages = list(network.parameters()), []

    def validate():
        exchange()
        *_, value = heldout.losses(evaluate, B, L, H)
        exchange()
        return value

    def exchange():
        """With ema, the averages are what is validated."""
        for p, average in zip(params, averages):
            p.data, average.data = average.data, p.data

    def train(i, rate):
        nonlocal states
        if i and i % data.batchepoch(B) == 0:
            states = [s.roll(1, 0) for s in states]
        for group in optimizer.param_groups:
            group['lr'] = rate
        optimizer.zero_grad()
        value, states = loss(*data.batch(i % data.batchepoch(B), B), [s.detach() for s in states], True)
        value.backward()
        clip(params, hyper.clip)
        optimizer.step()
        if averages:
            torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - min(hyper.ema, (1 + i) / (10 + i)))

    def begin():
        if hyper.ema:
            averages[:] = [p.detach().clone() for p in params]
        return [torch.zeros(B, H)] * L, kind(params, lr=0.0, **options)
    # How many steps there is time for, by some at a rate of 0, which move nothing.
    states, optimizer = begin()
    train(0, 0.0)
    before = time.monotonic()
    for i in range(20):
        train(i, 0.0)
    each = (time.monotonic() - before) / 20
    before = time.monotonic()
    validate()
    validation, left = time.monotonic() - before, args.seconds - (time.time() - START)
    rounds = max(min(int(left / 20 / validation), 10), 5 if args.plot else 1)
    steps = max(int((left - rounds * validation) / each), 1)
    course = {name: TRAINING[name] for name in ('schedule', 'warmup', 'end_learnrate') if name in TRAINING}
    run, points = Run(steps, -(-steps // rounds), B, 0, **course), []
    states, optimizer = begin()
    while run.done < steps:
        train(run.done, run.learnrate(hyper.learnrate))
        run.done += 1
        if run.done % run.train_len == 0 or run.done == steps:
            points.append((time.time() - START, run.done * B * data.seq_len, validate()))
    exchange()

    def fresh(x, y):
        return evaluate(x, y, [np.zeros((x.shape[1], H), np.float32)] * L)[0]
    return ms, points, fresh


def one(args):
    """The run that a process was started for."""
    from rn_rnn_char import ModelState
    with tempfile.TemporaryDirectory() as directory:
        def make():
            return ModelState.initfromsrcfile(args.text, Path(directory, 'work'), seed=args.seed, valid_frac=args.valid_frac,
                                              init_checkpoint=False, **MODEL)
        ms, points, fresh = {'ours': ours, 'peer': peer}[args.one](args, make)
        seconds = time.time() - START
        print(json.dumps({'points': points, 'seconds': seconds, 'windows': windows(ms.heldout, fresh)}))


def windows(heldout, fresh):
    """Mean loss over the held-out part cut into windows, each read from a zero state by fresh(x, y), (T, B) int32 both."""
    import numpy as np
    count = (heldout.numchars - 1) // WINDOW
    codes = np.asarray(heldout.codes).astype(np.int32)
    x, y = (np.ascontiguousarray(codes[i:i + count * WINDOW].reshape(count, WINDOW).T) for i in (0, 1))
    total = 0.0
    for i in range(0, count, 256):
        part = [np.ascontiguousarray(each[:, i:i + 256]) for each in (x, y)]
        total += fresh(*part) * part[0].shape[1]
    return total / count


# --- All of them ---------------------------------------------------------------------------------------------------------

def measured(contender, seed, seconds):
    """What a run in a process of its own gives: its dict of `one`."""
    out = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--one', contender, '--seed', str(seed), '--seconds', str(seconds)],
                         stdout=subprocess.PIPE, text=True, check=True).stdout
    *said, result = out.splitlines()
    result = json.loads(result)
    if '--verbose' in sys.argv:
        print(*said, sep='\n')
    _, characters, loss = result['points'][-1]
    print(f'{NAMES[contender]}, seed {seed}: valid loss {loss:.4f} carried on, {result["windows"]:.4f} in windows of {WINDOW}, after '
          f'{characters:,} characters and {result["seconds"]:.1f} s', flush=True)
    return result


def draw(path, results, title):
    """Validation loss against seconds, a line for each seed."""
    from matplotlib.figure import Figure
    figure = Figure((6.4, 4), 120, layout='constrained')
    axis = figure.subplots()
    for (contender, runs), colour in zip(results.items(), ('#0072B2', '#D55E00')):
        for i, result in enumerate(runs):
            seconds, _, losses = zip(*result['points'])
            axis.plot(seconds, losses, color=colour, marker='.', linewidth=1, label=None if i else NAMES[contender])
        last = [result['points'][-1] for result in runs]
        at = sum(seconds for seconds, _, _ in last) / len(last), sum(loss for _, _, loss in last) / len(last)
        axis.annotate(f'{at[1]:.3f}', at, (0, -12), textcoords='offset points', ha='center', color=colour)
    axis.margins(0.08)
    axis.set(title=title, xlabel='seconds from the start of the process', ylabel='validation loss, nats per character')
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.3)
    for side in ('top', 'right'):
        axis.spines[side].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--text', required=True, help='a text file')
    parser.add_argument('--seconds', type=float, default=98)
    parser.add_argument('--anchor', action='store_true', help="as many seconds as nanoGPT's recipe for a CPU takes, measured first")
    parser.add_argument('--characters', type=float, help='train on so many, however long it takes')
    parser.add_argument('--valid-frac', type=float, default=0.1, help='share of the text, at its end, that validates')
    parser.add_argument('--seed', type=int, default=1, help='the first one')
    parser.add_argument('--seeds', type=int, default=1, help='how many')
    parser.add_argument('--peer', action='store_true', help='PyTorch beside it')
    parser.add_argument('--plot', metavar='FILE', help='the curves in a picture')
    parser.add_argument('--verbose', action='store_true', help='what the library says too')
    parser.add_argument('--one', choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument('recipe', nargs='*', metavar='name=value')
    args = parser.parse_intermixed_args()           # name=value may stand before and behind options
    for setting in args.recipe:
        name, _, value = setting.partition('=')
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):       # a word
            pass
        isrun = name in ('batchsize', 'schedule', 'warmup', 'end_learnrate', 'clear_state', 'patience', 'device')
        (TRAINING if isrun else MODEL)[name] = value
    if args.one:
        return one(args)
    seconds = args.seconds
    if args.anchor:
        from nanogpt import train
        seconds, loss = train(Path(args.text).read_text(encoding='utf-8'))
        print(f"nanoGPT's recipe for a CPU: valid loss {loss:.4f} in windows of {WINDOW}, after {seconds:.1f} s", flush=True)
    results = {name: [] for name in ('ours', 'peer')[:1 + args.peer]}
    for seed in range(args.seed, args.seed + args.seeds):
        for contender, runs in results.items():
            runs.append(measured(contender, seed, seconds))
    for contender, runs in results.items():
        losses = [run['points'][-1][2] for run in runs]
        if len(runs) > 1:
            print(f'{NAMES[contender]}: mean {sum(losses) / len(losses):.4f}, from {min(losses):.4f} to {max(losses):.4f}')
    if args.plot:
        draw(args.plot, results, f'{MODEL["layers"]} x {MODEL["state_size"]}, {Path(args.text).name}')
        print(f'The picture is in {args.plot}')


if __name__ == '__main__':
    main()
