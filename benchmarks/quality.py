"""The validation loss that a text's last part has after so many seconds of training, everything included but the
compilation of the kernels.

    python benchmarks/quality.py --text tinyshakespeare.txt [--seconds 98] [--valid-frac 0.1] [--seed 1] [--peer]
    python benchmarks/quality.py --text tinyshakespeare.txt --characters 2e6 precision=bfloat16 state_size=384

name=value: another recipe, of what initfromsrcfile and trainmodel take. bfloat16 is computed in whatever the processor: without
the instruction slower, but with the same result. Prints `valid loss 1.2345` (nats per character, over the whole held-out part) at each validation; the last line counts. Imports,
encoding and compilation of the graphs are in the seconds; the kernels, compiled once for a machine, are made ready before.
--peer: PyTorch's nn.GRU (`pip install torch==2.13.0`) with the same recipe, data and rules, in the same seconds.
"""

import time

START = time.monotonic()                        # before anything is imported

import argparse
import ast
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for variable in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE'):          # they choose slower kernels than the processor has
    os.environ.pop(variable, None)

# What the README recommends for two minutes and a megabyte.
MODEL = {'layers': 2, 'state_size': 256, 'seq_len': 64, 'optimizer': 'adam', 'learnrate': 0.004}
TRAINING = {'batchsize': 16, 'schedule': 'linear'}


def ours(args):
    """Train with the library."""
    import native
    import report
    from rn_rnn_char import ModelState
    report.verbose = args.verbose
    if MODEL.get('precision') == 'bfloat16':
        native.accelerates = lambda precision: True
    with tempfile.TemporaryDirectory() as directory:
        ms = ModelState.initfromsrcfile(args.text, Path(directory, 'work'), seed=args.seed, valid_frac=args.valid_frac,
                                        init_checkpoint=False, **MODEL)
        length = {'minutes': (args.seconds - (time.monotonic() - START)) / 60}
        if args.characters:
            length = {'train_len': max(round(args.characters / TRAINING['batchsize'] / ms.data.seq_len), 1)}
        ms.trainmodel(**length, print_every=0, keep=1, **TRAINING)
        validations = ms.history().validations
        for characters, loss in zip(validations['characters'], validations['loss']):
            tell(characters, loss)


def peer(args):
    """Train PyTorch's nn.GRU: embedding, tanh, GRU, output; Adam, gradients clipped to +-5, the state carried on,
    the rate falling linearly to 0."""
    import numpy as np
    import torch
    from torch import nn

    import report
    from rn_rnn_char import ModelState
    report.verbose = False
    torch.manual_seed(args.seed)
    B, H, L, rate = TRAINING['batchsize'], MODEL['state_size'], MODEL['layers'], MODEL['learnrate']
    with tempfile.TemporaryDirectory() as directory:
        ms = ModelState.initfromsrcfile(args.text, Path(directory, 'work'), seed=args.seed, valid_frac=args.valid_frac,
                                        init_checkpoint=False, **MODEL)
        data, heldout = ms.data, ms.heldout
        V, steps = len(ms.charset), data.batchepoch(B)
        embedding, gru, output = nn.Embedding(V, H), nn.GRU(H, H, L), nn.Linear(H, V)
        params = [*embedding.parameters(), *gru.parameters(), *output.parameters()]
        optimizer = torch.optim.Adam(params, lr=rate)

        def loss(x, y, state):
            S, state = gru(torch.tanh(embedding(torch.from_numpy(x).long())), state)
            return nn.functional.cross_entropy(output(S).flatten(0, 1), torch.from_numpy(y).long().flatten()), state

        def step(i, share):
            nonlocal state
            if i % steps == 0:
                state = state.roll(1, 1)
            for group in optimizer.param_groups:
                group['lr'] = rate * share
            optimizer.zero_grad()
            value, state = loss(*data.batch(i % steps, B), state.detach())
            value.backward()
            nn.utils.clip_grad_value_(params, 5)
            optimizer.step()

        def validate():
            def evaluate(x, y, states):
                value, last = loss(x, y, torch.from_numpy(np.stack(states)))
                return value.item(), list(last.numpy())
            with torch.no_grad():
                *_, value = heldout.losses(evaluate, B, L, H)
            return value
        state, kept = torch.zeros(L, B, H), [p.detach().clone() for p in params]
        step(0, 0.0)
        before = time.monotonic()
        for i in range(20):
            step(i, 0.0)
        each = (time.monotonic() - before) / 20
        before = time.monotonic()
        validate()
        validation = time.monotonic() - before
        state, optimizer = torch.zeros(L, B, H), torch.optim.Adam(params, lr=rate)
        assert all((p == k).all() for p, k in zip(params, kept))        # at a rate of 0 nothing has moved
        count = max(int((args.seconds - (time.monotonic() - START) - validation) / each), 1)
        for i in range(count):
            step(i, 1 - i / count)
        tell(count * B * data.seq_len, validate())


def tell(characters, loss):
    """Print a validation's loss."""
    print(f'valid loss {loss:.4f}  ({characters:,} characters)', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--text', required=True, help='a text file')
    parser.add_argument('--seconds', type=float, default=98)
    parser.add_argument('--characters', type=float, help='train on so many, however long it takes, and then validate')
    parser.add_argument('--valid-frac', type=float, default=0.1, help='share of the text, at its end, that validates')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--peer', action='store_true', help='PyTorch in our place')
    parser.add_argument('--verbose', action='store_true', help='what the library says too')
    parser.add_argument('recipe', nargs='*', metavar='name=value')
    args = parser.parse_args()
    for setting in args.recipe:
        name, _, value = setting.partition('=')
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):       # a word
            pass
        (TRAINING if name in ('batchsize', 'schedule', 'warmup', 'clear_state') else MODEL)[name] = value
    (peer if args.peer else ours)(args)
    print(f'{time.monotonic() - START:.1f} s in all', file=sys.stderr)


if __name__ == '__main__':
    main()
