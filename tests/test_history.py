"""history.csv and its table: what is written stands, what a kill tears is mended, what was made again replaces what it repeats."""

import csv
import errno
import os
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import history
from errors import WorkDirError
from history import History, read

HEADER = 'time,kind,updates,epoch,position,characters,loss,learnrate,gradnorm,clipped,characters_per_second,seconds,format'


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'history.csv'


def step(log, updates, loss=2.0, **more):
    log.add('step', updates, 0, updates, updates * 1600, loss, 0.001, **{'seconds': updates * 0.5, **more})


def validation(log, updates, loss=2.0):
    log.add('validation', updates, 0, updates, updates * 1600, loss, 0.001, seconds=updates * 0.5)


def written(path, *rows):
    """A history of the rows (kind, updates, loss), flushed one by one; its Table as (kind, updates, loss)."""
    log = History(path)
    for kind, updates, loss in rows:
        (step if kind == 'step' else validation)(log, updates, loss)
        log.flush()
    return shown(read(path))


def shown(table):
    return list(zip(table['kind'].tolist(), table['updates'].tolist(), table['loss'].tolist()))


# Writing

def test_a_row_holds_what_was_added_with_its_time_and_losses_exact_to_float32(path):
    loss = np.float32(1.2345678806304932)
    log = History(path)
    before = datetime.now(timezone.utc)
    log.add('step', np.int64(7), 1, 2, 10**12, loss, 0.0005, 3.25, 0.125, 51234.5, 1234.5678)
    log.add('validation', 7, 1, 2, 10**12, 1.5, 0.0005)
    log.flush()
    with open(path, newline='') as file:
        first, second = csv.DictReader(file)
    assert path.read_text().splitlines()[0] == HEADER
    assert first['time'].endswith('Z') and abs((datetime.fromisoformat(first['time']) - before).total_seconds()) < 30
    assert np.float32(first.pop('loss')) == loss
    assert {**first, 'time': ''} == {'time': '', 'kind': 'step', 'updates': '7', 'epoch': '1', 'position': '2', 'characters': str(10**12),
                                     'learnrate': '0.0005', 'gradnorm': '3.25', 'clipped': '0.125', 'characters_per_second': '51234.5',
                                     'seconds': '1234.568', 'format': '1'}
    assert (second['kind'], second['loss'], second['gradnorm'], second['seconds']) == ('validation', '1.5', '', '')


@given(st.floats(0, 100, width=32))
def test_every_float32_loss_is_read_as_it_was(tmp_path_factory, loss):
    path = tmp_path_factory.mktemp('work') / 'history.csv'
    log = History(path)
    step(log, 1, np.float32(loss))
    log.flush()
    assert np.float32(read(path)['loss'][0]) == np.float32(loss)


def test_nothing_touches_the_disk_before_a_flush_with_rows(path):
    log = History(path)
    log.flush(), log.flush(sync=True)
    step(log, 1)
    assert not path.exists()
    log.flush()
    size = path.stat().st_size
    log.flush(), log.flush(sync=True)
    assert path.stat().st_size == size and not log.rows


def test_a_flush_is_one_write_of_whole_lines_and_syncs_where_asked(path, monkeypatch):
    writes, syncs, write, fsync = [], [], os.write, os.fsync
    monkeypatch.setattr(os, 'write', lambda handle, data: writes.append(bytes(data)) or write(handle, data))
    monkeypatch.setattr(os, 'fsync', lambda handle: syncs.append(handle) or fsync(handle))
    log = History(path)
    for start in 0, 50:
        for i in range(start, start + 50):
            step(log, i + 1)
        log.flush()
    assert [data.count(b'\n') for data in writes] == [51, 50] and all(data.endswith(b'\n') for data in writes) and not syncs
    log.flush(sync=True)
    assert len(syncs) == 1 and len(writes) == 2


def test_a_file_that_is_moved_away_is_begun_anew(path):
    log = History(path)
    step(log, 1)
    log.flush()
    path.rename(path.with_name('old.csv'))
    step(log, 2)
    log.flush()
    assert shown(read(path)) == [('step', 2, 2.0)] and path.read_text().startswith(HEADER)


