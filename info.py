"""What is in a model's directory and what state it is in: `ModelState.info`."""

import os
import shutil
from typing import TYPE_CHECKING

import history
from errors import RNGRUError
from lock import LOCKFILE, holder
from opening import DATAFILE
from storage import filechecksum, isanytemp, loadfacts
from terminal import fitting

if TYPE_CHECKING:
    from model import ModelState


class Info(str):
    """A text that the shell shows as it is, its long lines broken where
    the terminal ends."""

    def __repr__(self) -> str:
        return fitting(str(self))


def describe(ms: 'ModelState') -> Info:
    """The Info of a ModelState; reads every file once."""
    directory = ms.workdir.path
    found, bad = ms.workdir.scan()
    damaged = [str(error).rpartition(': ')[0] for error in bad]
    damaged += [f'the arrays of {each.name} ({each.arrays})' for each in found
                if not _iswhole(directory / each.arrays, each.checksum) and (directory / each.name).exists()]
    state = ms.workdir.statefile()
    try:
        loadfacts(state)
    except (OSError, RNGRUError) as error:
        damaged.append(str(error).rpartition(': ')[0])
    if not _iswhole(directory / DATAFILE, ms.textchecksum):
        damaged.append(f'the encoded text {DATAFILE}')

    names = set(os.listdir(directory))
    checkpointfiles = {name for each in found for name in (each.name, each.arrays)} | {name for name in names if name.endswith('-model.p')}
    left = {name for name in names if isanytemp(name)}
    others = names - checkpointfiles - left - {state.name, DATAFILE, history.FILE, LOCKFILE}
    size = _sizes(directory, checkpointfiles)
    lines = [f'{ms._describe()}.', f"In '{directory}':",
             f'  model        {_size(_sizes(directory, {state.name})):>9}  {state.name}',
             f'  text         {_size(_sizes(directory, {DATAFILE})):>9}  {DATAFILE}',
             f'  checkpoints  {_size(size):>9}  {len(found)}' + (f', the latest {found[-1].name}' if found else '')
             + (f', the best {found.best.name}' if found.best else '')]
    if history.FILE in names:
        lines.append(f'  history      {_size(_sizes(directory, {history.FILE})):>9}  {history.FILE}')
    if ms.startedfrom:
        lines.insert(1, f'Its first parameters were those of {ms.startedfrom}.')
    if left:
        lines.append(f'  left over    {_size(_sizes(directory, left)):>9}  {len(left)}, of writes under way or broken off: '
                     'the next one clears up')
    if others:
        listed = sorted(others)
        lines.append(f'  others       {_size(_sizes(directory, others)):>9}  '
                     f'{", ".join(map(ascii, listed[:5]))}{", ..." if len(listed) > 5 else ""}')
    lines += [f'Damaged: {text}.' for text in damaged] or ['Every file is whole.']
    who = holder(directory)
    lines.append(f'{who} is training here.' if who else 'Nobody is training here.')
    lines.append(f'{_size(shutil.disk_usage(directory).free)} free on this disk'
                 + (f', a checkpoint takes {_size(size // len(found))}.' if found else '.'))
    return Info('\n'.join(lines))


def _iswhole(path, checksum):
    try:
        return filechecksum(path) == checksum
    except OSError:
        return False


def _sizes(directory, names):
    total = 0
    for name in names:
        try:
            total += os.stat(directory / name).st_size
        except OSError:         # a training elsewhere has just removed it
            pass
    return total


def _size(count):
    """'12.3 MB'."""
    for unit in ('bytes', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:.1f} {unit}' if isinstance(count, float) else f'{count} {unit}'
        count /= 1000
    return f'{count:.1f} TB'
