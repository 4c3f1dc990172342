"""A model's working directory: its files, their names, and its checkpoints, none of which a crash loses or tears.

    <MODELTYPE>-<layers>x<state_size>-state.p      the model's facts            (savefacts, loadfacts)
    <UTC time>-<loss>-model.p                      a checkpoint's facts         (WorkDir.writecheckpoint)
    <UTC time>-<loss>-model.npz                    the same one's arrays        (savearrays, loadarrays)
    training.lock                                  who trains here              (lock)

Every name inside is relative: the directory may be moved or copied whole.
"""
import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Self

import numpy as np

import report
from arrays import loadarrays, savearrays
from errors import CheckpointError, WorkDirError, checkint, reason
from lock import LOCKFILE, trainlock
from storage import Staged, dumpfacts, filechecksum, isourtemp, loadfacts, removepair, syncdir

KINDS = ('validation', 'training', 'untrained')     # of a checkpoint's loss


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """One saved moment of a model's training, as WorkDir.checkpoints() lists
    it."""
    name: str           # of its facts file, without directory: what restore() takes
    loss: float         # nats per character
    epoch: int
    pos: int            # step within the epoch
    time: datetime      # aware, UTC
    counter: int        # orders a directory's checkpoints, whatever the clock did
    arrays: str         # name of the file of its arrays, beside it
    checksum: str       # of that file
    facts: dict = field(hash=False)     # everything else that was stored with it

    @property
    def kind(self) -> str:
        """What the loss is: 'validation', 'training' or 'untrained'."""
        return self.facts['losskind'] if self.facts.get('losskind') in KINDS else ''

    def __repr__(self) -> str:
        return f'<Checkpoint {self.name}: loss {self.loss:.4f}, epoch {self.epoch}, position {self.pos}>'


class Checkpoints(list[Checkpoint]):
    """Checkpoints, oldest first: a list that shows itself as a table."""

    @property
    def best(self) -> Checkpoint | None:
        """The one with the lowest validation loss, the newest of equals; None
        without any."""
        validated = [each for each in reversed(self) if each.kind == 'validation' and math.isfinite(each.loss)]
        return min(validated, key=lambda each: each.loss, default=None)

    def __repr__(self) -> str:
        if not self:
            return 'No checkpoints yet.'
        best = self.best
        lines = ['name: time (UTC), loss                      epoch position nats/char  loss']         # 80 columns hold it
        for each in self:
            lines.append(f'{each.name:43} {each.epoch:5} {each.pos:8} {each.loss:9.4f}{"*" if each is best else " "} {each.kind}')
        return '\n'.join(lines + ['* the best'] * (best is not None))


_FIELDS = {'loss': float, 'epoch': int, 'pos': int, 'time': str, 'counter': int, 'arrays': str, 'checksum': str, 'facts': dict}


def _now():
    return datetime.now(timezone.utc)


def _isbare(name):
    """Whether `name` is a file's name alone, on any system."""
    return name not in ('', '.', '..') and not any(c in '/\\:\0' for c in name)


def _isstate(name):
    return name.endswith('-state.p') and not name.startswith('.')


def _isfacts(name):
    return name.endswith('-model.p') and not name.startswith('.')


