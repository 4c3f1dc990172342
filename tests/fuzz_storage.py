"""Coverage-guided fuzzing of everything that reads a file, with atheris (pip install atheris; Linux, Python 3.11 to 3.13).

    python tests/fuzz_storage.py [corpus directory] -max_total_time=1800          # half an hour: `make fuzz`

The first byte of an input chooses the reader, the rest is the file. The checksums are made right, so that the fuzzer meets what lies behind
them. A reader may give what it should, or one sentence under RNGRUError; anything else is a finding (libFuzzer
writes it to crash-*), to be added to FINDINGS in tests/test_damage.py.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def readers(directory):
    """(name, function of a file's bytes) of each reader of files. Each returns or raises RNGRUError; AssertionError is a finding."""
    import numpy as np

    import arrays
    import checkpoint
    import dataset
    import storage

    path = directory / 'file'
    name = min((ROOT / 'tests' / 'fixtures' / 'format1-GRUEncode').glob('*-model.p')).name
    expected = {'E': ((3, 4), 'float32'), 'state': ((1, 2, 4), 'float32')}

    def isplain(value, depth=0):
        if type(value) is dict:
            return all(type(key) is str and isplain(item, depth + 1) for key, item in value.items())
        if type(value) in (list, tuple):
            return all(isplain(item, depth + 1) for item in value)
        return type(value) in (str, int, float, bool, type(None), bytes)

    def facts(data):
        path.write_bytes(storage.seal(data))
        assert isplain(storage.loadfacts(path))

    def unsealed(data):
        path.write_bytes(data)
        storage.loadfacts(path)

    def charset(data):
        path.write_bytes(storage.seal(data))
        try:
            dataset.CharSet.fromfacts(storage.loadfacts(path))
        except (TypeError, ValueError) as error:    # ModelState.load says these as WorkDirError
            assert '\n' not in str(error)

    def table(data):
        (directory / 'work' / name).write_bytes(storage.seal(data))
        found, bad = checkpoint.WorkDir(directory / 'work').scan()
        assert len(found) + len(bad) == 1 and repr(found)

    def anyarrays(data):
        path.write_bytes(data)
        for array in arrays.loadarrays(path).values():
            assert type(array) is np.ndarray and array.dtype.kind in 'biufc' and array.nbytes <= len(data)

    def fittingarrays(data):
        path.write_bytes(data)
        read = arrays.loadarrays(path, expected)
        assert {name: (array.shape, str(array.dtype)) for name, array in read.items()} == expected

    def text(data):
        path.write_bytes(data)
        assert dataset.DataSet.load(path, 228, 10, 25).codes.shape == (231,)

    (directory / 'work').mkdir()
    return [facts, unsealed, charset, table, anyarrays, fittingarrays, text]


def seeds(directory):
    """Inputs to start from: the fixtures' files for each reader."""
    import arrays
    import numpy as np
    for old in sorted((ROOT / 'tests' / 'fixtures').glob('*')):
        for path in old.iterdir():
            data = path.read_bytes()
            if path.suffix == '.p':
                yield from (bytes([reader]) + data[:-32] for reader in (0, 2, 3))
                yield b'\1' + data
            elif path.suffix == '.npz':
                yield from (bytes([reader]) + data for reader in (4, 5))
            else:
                yield b'\6' + data
    path = directory / 'seed.npz'
    arrays.savearrays(path, {'E': np.zeros((3, 4), np.float32), 'state': np.ones((1, 2, 4), np.float32)})
    yield from (bytes([reader]) + path.read_bytes() for reader in (4, 5))


def attempt(chosen, data):
    """Give the file to its reader; what isn't allowed comes out as an exception."""
    from errors import RNGRUError
    if not data:
        return
    try:
        chosen[data[0] % len(chosen)](data[1:])
    except RNGRUError as error:
        assert '\n' not in str(error) and len(str(error)) < 1000, str(error)


def main():
    import atheris
    with atheris.instrument_imports(include=['storage', 'arrays', 'checkpoint', 'dataset', 'pickletools', 'zipfile', 'errors']):
        import arrays, checkpoint, dataset, errors, pickletools, storage, zipfile       # noqa: E401, F401
    import warnings
    warnings.simplefilter('ignore')
    directory = Path(tempfile.mkdtemp(dir='/dev/shm' if os.path.isdir('/dev/shm') else None))
    corpus = next((arg for arg in sys.argv[1:] if not arg.startswith('-')), None)
    if corpus is None:
        corpus = str(directory / 'corpus')
        sys.argv.insert(1, corpus)
    os.makedirs(corpus, exist_ok=True)
    for i, data in enumerate(seeds(directory)):
        (Path(corpus) / f'seed{i}').write_bytes(data)
    chosen = readers(directory)
    atheris.Setup(sys.argv, lambda data: attempt(chosen, data))
    atheris.Fuzz()


if __name__ == '__main__':
    main()
