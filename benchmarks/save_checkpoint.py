"""What a checkpoint costs: writing one within a round, and checking files before they are read.

    python benchmarks/save_checkpoint.py

The share is of the default save_every, 600 seconds. The directory is made where the working directory is: give another disk with TMPDIR.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import report
import saving
import storage
from rn_rnn_char import ModelState


def median(function, times):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main():
    report.verbose = False
    with tempfile.TemporaryDirectory(dir=os.environ.get('TMPDIR', '.')) as directory:
        directory = Path(directory)
        rng = np.random.default_rng(1)
        (directory / 'text.txt').write_text(''.join(map(chr, rng.integers(32, 127, 2_000_000))))
        for layers, state_size, batchsize in ((2, 128, 50), (3, 256, 16), (3, 512, 64)):
            ms = ModelState.initfromsrcfile(directory / 'text.txt', directory / f'{layers}x{state_size}', layers=layers,
                                            state_size=state_size, init_checkpoint=False)
            ms.model.set_state(np.zeros((layers, batchsize, state_size)))
            taken = median(lambda: saving.write(ms, 4.5, 'training'), 9)
            size = (ms.workdir.path / ms.checkpoint.arrays).stat().st_size
            checked = median(lambda: storage.filechecksum(ms.workdir.path / ms.checkpoint.arrays), 5)
            read = median(lambda: ms.workdir.loadarrays(ms.checkpoint), 5)
            print(f'{layers} x {state_size}: {size / 1e6:5.1f} MB written in {taken * 1e3:4.0f} ms, {taken / 6:.4f} % of 600 s; '
                  f'checked in {checked * 1e3:.0f} ms, checked and read in {read * 1e3:.0f} ms')
        big = directory / 'big'
        with open(big, 'wb') as file:
            for _ in range(500):
                file.write(rng.bytes(10 ** 6))
        print(f'SHA-256 of a file of 500 MB in memory: {0.5 / median(lambda: storage.filechecksum(big), 3):.2f} GB/s')


if __name__ == '__main__':
    main()
