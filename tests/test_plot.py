"""Plots of training histories: what is drawn, where it is written, and what is refused."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import plot
import report
from conftest import ROOT
from errors import WorkDirError
from history import History, read


@pytest.fixture
def made(tmp_path):
    """made(name, steps, validations): a working directory's history; 1,600 characters and half a second a step, losses by number."""
    def made(name, steps, validations=()):
        (tmp_path / name).mkdir(parents=True)
        log = History(tmp_path / name / 'history.csv')
        for updates in range(1, max([len(steps), *(u for u, _ in validations)]) + 1):
            if updates <= len(steps):
                log.add('step', updates, 0, updates, updates * 1600, steps[updates - 1], 0.001, seconds=updates * 0.5)
            for _, loss in (each for each in validations if each[0] == updates):
                log.add('validation', updates, 0, updates, updates * 1600, loss, 0.001, seconds=updates * 0.5)
        log.flush()
        return tmp_path / name
    return made


@pytest.fixture
def matplotlib():
    return pytest.importorskip('matplotlib')


def lines(axes):
    """What an axes' lines hold, as lists of points."""
    return [list(zip(line.get_xdata().tolist(), line.get_ydata().tolist())) for line in axes.get_lines()]


def near(*points):
    return [pytest.approx(point) for point in points]


def test_two_panels_show_losses_over_characters_and_time(matplotlib, made, tmp_path):
    figure = plot.plot(made('book', [4.0, 3.0, 2.0], [(1, 3.5), (2, 2.25), (3, 2.5)]), tmp_path / 'book.png')
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ('read in training, thousands of characters', 'time in training, seconds')
    raw, smooth, validations, best = lines(left)
    assert raw == smooth == near((1.6, 4), (3.2, 3), (4.8, 2)) and validations == near((1.6, 3.5), (3.2, 2.25), (4.8, 2.5))
    assert best == near((3.2, 2.25)) and [text.get_text() for text in left.texts] == ['2.250']
    assert lines(right)[0] == near((0.5, 4), (1, 3), (1.5, 2)) and lines(right)[3] == near((1, 2.25))
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ['training', 'validation, best 2.250 nats (3.246 bits)']         # 2.25 / 0.693147
    assert left.get_title('left') == 'book' and left.get_xscale() == 'linear'
    low, high = left.get_ylim()
    assert low < 2 and high > 4 and right.get_ylim() == (low, high)


def test_bits_stand_on_the_right(matplotlib, made, tmp_path):
    figure = plot.plot(made('book', [4.0, 2.0]), tmp_path / 'book.png')
    right = figure.axes[1]
    bits, = right.child_axes
    assert bits.get_ylim() == pytest.approx([limit / math.log(2) for limit in right.get_ylim()])
    assert 'bits' in bits.get_ylabel() and 'nats' in figure.axes[0].get_ylabel()


def test_several_directories_have_a_colour_and_a_name_each(matplotlib, made, tmp_path):
    one, two, three = made('a/small', [4.0, 3.0], [(2, 3.0)]), made('b/small', [4.0, 2.5]), made('large', [4.0, 2.0], [(2, 2.0)])
    figure = plot.plot([one, read(two), str(three / 'history.csv')], tmp_path / 'all.svg')
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert len(set(colours)) == 3 and set(colours) < set(plot.COLOURS)
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert legend == ['training', 'validation', f'a{os.sep}small, best 3.000 nats (4.328 bits)', f'b{os.sep}small',
                      f'{tmp_path.name}{os.sep}large, best 2.000 nats (2.885 bits)']


@pytest.mark.parametrize('steps, validations, count', [
    ([3.0], [], 2), ([], [(1, 3.0)], 2), ([3.0, 3.0], [(2, 3.0)], 4), ([0.0], [(1, 0.0)], 4)])
def test_a_history_of_few_rows_or_of_one_kind_is_drawn(matplotlib, made, tmp_path, steps, validations, count):
    figure = plot.plot(made('book', steps, validations), tmp_path / 'book.png')
    assert len(figure.axes[0].get_lines()) == count
    low, high = figure.axes[0].get_ylim()
    assert low < high


def test_numbers_that_are_none_are_left_out(matplotlib, made, tmp_path):
    directory = made('book', [4.0, math.nan, 2.0], [(2, math.inf), (3, 2.5)])
    log = History(directory / 'history.csv')
    log.add('step', 4, 0, 4, 6400, 1.5, 0.001)              # its time isn't known
    log.flush()
    left, right = plot.plot(directory, tmp_path / 'book.png', logx=True).axes
    assert lines(left)[0] == near((1.6, 4), (4.8, 2), (6.4, 1.5)) and lines(left)[2] == near((4.8, 2.5))
    assert lines(right)[0] == near((0.5, 4), (1.5, 2)) and left.get_xscale() == right.get_xscale() == 'log'


