"""A directory with one damaged file: what is wrong is named, what is whole is used, nothing is taken for what it isn't."""

import collections
import io
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import fuzz_storage
import saving
import storage
from errors import RNGRUError
from rn_rnn_char import ModelState

FIXTURES = Path(__file__).parent / 'fixtures'


def named(name):
    """An .npz with an array of this name."""
    out = io.BytesIO()
    np.savez(out, format=np.int64(1), **{name: np.zeros((3, 4), np.float32)})
    return out.getvalue()


# Files that were badly refused: (reader in fuzz_storage.py, the file's bytes). None has ever been read as what it isn't.
FINDINGS = [('fittingarrays', named('E\nstate\x1b[2J'))]        # its error was two lines


def flipped(data, rng, other):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncated(data, rng, other):
    return data[:rng.randrange(len(data))]


def spliced(data, rng, other):
    """A piece of another file, or of the same, in the place of a piece."""
    source = rng.choice([data, other])
    start, at = rng.randrange(len(source)), rng.randrange(len(data))
    piece = source[start:start + rng.randrange(1, 200)]
    return data[:at] + piece + data[at + rng.choice([0, len(piece)]):]


def overwritten(data, rng, other):
    at = rng.randrange(len(data))
    size = rng.randrange(1, 50)
    return data[:at] + rng.choice([rng.randbytes(size), bytes(size)]) + data[at + size:]


def extended(data, rng, other):
    return data + rng.randbytes(rng.randrange(1, 100))


def replaced(data, rng, other):
    return rng.choice([other, rng.randbytes(len(data)), b''])


def resealed(data, rng, other):
    """Changed by somebody who knows how to make the checksum right."""
    return storage.seal(rng.choice([flipped, truncated, spliced, overwritten])(data[:-32], rng, other))


MUTATIONS = [flipped, truncated, spliced, overwritten, extended, replaced]


def kind(name):
    return {'state.p': 'state', 'model.p': 'checkpoint facts', 'odel.npz': 'arrays', 't-v1.npy': 'text'}[name[-8:].removeprefix('-')]


class Directory:
    """A copy of a fixture and what is in it, by checkpoint."""

    def __init__(self, fixture, path):
        self.path = shutil.copytree(fixture, path)
        self.files = {each.name: each.read_bytes() for each in sorted(path.iterdir())}
        ms = ModelState.load(path)
        self.checkpoints = list(ms.checkpoints())
        self.older = {each.arrays for each in self.checkpoints[:-1]}        # read where they are named
        self.codes, self.charset, self.facts = np.array(ms.data.codes), ms.charset, (ms.modeltype, ms.seed, ms.seq_len, ms.numchars)
        self.arrays = {}
        for each in self.checkpoints:
            saving.filled(ms, each.name, ms.model)
            self.arrays[each.name] = ms.model.arrays()

    def outcome(self, name, mutated, isanothers):
        """What loading and reading everything gives, without compiling, with `mutated` in the place of the file `name`.

        isanothers: it is another model's file, whole, so that what doesn't fit it may be named in its place.
        """
        (self.path / name).write_bytes(mutated)
        try:
            return self.read(name, mutated, isanothers)
        finally:
            (self.path / name).write_bytes(self.files[name])

    def read(self, name, mutated, isanothers):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            try:
                ms = ModelState.load(self.path)
                ms.data
                ms.model
            except RNGRUError as error:
                assert '\n' not in str(error) and len(str(error)) < 1000
                assert name in str(error) or isanothers, f'{error} does not name {name}'
                return 'refused'
        if mutated != self.files[name]:
            assert any(name in str(warning.message) for warning in said) or name in self.older
        assert ms.charset == self.charset and (ms.modeltype, ms.seed, ms.seq_len, ms.numchars) == self.facts
        assert np.array_equal(ms.data.codes, self.codes)
        assert ms.checkpoint in self.checkpoints and (ms.model.epoch, ms.model.pos) == (ms.checkpoint.epoch, ms.checkpoint.pos)
        for key, value in ms.model.arrays().items():
            assert value.tobytes() == self.arrays[ms.checkpoint.name][key].tobytes()
        if name in self.older and mutated != self.files[name]:
            with pytest.raises(RNGRUError, match=name):
                saving.filled(ms, next(each.name for each in self.checkpoints if each.arrays == name), ms.model)
            return 'refused where it is named, else not read'
        if ms.checkpoint == self.checkpoints[-1]:
            return 'the newest, which is whole' if mutated != self.files[name] else 'nothing was changed'
        return 'fell back, and said so'