class WorkDir:
    """A model's directory. WorkDir(path) only holds the path (str or Path); every method reads the disk anew."""

    def __init__(self, path: str | os.PathLike) -> None:
        if not os.fspath(path):
            raise ValueError("the working directory is '': name one")
        self.path = pathlib.Path(os.path.abspath(path))     # so that a later os.chdir() doesn't move it

    def __repr__(self) -> str:
        return f'WorkDir({str(self.path)!r})'

    @contextlib.contextmanager
    def create(self, *names: str) -> Iterator[Self]:
        """Make or take this directory for a new model: `with WorkDir(path).create('data.npy'): write its files`.

        names: bare names of the files that the block will write besides state and checkpoints. Should the block
        raise, by Ctrl-C too, the disk is put back as it was: these files, state, checkpoints and the directories made
        here are removed, never what was there before. While the block runs, the directory is locked. Raises
        WorkDirError, before anything is written, when the directory holds a model or has a file of one of these names (other than
        what a killed process left), is no directory, can't be written, or somebody else is at it.
        """
        if not all(map(_isbare, names)):
            raise ValueError(f'{names} are not bare file names')
        before, missing, lock = None, [], contextlib.ExitStack()
        try:
            try:
                if self.path.exists():
                    if not self.path.is_dir():
                        raise WorkDirError(f"'{self.path}' is a file: name a directory for the new model")
                    self._refuseused(os.listdir(self.path), names)
                missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
                for directory in reversed(missing):
                    directory.mkdir()
                    syncdir(directory.parent)
                listing = os.listdir(self.path)
                lock.enter_context(trainlock(self.path))
                self._refuseused(os.listdir(self.path), names)
                before = listing                        # from here on there is something to undo
            except OSError as err:
                raise self._unusable(err) from err
            self.checkwritable()
            yield self
        except BaseException:
            for name in set(os.listdir(self.path)).difference(before) if before is not None else ():
                if missing or self._isours(name, names):
                    with contextlib.suppress(OSError):          # a directory, say: not made here
                        os.unlink(self.path / name)
            for directory in missing:
                with contextlib.suppress(OSError):              # not empty: another's
                    directory.rmdir()
            raise
        finally:
            lock.close()

    def make(self) -> None:
        """Make the directory where there is none; WorkDirError where that can't be done, or no file can be made in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise self._unusable(err) from err
        self.checkwritable()

    def checkwritable(self) -> None:
        """WorkDirError where no file can be made here, which is known by making one."""
        try:
            with Staged(self.path / 'probe'):
                pass
        except OSError as err:
            raise self._unusable(err) from err

    def _unusable(self, err):
        return WorkDirError(f"'{self.path}' cannot be used as a working directory ({reason(err)}): name one that can be written, "
                            'or make this one so')

    def _refuseused(self, found, names):
        if any(map(_isstate, found)):
            raise WorkDirError(f"'{self.path}' already holds a model: ModelState.load({str(self.path)!r}) loads it, "
                               "or name another directory for the new one")
        if any(map(_isfacts, found)):
            raise WorkDirError(f"'{self.path}' holds the checkpoints of a model whose state file is gone: "
                               "name another directory for the new one")
        taken = [name for name in names if name in found]
        if taken and LOCKFILE not in found:             # with it, a process killed on its way to a model left them
            raise WorkDirError(f"'{self.path}' already has a file {taken[0]!r}: name another directory")

    @staticmethod
    def _isours(name, names):
        return name in names or name == LOCKFILE or _isstate(name) or name.endswith(('-model.p', '-model.npz')) or isourtemp(name)

    def _names(self):
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no directory '{self.path}': check the name, or make a model in it with "
                                    "ModelState.initfromsrcfile()") from None
        except NotADirectoryError:
            raise NotADirectoryError(f"'{self.path}' is a file: name the model's directory") from None
        except PermissionError:
            raise PermissionError(f"the directory '{self.path}' can't be read: change its permissions") from None

    def _listing(self):
        """_names() at one moment: while it is listed, a directory may lose a name seen and gain one where the listing has been already."""
        names = None
        while names != (names := sorted(self._names())):
            pass
        return names

    def statefile(self) -> pathlib.Path:
        """Path of the model's state file; WorkDirError for none or several, FileNotFoundError for no directory."""
        found = sorted(filter(_isstate, self._names()))
        if not found:
            raise WorkDirError(f"'{self.path}' holds no model: name the directory of one, or make one with "
                               "ModelState.initfromsrcfile()")
        if len(found) > 1:
            raise WorkDirError(f"'{self.path}' holds {len(found)} models ({', '.join(found)}): "
                               "move all state files but one elsewhere")
        return self.path / found[0]

    def writecheckpoint(self, loss: float, epoch: int, pos: int, facts: dict, arrays: dict[str, np.ndarray]) -> Checkpoint:
        """Store a checkpoint and return it; when this returns, it is on the disk for good.

        loss: nats per character; epoch, pos: int; facts: as savefacts takes; arrays: as savearrays takes.
        Its facts file, which appears last and in one step, is what makes it one: until then the directory is as it
        was. Raises TypeError or ValueError for what can't be stored, OSError when the disk refuses.
        """
        if type(facts) is not dict:
            raise TypeError(f'facts must be a dict, not {type(facts).__name__}')
        counter = 1 + max((known.counter for known in self.scan()[0]), default=0)
        stored: dict = {'loss': float(loss), 'epoch': checkint('epoch', epoch), 'pos': checkint('pos', pos), 'facts': facts}
        short = f'{stored["loss"]:.4f}' if abs(stored['loss']) < 1e6 else f'{stored["loss"]:.4g}'
        when = _now()
        while True:
            stem = f'{when:%Y-%m-%dT%H-%M-%S.%fZ}-{short}-model'
            factspath, arrayspath = self.path / f'{stem}.p', self.path / f'{stem}.npz'
            stored.update(time=when.isoformat(), counter=counter, arrays=arrayspath.name)
            dumpfacts(stored)                       # refuses what can't be stored before anything is written
            when += timedelta(microseconds=1)       # where this name is taken, the clock stood still or went back
            if factspath.exists() or arrayspath.exists():
                continue
            with Staged(factspath) as staged:      # before the arrays: see storage's _sweep
                try:
                    open(arrayspath, 'xb').close()  # takes the name for good
                except FileExistsError:
                    continue
                try:
                    checksum = savearrays(arrayspath, arrays)
                    staged.file.write(dumpfacts({**stored, 'checksum': checksum}))
                    staged.publish()
                except BaseException:
                    if not factspath.exists():
                        with contextlib.suppress(OSError):
                            arrayspath.unlink()
                    raise
            return self._read(factspath.name)

    def prune(self, keep: int, spared: str | None = None) -> int:
        """Remove all checkpoints of rounds' ends but the `keep` newest, the best one and the one called `spared`; how many are gone."""
        found = self.scan()[0]
        best = found.best
        return self.remove(each for each in [known for known in found if known.kind != 'training'][:-keep]
                           if each is not best and each.name != spared)

    def makeroom(self, keep: int, spared: str | None = None) -> int:
        """Remove what `prune(keep)` would remove behind the next checkpoint, where the newest one is whole; how many are gone.

        For a disk too full for that one: the newest, the best and the one called `spared` stay, whatever `keep` says.
        """
        found = self.scan()[0]
        try:
            iswhole = bool(found) and filechecksum(self.path / found[-1].arrays) == found[-1].checksum
        except OSError:
            iswhole = False
        return self.prune(max(keep - 1, 1), spared) if iswhole else 0

    def remove(self, checkpoints: Iterable[Checkpoint]) -> int:
        """Remove these; what the disk refuses to remove stays, whole. How many are gone."""
        gone = 0
        for each in checkpoints:
            with contextlib.suppress(OSError):
                removepair(self.path / each.name)
                gone += 1
        return gone

    def checkpoints(self) -> Checkpoints:
        """The Checkpoints, oldest first. One that can't be read is named in a warning and left out."""
        found, bad = self.scan()
        for err in bad:
            report.warn(str(err))
        return found

    def checkpoint(self, name: str) -> Checkpoint:
        """The Checkpoint of that name, as checkpoints() lists it; 'latest' and 'best' (by validation loss) name one too.

        Raises CheckpointError when there is none or it is damaged, ValueError when the name has a directory in it.
        """
        if type(name) is not str:
            raise TypeError(f'a checkpoint is named by a str, the .name of one of checkpoints(), not by {name!r}')
        if name in ('latest', 'best'):
            found = self.checkpoints()
            known = found.best if name == 'best' else found[-1] if found else None
            if known:
                return known
            raise CheckpointError(f"'{self.path}' holds no checkpoint {'yet' if name == 'latest' else 'with a validation loss yet'}: "
                                  'trainmodel() makes one')
        if not _isbare(name):
            raise ValueError(f'{name!r} is not a bare file name: give the .name of one of checkpoints()')
        if _isfacts(name) and name in self._names():
            return self._read(name)
        names = [known.name for known in reversed(self.scan()[0])]
        older = f' and {len(names) - 10} older' if len(names) > 10 else ''
        raise CheckpointError(f"'{self.path}' has no checkpoint {name!r}: " + (
            f"it has {', '.join(names[:10])}{older}" if names else 'it has none yet'))

    def loadarrays(self, checkpoint: Checkpoint, expected: dict[str, tuple] | None = None) -> dict[str, np.ndarray]:
        """The arrays of a Checkpoint, all of them whole; expected and errors as in loadarrays, a missing file being a CheckpointError."""
        try:
            return loadarrays(self.path / checkpoint.arrays, expected, checkpoint.checksum)
        except OSError as err:
            gone = 'are gone' if isinstance(err, FileNotFoundError) else f'cannot be read ({reason(err)})'
            raise CheckpointError(f"the arrays of {checkpoint.name!r} {gone} ('{self.path / checkpoint.arrays}'): "
                                  "restore another checkpoint") from err

    def newest(self, expected: Callable[[Checkpoint], dict],
               first: Checkpoint | None = None) -> tuple[Checkpoint | None, dict[str, np.ndarray]]:
        """(Checkpoint, arrays) of the newest checkpoint that is whole, or (None, {}) where there is none at all.

        expected: a function, Checkpoint -> what loadarrays takes under this name; it may raise CheckpointError. Damaged
        ones are passed over and named, also where the directory holds no other: then CheckpointError.
        first: a Checkpoint to be tried before them all.
        """
        while True:
            found, bad = self.scan()
            left = list(found)
            if first is not None:
                left, first = [*(each for each in left if each != first), first], None
            while left:
                checkpoint = left.pop()
                try:
                    arrays = self.loadarrays(checkpoint, expected(checkpoint))
                except CheckpointError as err:
                    if not (self.path / checkpoint.name).exists():
                        break               # a training in another process has put a newer one in its place
                    bad.append(err)
                else:
                    for each in bad:
                        report.warn(f'{str(each).rpartition(": ")[0]}: going on with {checkpoint.name}, the newest that is whole')
                    return checkpoint, arrays
            else:
                if bad:
                    raise CheckpointError(f"'{self.path}' has no checkpoint that is whole, {str(bad[-1]).rpartition(': ')[0]}: "
                                          'put good copies back, or move these elsewhere to begin again from the seed') from bad[-1]
                return None, {}

    def scan(self) -> tuple[Checkpoints, list[CheckpointError]]:
        """(the readable Checkpoints, oldest first; CheckpointErrors of the others, oldest name first)."""
        again = True
        while again:        # while one that was listed is gone: a newer one, not listed yet, may have taken its place
            found, bad, again = [], [], False
            for name in filter(_isfacts, self._listing()):
                try:
                    found.append(self._read(name))
                except CheckpointError as err:
                    bad.append(err)
                except FileNotFoundError:
                    again = True
                    break
        return Checkpoints(sorted(found, key=lambda known: (known.counter, known.time, known.name))), bad

    def _read(self, name):
        try:
            stored = loadfacts(self.path / name)
        except WorkDirError as err:
            raise CheckpointError(f'{str(err).rpartition(": ")[0]}: restore another checkpoint') from err
        except OSError as err:
            if not os.path.lexists(self.path / name):
                raise
            raise CheckpointError(f"'{self.path / name}' cannot be read ({reason(err)}): restore another checkpoint") from err
        try:
            values = {key: stored[key] for key in _FIELDS}
            values['time'] = datetime.fromisoformat(values['time'])
            if (any(type(stored[key]) is not kind for key, kind in _FIELDS.items())
                    or any(not 0 <= stored[key] < 2**63 for key in ('epoch', 'pos', 'counter'))
                    or values['time'].utcoffset() != timedelta(0) or not _isbare(stored['arrays'])):
                raise ValueError('a fact of the wrong kind')
        except (KeyError, TypeError, ValueError) as err:
            raise CheckpointError(f"'{self.path / name}' is damaged or no checkpoint of RN-GRU's: "
                                  "restore another checkpoint") from err
        if values['arrays'] != f'{name[:-2]}.npz':
            raise CheckpointError(f"'{self.path / name}' holds the facts of another checkpoint, {values['arrays'][:-4]!r}: "
                                  'give it its name back, or remove it')
        return Checkpoint(name, **values)
