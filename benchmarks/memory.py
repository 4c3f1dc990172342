"""Memory of training: what it takes, and what ModelParams' formula (`layers.py`) says, by network, batch, vocabulary and option.

    python benchmarks/memory.py [--settings 2x256xB16xT64 ...] [--vocab 65 10000] [--options dropout ...] [--kernels native numpy]
    python benchmarks/memory.py --text big.txt          a large text: from a new model to its training, 2 x 128 in batches of 64 x 100

Each setting trains in a process of its own: a sample, three steps, a validation, a checkpoint. Measured is the peak of the process's
resident memory (VmHWM of /proc) so far, above what it was when a tiny network of the same kind had done the same: the interpreter, Theano
and the compiled functions are left out. The ratio is that of the whole, the last column, to the formula. With --text it is the process's
own memory (RssAnon), all of it, and what of the mapped text stands beside it (RssFile). Linux only.
"""

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from train_step import newmodel

SETTINGS = ['2x128xB50xT50', '2x256xB16xT64', '3x512xB64xT100']
OPTIONS = {'rmsprop': {}, 'adamw, ema': {'optimizer': 'adamw', 'ema': 0.999}, 'dropout': {'dropout': 0.2},
           'layernorm': {'layernorm': True}, 'GRUResize': {'modeltype': 'GRUResize'}}


def status(name):
    """Bytes, of a line of /proc/self/status."""
    return 1024 * int(re.search(rf'{name}:\s*(\d+)', Path('/proc/self/status').read_text())[1])


def trained(ms, B):
    """Yields when a sample has been drawn and three steps made; when a validation is done; when a checkpoint is written."""
    import numpy as np

    import saving
    import train
    ms.sample(100)
    train._placestate(ms.model, B, True)
    for pos in range(3):
        loss = ms.model.trainstep(*ms.data.batch(pos, B), ms.hyper)[0]
    yield
    ms.model.evaluate(*ms.data.batch(0, B), np.zeros((ms.hyper.layers, B, ms.hyper.state_size), np.float32))
    yield
    saving.write(ms, loss, 'training')
    yield


def measured(setting, options, kernels, connection):
    """Send the formula's bytes and the peaks behind the steps, a validation and a checkpoint."""
    os.environ['RN_GRU_KERNELS'] = kernels
    L, H, B, T, V = setting
    ms, directory = newmodel(1, 8, 2, 4, 10, **options)
    list(trained(ms, 2))
    before = status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')           # VmHWM begins again
    ms, directory = newmodel(*setting, **options)
    peaks = [status('VmHWM') - before for _ in trained(ms, B)]
    connection.send((type(ms.model).memory(V, L, H, B, T, ms.hyper), *peaks))


def measuredtext(path):
    """Print the highest memory of making a model for a text, training it a little, and reading on through the whole text."""
    import report
    from model import ModelState
    report.verbose = False
    highest, isover = {'RssAnon': 0, 'RssFile': 0}, threading.Event()

    def watch():
        while not isover.wait(0.01):
            for name in highest:
                highest[name] = max(highest[name], status(name))
    watcher = threading.Thread(target=watch)
    watcher.start()

    def say(what):
        print(f'{what:20}{highest["RssAnon"] / 1e6:8.0f} MB of its own,{highest["RssFile"] / 1e6:8.0f} MB mapped', flush=True)
    try:
        with tempfile.TemporaryDirectory() as directory:
            ms = ModelState.initfromsrcfile(path, Path(directory) / 'work', layers=2, state_size=128)
            say('a new model')
            ms.trainmodel(num_rounds=2, train_len=30, batchsize=64, valid_len=10, print_every=20)
            say('training')
            for pos in range(0, ms.data.batchepoch(64), 40):            # 4,000 bytes apart: no page is left out
                ms.data.batch(pos, 64)
            say('the whole text read')
    finally:
        isover.set()
        watcher.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--settings', nargs='+', default=SETTINGS, metavar='LxHxBxT')
    parser.add_argument('--vocab', nargs='+', type=int, default=[65, 10_000])
    parser.add_argument('--options', nargs='+', choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument('--kernels', nargs='+', choices=('native', 'numpy'), default=['native', 'numpy'])
    parser.add_argument('--text', metavar='FILE')
    args = parser.parse_args()
    if args.text:
        return measuredtext(args.text)
    print(f'{"MB":48}{"steps":>7}{"validation":>12}{"checkpoint":>12}{"formula":>9}{"ratio":>7}')
    context = multiprocessing.get_context('spawn')
    for text in args.settings:
        for vocab in args.vocab:
            for option in args.options:
                for kernels in args.kernels:
                    setting = *(int(number) for number in re.findall(r'\d+', text)), vocab
                    here, there = context.Pipe()
                    process = context.Process(target=measured, args=(setting, OPTIONS[option], kernels, there), daemon=True)
                    process.start()
                    there.close()
                    formula, steps, validation, checkpoint = (bytes / 1e6 for bytes in here.recv())
                    process.join()
                    print(f'{text:16} V {vocab:<7,} {option:12} {kernels:8}{steps:7.0f}{validation:12.0f}{checkpoint:12.0f}{formula:9.0f}'
                          f'{checkpoint / formula:7.2f}', flush=True)


if __name__ == '__main__':
    main()
