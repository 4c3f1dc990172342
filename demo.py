"""`make demo`: a network learns Python from the sources of Python's own standard library, and writes some, within two minutes.

Run again, it goes on from where it stopped.
"""

import re
import sysconfig
import tempfile
from pathlib import Path

from rn_rnn_char import ModelState, generatestring

WORKDIR = Path(__file__).parent / 'demo'
CHARACTERS = 1_000_000


def librarysources() -> str:
    """About CHARACTERS characters of the sources of this machine's Python, always the same ones."""
    text, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()['stdlib']).glob('*.py')):
        text.append(path.read_text(encoding='utf-8', errors='replace'))
        size += len(text[-1])
        if size > CHARACTERS:
            break
    return re.sub(r'([-=#*_~])\1{7,}', lambda ruler: ruler[1] * 8, ''.join(text))       # lines of dashes teach nothing


def main() -> None:
    if list(WORKDIR.glob('*-state.p')):
        print(f'Going on with the model in {WORKDIR.name}.')
        ms = ModelState.load(WORKDIR)
    else:
        with tempfile.TemporaryDirectory() as directory:
            srcfile = Path(directory) / 'library.txt'
            srcfile.write_text(librarysources(), encoding='utf-8')
            ms = ModelState.initfromsrcfile(srcfile, WORKDIR, layers=2, state_size=128, seed=1, init='lookup', optimizer='adamw',
                                            learnrate=0.004, beta2=0.99, ema=0.99)
    ms.trainmodel(num_rounds=3, batchsize=32, train_len=350, valid_len=20, print_every=175, schedule='linear', end_learnrate=0.0004)
    print('\nIt writes:\n')
    for _ in range(3):
        generatestring(ms, 350, temp=0.8)
        print('\n' + 20 * '- ' + '\n')
    print("\nGo on in the shell (`make shell`):\n"
          f"    ms = ModelState.load('{WORKDIR.name}')\n"
          "    ms.trainmodel(num_rounds=3, batchsize=32, valid_len=40, schedule='linear')\n"
          '    generatestring(ms, 1000, temp=0.8)')


if __name__ == '__main__':
    main()