def tryall(tmp_path, count, rng):
    """Counter of (kind of file, kind of damage, outcome) over `count` damaged files."""
    directories = [Directory(fixture, tmp_path / fixture.name) for fixture in sorted(FIXTURES.iterdir())]
    everything = [data for directory in directories for data in directory.files.values()]
    seen = collections.Counter()
    for i in range(count):
        directory = directories[i % 2]
        # As many of each kind, whatever the number of its files
        what = ['state', 'checkpoint facts', 'arrays', 'text'][i // 2 % 4]
        name = rng.choice([each for each in directory.files if kind(each) == what])
        mutate = MUTATIONS[i // 8 % len(MUTATIONS)]
        mutated = mutate(directory.files[name], rng, rng.choice(everything))
        seen[what, mutate.__name__, directory.outcome(name, mutated, mutated in everything)] += 1
    return seen


def table(seen):
    lines = []
    for what, how in dict.fromkeys((what, how) for what, how, _ in seen):
        outcomes = {outcome: n for (w, h, outcome), n in seen.items() if (w, h) == (what, how)}
        lines.append(f'{what:17} {how:12} ' + ', '.join(f'{outcome} {n:,}' for outcome, n in sorted(outcomes.items())))
    return '\n'.join(lines)


def test_a_damaged_file_is_refused_or_replaced_by_name(tmp_path):
    seen = tryall(tmp_path, 480, random.Random(7))
    assert sum(seen.values()) == 480 and {outcome for *_, outcome in seen} >= {'refused', 'fell back, and said so'}


@pytest.mark.long
def test_20000_damaged_files_are_refused_or_replaced_by_name(tmp_path):
    seen = tryall(tmp_path, 20_000, random.Random(8))
    print(f'\n{sum(seen.values()):,} damaged files: none ran anything, none was taken for what it is not\n{table(seen)}')


@pytest.mark.filterwarnings('ignore:invalid escape sequence')
@pytest.mark.parametrize('count', [300, pytest.param(20_000, marks=pytest.mark.long)])
def test_files_under_right_checksums_give_plain_facts_fitting_arrays_or_one_sentence(tmp_path, count):
    """The readers behind the checksums, with the same damage."""
    rng, seeds = random.Random(9), list(fuzz_storage.seeds(tmp_path))
    chosen = fuzz_storage.readers(tmp_path)
    for _ in range(count):
        seed = rng.choice(seeds)
        data = rng.choice(MUTATIONS)(seed[1:], rng, rng.choice(seeds)[1:])
        fuzz_storage.attempt(chosen, seed[:1] + data)


@pytest.mark.parametrize('reader, data', FINDINGS)
def test_what_was_found_stays_fixed(tmp_path, reader, data):
    chosen = fuzz_storage.readers(tmp_path)
    number, = (i for i, each in enumerate(chosen) if each.__name__ == reader)
    fuzz_storage.attempt(chosen, bytes([number]) + data)


def test_the_fuzzers_readers_take_whole_files(tmp_path):
    """So that the tests before this one test something."""
    chosen, took = fuzz_storage.readers(tmp_path), collections.Counter()
    for seed in fuzz_storage.seeds(tmp_path):
        try:
            chosen[seed[0]](seed[1:])
        except RNGRUError:
            continue
        took[chosen[seed[0]].__name__] += 1
    assert set(took) >= {'facts', 'unsealed', 'table', 'anyarrays', 'fittingarrays', 'text'}