def test_columns_are_the_files_where_another_version_began_it(path):
    path.write_text('updates,loss,colour,kind\n1,3.5,blue,step\n')
    log = History(path)
    step(log, 2, 3.25)
    log.flush()
    assert path.read_text().splitlines()[-1] == '2,3.25,,step'
    table = read(path)
    assert shown(table) == [('step', 1, 3.5), ('step', 2, 3.25)] and np.isnan(table['seconds']).all() and not len(table.validations)


# Kills and full disks

def test_a_kill_at_any_byte_loses_no_line_before_it_and_is_mended(path):
    log = History(path)
    for i in range(1, 4):
        step(log, i, 2.5)
    log.flush()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        lines = whole[:cut].count(b'\n')
        for junk in b'', b'\0' * 20:                # a power loss leaves those
            path.write_bytes(whole[:cut] + junk)
            assert shown(read(path)) == [('step', i, 2.5) for i in range(1, 4)][:max(lines - 1, 0)]
            log = History(path)
            step(log, 9)
            log.flush()
            assert shown(read(path)) == [*[('step', i, 2.5) for i in range(1, 4)][:max(lines - 1, 0)], ('step', 9, 2.0)]
            assert path.read_text().count(HEADER) == 1


def test_a_last_line_longer_than_a_block_is_mended(path):
    written(path, ('step', 1, 2.0))
    good = path.read_bytes()
    path.write_bytes(good + b'x' * 10_000)
    assert written(path, ('step', 2, 2.0)) == [('step', 1, 2.0), ('step', 2, 2.0)]
    assert path.read_bytes().startswith(good) and b'x' not in path.read_bytes()


def test_somebody_elses_torn_line_between_two_flushes_is_mended(path):
    log = History(path)
    step(log, 1)
    log.flush()
    with open(path, 'a') as file:
        file.write('2026-11-24T12:00:00.0')
    step(log, 2)
    log.flush()
    assert shown(read(path)) == [('step', 1, 2.0), ('step', 2, 2.0)]


@pytest.mark.parametrize('room', [0, 1, 60, 200, 290])
def test_a_full_disk_leaves_the_file_as_it_was_and_keeps_the_rows(path, monkeypatch, room):
    log = History(path)
    step(log, 1)
    log.flush()
    before, left, write = path.read_bytes(), [room], os.write

    def full(handle, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(handle, data[:left[0]])
        left[0] -= count
        return count
    for i in range(2, 7):
        step(log, i)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', full)
        for _ in range(3):
            with pytest.raises(OSError, match='No space'):
                log.flush()
            assert path.read_bytes() == before
    log.flush()
    assert shown(read(path)) == [('step', i, 2.0) for i in range(1, 7)]


def test_a_disk_that_stays_full_costs_bounded_memory(path, monkeypatch):
    monkeypatch.setattr(history, 'MAXROWS', 5)
    log = History(path.parent / 'gone' / 'history.csv')
    for i in range(1, 9):
        step(log, i)
        with pytest.raises(OSError):
            log.flush()
    path.parent.joinpath('gone').mkdir()
    log.flush()
    assert read(log.path)['updates'].tolist() == [4, 5, 6, 7, 8]


# What is no history

def test_a_link_a_pipe_and_a_directory_are_refused_in_one_sentence(path, tmp_path):
    target = tmp_path / 'target'
    target.write_text('precious')
    path.symlink_to(target)
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'directory' / 'history.csv').mkdir(parents=True)
    for wrong in path, tmp_path / 'pipe', tmp_path / 'directory' / 'history.csv':
        log = History(wrong)
        step(log, 1)
        with pytest.raises(OSError) as caught:
            log.flush()
        assert '\n' not in str(caught.value) and len(log.rows) == 1
    for wrong in path, tmp_path / 'pipe', tmp_path / 'directory':
        with pytest.raises(WorkDirError) as caught:
            read(wrong)
        assert '\n' not in str(caught.value)
    assert target.read_text() == 'precious'