@pytest.mark.parametrize('ending, start', [('png', b'\x89PNG'), ('svg', b'<?xml'), ('pdf', b'%PDF'), ('PNG', b'\x89PNG')])
def test_the_name_says_what_is_written(matplotlib, made, tmp_path, ending, start):
    path = tmp_path / f'picture.{ending}'
    plot.plot(made('book', [4.0, 3.0]), path)
    data = path.read_bytes()
    assert data.startswith(start)
    if start == b'\x89PNG':
        assert (int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')) == (900, 400)


def test_without_a_display_it_writes_training_png_and_says_so(matplotlib, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, 'verbose', True)
    from matplotlib import pyplot
    before = pyplot.get_backend()
    pyplot.switch_backend('agg')
    try:
        plot.plot(made('book', [4.0, 3.0]))
        assert not pyplot.get_fignums()
    finally:
        pyplot.switch_backend(before)
    assert (tmp_path / 'training.png').read_bytes().startswith(b'\x89PNG') and str(tmp_path / 'training.png') in capsys.readouterr().out


def test_with_a_display_it_shows_a_window_and_writes_nothing(matplotlib, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from matplotlib import pyplot
    shown = []
    monkeypatch.setattr(pyplot, 'get_backend', lambda: 'TkAgg')
    monkeypatch.setattr(pyplot, 'show', lambda: shown.append(pyplot.get_fignums()))
    figure = plot.plot(made('book', [4.0, 3.0]))
    assert shown == [[figure.number]] and os.listdir(tmp_path) == ['book']
    pyplot.close(figure)


def test_the_settings_of_the_users_own_plots_stay(matplotlib, made, tmp_path):
    before = dict(matplotlib.rcParams)
    plot.plot(made('book', [4.0, 3.0]), tmp_path / 'book.png')
    assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_refused_in_one_sentence_and_leaves_the_file(made, tmp_path):
    full, empty = made('full', [3.0]), made('empty', [math.nan])
    (tmp_path / 'old.png').write_bytes(b'old')
    for histories, path, error, words in [
            (empty, 'old.png', ValueError, 'history of empty holds no losses yet'), ([], 'old.png', ValueError, 'empty list'),
            ([full, empty], 'old.png', ValueError, 'empty'), (full, 'old.jpeg', ValueError, 'old.jpeg'), (full, 'old', ValueError, '.png'),
            (full, 3, TypeError, 'path'), (tmp_path / 'none', 'old.png', FileNotFoundError, 'none'), (3, 'old.png', TypeError, '3'),
            (tmp_path / 'old.png', 'old.png', WorkDirError, 'old.png')]:
        with pytest.raises(error) as caught:
            plot.plot(histories, tmp_path / path if isinstance(path, str) else path)
        assert words in str(caught.value) and '\n' not in str(caught.value)
    with pytest.raises(TypeError, match='logx'):
        plot.plot(full, tmp_path / 'old.png', logx=1)
    assert (tmp_path / 'old.png').read_bytes() == b'old' and sorted(os.listdir(tmp_path)) == ['empty', 'full', 'old.png']


def test_without_matplotlib_one_sentence_says_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ImportError) as caught:
        plot.plot(made('book', [3.0]), tmp_path / 'book.png')
    assert f'{sys.executable} -m pip install matplotlib' in str(caught.value) and '\n' not in str(caught.value)


def test_matplotlib_is_imported_for_a_plot_only():
    code = "import plot, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


# Lines

def test_the_running_mean_is_that_of_a_naive_loop():
    y = np.random.default_rng(0).random(60)
    for window in 1, 2, 7, 10, 100:
        for i, value in enumerate(plot._smoothed(y, window)):
            reach = min(window // 2, i // 4)
            around = [y[j] for j in range(i - reach, i + reach + 1) if j < 60]
            assert value == pytest.approx(sum(around) / len(around))


def test_a_long_line_keeps_its_ends_and_its_peaks():
    rng = np.random.default_rng(0)
    x, y = np.arange(1, 100_001), rng.random(100_000)
    y[[31_234, 77_777]] = 9, -9
    few_x, few_y = plot._thinned(x, y)
    assert len(few_x) < 3100 and (np.diff(few_x) > 0).all() and (few_y == y[few_x - 1]).all()
    assert {1, 2, 3, 10, 31_235, 77_778, 100_000} <= set(few_x.tolist())
    assert plot._thinned(x[:3000], y[:3000])[0].tolist() == x[:3000].tolist()


def test_the_first_fall_does_not_flatten_the_rest(matplotlib, made, tmp_path):
    losses = [4.0 if i < 10 else 1.5 - i / 5000 for i in range(1000)]
    directory = made('book', losses, [(10, 4.0), (1000, 1.4)])
    low, high = plot.plot(directory, tmp_path / 'book.png').axes[0].get_ylim()
    assert 1.2 < low < 1.3 and 1.5 < high < 1.6
    assert plot.plot(directory, tmp_path / 'book.png', logx=True).axes[0].get_ylim()[1] > 4


@pytest.mark.parametrize('steps, unit', [(100, 'seconds'), (300, 'minutes'), (20_000, 'hours'), (400_000, 'days')])
def test_times_have_the_unit_that_suits_them(matplotlib, tmp_path, steps, unit):
    log = History(tmp_path / 'history.csv')
    log.add('step', 1, 0, 0, steps * 1600, 2.0, 0.001, seconds=0.5)
    log.add('step', steps, 0, 0, steps * 1600, 2.0, 0.001, seconds=steps * 0.5)
    log.flush()
    assert plot.plot(tmp_path, tmp_path / 'a.png').axes[1].get_xlabel() == f'time in training, {unit}'