def test_another_programs_file_is_neither_read_nor_written(path):
    for content in 'name,age\nAda,36\n', 'time', 'tomatoes', 'kind,updates,loss,loss\n':
        path.write_text(content)
        log = History(path)
        step(log, 1)
        if content == 'time':               # the beginning of our own first line, torn
            log.flush()
            assert shown(read(path)) == [('step', 1, 2.0)]
            continue
        with pytest.raises(WorkDirError, match='no history'):
            log.flush()
        assert path.read_text() == content
        with pytest.raises(WorkDirError, match='no history'):
            read(path)


@pytest.mark.parametrize('line', ['1,2', 'x,step,1,0,0,0,1.0,1,,,,,1', '2026-01-01T00:00:00,step,-1,0,0,0,1.0,1,,,,,1',
                                  '2026-01-01T00:00:00,step,1.5,0,0,0,1.0,1,,,,,1', '2026-01-01T00:00:00,step,1,0,0,0,one,1,,,,,1',
                                  '2026-01-01T00:00:00,step,99999999999999999999,0,0,0,1.0,1,,,,,1', '\0\0\0\0', '"', '\ufffd', '9' * 6000])
def test_a_damaged_line_is_one_clear_sentence(path, line):
    written(path, ('step', 1, 2.0))
    path.write_bytes(path.read_bytes() + line.encode('utf-16-be' if line == '\ufffd' else 'utf-8') + b'\n')
    with pytest.raises(WorkDirError) as caught:
        read(path)
    assert str(path) in str(caught.value) and 'damaged' in str(caught.value) and '\n' not in str(caught.value)


@settings(max_examples=300)
@given(st.integers(0, 400), st.binary(max_size=8))
def test_damage_anywhere_is_a_table_or_one_sentence(tmp_path_factory, at, junk):
    path = tmp_path_factory.mktemp('work') / 'history.csv'
    written(path, ('step', 1, 2.0), ('validation', 1, 2.0), ('step', 2, 1.5))
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + junk + whole[at + len(junk):])
    try:
        repr(read(path))
    except WorkDirError as error:
        assert '\n' not in str(error)


def test_a_newer_format_is_refused_and_newer_columns_are_passed_over(path):
    written(path, ('step', 1, 2.0))
    head, row = path.read_text().splitlines()
    path.write_text(f'{head},temperature\n{row},36.6\n')
    assert shown(read(path)) == [('step', 1, 2.0)] and 'temperature' not in read(path).keys()       # noqa: SIM118 (no dict)
    path.write_text(f'{head}\n{row[:-1]}2\n')
    with pytest.raises(WorkDirError, match=r'newer RN-GRU \(format 2'):
        read(path)


def test_what_a_spreadsheet_saved_is_read(path):
    written(path, ('step', 1, 2.0), ('validation', 1, 1.5))
    lines = path.read_text().splitlines()
    path.write_text('\ufeff' + ''.join(','.join(f'"{cell}"' for cell in line.split(',')) + '\r\n' for line in lines), newline='')
    assert shown(read(path)) == [('step', 1, 2.0), ('validation', 1, 1.5)]


def test_times_of_other_zones_are_read_as_utc(path):
    path.write_text('kind,updates,loss,time\nstep,1,2,2026-11-24T13:30:00.250+01:00\nstep,2,2,2026-11-24 12:30:01\nstep,3,2,\n')
    times = read(path)['time']
    assert times[:2].tolist() == [datetime(2026, 11, 24, 12, 30, 0, 250_000), datetime(2026, 11, 24, 12, 30, 1)] and np.isnat(times[2])
    assert read(path)[2]['time'] is None


def test_a_missing_history_says_where(tmp_path):
    with pytest.raises(FileNotFoundError, match='history.csv'):
        read(tmp_path)


# What was made again

def test_steps_made_again_replace_those_they_repeat_and_all_behind(path):
    first = [('step', i, 9.0) for i in range(1, 6)] + [('validation', 5, 8.0)]
    first += [('step', i, 7.0) for i in range(6, 9)] + [('validation', 8, 7.0)]
    again = [('step', 6, 1.0), ('step', 7, 1.0)]
    assert written(path, *first, *again) == [*first[:6], *again]                        # from the checkpoint at 5
    assert written(path, ('step', 3, 0.5)) == [*first[:2], ('step', 3, 0.5)]            # and then from one at 2


def test_a_validation_belongs_to_the_updates_before_it(path):
    rows = [('step', 1, 3.0), ('validation', 1, 3.0), ('step', 2, 2.0), ('validation', 2, 2.0)]
    assert written(path, *rows) == rows
    assert written(path, ('validation', 1, 2.5)) == [rows[0], *rows[2:], ('validation', 1, 2.5)]
    assert written(path, ('step', 2, 1.0)) == [rows[0], ('validation', 1, 2.5), ('step', 2, 1.0)]
    assert written(path, ('step', 1, 1.0)) == [('step', 1, 1.0)]


@given(st.lists(st.tuples(st.sampled_from(['step', 'validation']), st.integers(0, 6)), max_size=25))
def test_what_stands_agrees_with_a_naive_loop(rows):
    standing = []
    for number, (kind, updates) in enumerate(rows):
        standing = [each for each in standing
                    if not (kind == 'step' and each[2] >= updates or kind == each[1] == 'validation' and each[2] == updates)]
        standing.append((number, kind, updates))
    mask = history._standing(np.array([kind for kind, _ in rows], str), np.array([updates for _, updates in rows], np.int64))
    assert np.flatnonzero(mask).tolist() == [number for number, _, _ in standing]


# The table

def test_a_table_gives_columns_rows_and_parts(path):
    written(path, ('step', 1, 3.0), ('step', 2, 2.0), ('validation', 2, 2.5), ('step', 3, 1.5))
    table = read(path.parent)
    assert len(table) == 4 and table['loss'].tolist() == [3, 2, 2.5, 1.5] and table['updates'].dtype == np.int64
    assert table[-1]['characters'] == 4800 and type(table[-1]['loss']) is float and table[-1]['time'].tzinfo is timezone.utc
    assert (len(table.steps), len(table.validations), len(table[1:3])) == (3, 1, 2)
    assert table['time'].dtype == np.dtype('datetime64[ms]') and list(dict(table)) == HEADER.split(',')
    assert [row['updates'] for row in table] == [1, 2, 2, 3]
    with pytest.raises(KeyError):
        table['los']


def test_the_best_is_the_newest_of_the_lowest_validations(path):
    for updates, loss in (1, 2.0), (2, 1.5), (3, 1.5):
        written(path, ('step', updates, 0.5), ('validation', updates, loss))
    assert read(path).best['updates'] == 3
    assert read(path).steps.best is None


def test_the_table_shows_the_last_validations_within_80_columns(path):
    log = History(path)
    for i in range(1, 1301):
        step(log, i, 4.0 if i <= 1200 else 1.0, seconds=40_000 + i * 10.0)
        if i % 100 == 0:
            log.add('validation', i, 12, i, 123_456_789_012, 2.0 - i / 1000 if i < 1250 else 0.9, 0.001, seconds=40_000 + i * 10.0)
    log.flush()
    lines = repr(read(path)).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 1 + 1 + 1 + 10 + 1
    assert lines[0] == '1,300 updates, 123,456,789,012 characters, 14 h 43 min of training.'
    assert lines[-2].split() == ['1300', '12', '1300', '123456789012', '14', 'h', '43', 'min', '1.0000', '0.9000']
    assert lines[-3].split()[-2:] == ['4.0000', '0.8000*'] and lines[3].split()[0] == '400'


def test_a_table_without_validations_or_steps_says_so(path):
    assert written(path, ('step', 1, 3.0), ('step', 2, 2.0)) and repr(read(path)).splitlines() == [
        '2 updates, 3,200 characters, 1.0 s of training.', 'No validation yet; training loss 2.5000 nats/char over the last 2 steps.']
    path.write_text(HEADER + '\n')
    assert repr(read(path)) == 'No steps yet.' and not read(path) and read(path).best is None
    path.write_text('')
    assert repr(read(path)) == 'No steps yet.' and list(read(path).keys()) == HEADER.split(',')


@pytest.mark.parametrize('seconds, text', [(0, '0.0 s'), (59.94, '59.9 s'), (61, '1 min 01 s'), (3599, '59 min 59 s'), (3720, '1 h 02 min'),
                                           (360_000, '100 h 00 min'), (float('nan'), '')])
def test_durations_read_well(seconds, text):
    assert history.duration(seconds) == text


# ---- the last rounds

def test_the_last_rounds_are_the_validations_that_stand_with_the_steps_before_them(tmp_path):
    log = History(tmp_path / history.FILE)
    for updates in range(1, 8):
        log.add('step', updates, 0, updates, updates * 10, updates / 10, 0.001 * updates)
        if updates in (3, 7):
            log.add('validation', updates, 0, updates, updates * 10, 5.0 - updates, None)
    for updates in (6, 7, 8):                           # from a checkpoint after 5 updates on: the validation after 7 no longer stands
        log.add('step', updates, 1, updates - 6, updates * 10, updates / 100, 0.5)
    log.add('validation', 8, 1, 2, 80, 1.25, None)
    log.flush()
    assert history.rounds(tmp_path, 2) == [(3, 3, 2.0, [0.2, 0.3], 0.003), (8, 2, 1.25, [0.07, 0.08], 0.5)]
    assert history.rounds(tmp_path, 100) == [(3, 3, 2.0, [0.1, 0.2, 0.3], 0.003), (8, 2, 1.25, [0.06, 0.07, 0.08], 0.5)]
    assert history.rounds(tmp_path, 2, most=1) == [(8, 2, 1.25, [0.07, 0.08], 0.5)]


def test_of_a_long_history_the_end_is_enough_for_the_last_rounds(tmp_path, monkeypatch):
    log = History(tmp_path / history.FILE)
    for updates in range(1, 1001):
        log.add('step', updates, 0, 0, updates, 1.0, 0.1)
        if updates % 50 == 0:
            log.add('validation', updates, 0, 0, updates, 2.0, None)
    log.flush()
    monkeypatch.setattr(history, 'NEWEST', 10_000)
    found = history.rounds(tmp_path, 10)
    assert 2 <= len(found) < 10 and found[-1] == (1000, 0, 2.0, [1.0] * 10, 0.1)


def test_rounds_of_what_is_no_history_raise_as_read_does(tmp_path):
    with pytest.raises(FileNotFoundError):
        history.rounds(tmp_path, 10)
    path = tmp_path / history.FILE
    for damage in (b'', b'a,b\n', b'kind,updates,loss\n', b'kind,updates,position,loss,learnrate\nx,validation,3\n'):
        path.write_bytes(damage)
        with pytest.raises(WorkDirError):
            history.rounds(tmp_path, 10)


def test_the_latest_row_is_the_last_whole_one_of_whatever_length_the_history_is(path, tmp_path):
    log = History(path)
    step(log, 1, 3.5)
    log.flush()
    assert history.latest(tmp_path) == (1, 3.5)
    validation(log, 1, 2.25)
    log.flush()
    assert history.latest(tmp_path) == (1, 2.25)
    for updates in range(2, 300):
        step(log, updates, updates / 4)
    log.flush()
    assert path.stat().st_size > 3 * history.TAIL and history.latest(tmp_path) == (299, 74.75)
    with open(path, 'a') as file:
        file.write('2026-01-01T00:00:00.000Z,step,300,0,300')
    assert history.latest(tmp_path) == (299, 74.75)
    path.write_text(HEADER + '\n')
    assert history.latest(tmp_path) is None
    path.write_text(HEADER[:20])
    assert history.latest(tmp_path) is None
    path.write_text(HEADER + '\n,step,many,0,0,0,1.0,,,,,,1\n')
    with pytest.raises(WorkDirError, match='damaged'):
        history.latest(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        history.latest(tmp_path)
