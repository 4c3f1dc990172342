"""What shows itself: in a shell with colours and without, in a notebook, and as a page, which a real browser opens."""

import contextlib
import html
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

import inside
import look
import page
import report
import terminal
from colours import AMOUNT
from rn_rnn_char import ModelState
from test_colours import HOSTILE, SGR, UNSAFE, Terminal

LINES = ''.join(f'def F{i}(a, b):\n    """Say {"x" * (i % 7)}."""\n    return "{i * 7}" + a[{i}]  # of b\n\n' for i in range(60))


def browser():
    """A Chromium that starts, or None: some systems have a command of that name that only says how to install it."""
    for path in filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([path, '--version'], capture_output=True, timeout=30).returncode == 0:
                return path


BROWSER = browser()


def inbrowser(test):
    return pytest.mark.anyengine(pytest.mark.skipif(BROWSER is None, reason='no Chromium here (on Debian: apt-get install chromium)')(test))


@pytest.fixture(scope='module')
def ms(tmp_path_factory):
    """2 x 6 units of the hostile text and some Python. Layer 0's neuron 4 is planted: 0.96 behind an upper-case letter, -0.96 elsewhere."""
    directory = tmp_path_factory.mktemp('model')
    (directory / 'text').write_text((LINES + HOSTILE.replace('\0', '')).encode('utf-8', 'ignore').decode() * 2)
    ms = ModelState.initfromsrcfile(directory / 'text', directory / 'work', seq_len=10, layers=2, state_size=6, seed=3,
                                    init_checkpoint=False, verbose=False)
    params, rng = ms.model.get_params(), np.random.RandomState(1)
    params = {name: rng.uniform(-0.9, 0.9, value.shape) for name, value in params.items()}
    params['E'][:, 0], params['a'][0] = [9 if char.isupper() else -9 for char in ms.charset.chars], 0
    params['U0'][:, [4, 16]], params['W0'][:, [4, 16]], params['b0'][[4, 16]] = 0, 0, [-9, 0]       # z shut, h = tanh(2 * +-1)
    params['U0'][0, 16] = 2
    ms.model.set_params(params)
    return ms


@pytest.fixture
def on(monkeypatch):
    """on(COLUMNS='40', ...): standard output is a terminal of that kind; gives it."""
    def on(encoding='utf-8', **variables):
        for name in ('NO_COLOR', 'COLORTERM', 'COLORFGBG', 'COLUMNS'):
            monkeypatch.delenv(name, raising=False)
        for name, value in {'TERM': 'xterm', 'COLUMNS': '60', **variables}.items():
            monkeypatch.setenv(name, value)
        file = type('File', (Terminal,), {'encoding': encoding})()
        monkeypatch.setattr(sys, 'stdout', file)
        return file
    return on


# ---- in a shell

def test_surprise_shows_the_score_the_text_its_bits_and_what_was_likelier(ms, on):
    text = 'def F1(a):\n    return "7"\n'
    seen = ms.surprise(text)
    bits = [int(share / np.log(2)) for share in ms.score(text).shares]
    assert seen.nats == ms.score(text).nats and seen.bits == ms.score(text).bits and len(set(bits)) > 4
    on(NO_COLOR='1')
    lines = repr(seen).split('\n')
    assert lines[0] == repr(ms.score(text)) and lines[1] == 'def F1(a):\u21b5'
    assert lines[2] == ''.join(str(min(each, 8)) if each else ' ' for each in bits[:11]).rstrip()
    worst = int(np.argmax(seen.shares))
    assert any(line.startswith(f"  {terminal.shown(text[worst])} {seen.shares[worst]:.2f} nats, line {text.count(chr(10), 0, worst) + 1}")
               for line in lines)
    on(COLORTERM='truecolor')
    colour = AMOUNT.colour(min(bits[0], 8))
    assert f'48;2;{colour[0]};{colour[1]};{colour[2]};' in repr(seen).split('\n')[1]
    assert SGR.sub('', repr(seen)).split('\n')[:2] == lines[:2]


@pytest.mark.parametrize('variables', [{'NO_COLOR': '1'}, {'COLORTERM': 'truecolor'}])
def test_in_a_terminal_of_80_columns_no_line_is_longer_and_no_word_broken(ms, on, variables):
    text = LINES[:3000] + '\u65e5\u672c' * 50
    looks = ms.surprise(text), ms.neurons(text), ms.findneurons(text), ms.gates(text), ms.info()
    whole = [repr(each).split() for each in looks[2:]]                  # not in a terminal: lines as long as they are
    on(COLUMNS='80', **variables)
    for each in looks:
        for line in SGR.sub('', repr(each)).split('\n'):
            assert sum(1 + (unicodedata.east_asian_width(char) in 'WF') for char in line) <= 80, line
    assert [repr(each).split() for each in looks[2:]] == whole
    below = repr(looks[0]).split('likeliest there:\n')[1].split('\n')
    assert len(below) > look.LISTED and all(line.startswith('    ') or line.startswith("  '") for line in below)
    assert sum(line.count(' %') for line in below) == 5 * look.LISTED == len(re.findall(r'\d %(?:,|$)', '\n'.join(below), re.M))


def test_alternatives_are_the_likeliest_and_their_probabilities(ms):
    seen = ms.surprise('def F1')
    for i in range(1, 6):
        chances = {char: np.exp(-ms.score('def F1'[:i] + char).shares[i]) for char in ms.charset.chars[1:]}
        chances['\ufffd'] = np.exp(-ms.score('def F1'[:i] + '\ufffd').shares[i])
        best = sorted(chances, key=chances.get)[:-6:-1]
        assert [char for char, _ in seen.alternatives(i)] == best
        assert [chance for _, chance in seen.alternatives(i)] == pytest.approx([chances[char] for char in best])
    for i, error in ((6, ValueError), (-1, ValueError), (1.0, TypeError)):
        with pytest.raises(error):
            seen.alternatives(i)


def test_neurons_show_the_one_asked_for(ms, on):
    text = 'aF(c'
    seen = ms.neurons(text, 0, 4)
    np.testing.assert_array_equal(seen.states, ms.trackneurons(text))
    np.testing.assert_allclose(seen.values, [-0.964, 0.964, -0.964, -0.964], atol=1e-3)          # tanh(2)
    on()
    assert repr(seen).split('\n')[:3] == ['Layer 0, neuron 4: from -0.96 to 0.96.', 'aF(c', 'i9ii']
    on(TERM='xterm-256color')
    assert len(SGR.findall(repr(seen).split('\n')[1])) == 6                  # three runs, each begun and ended


def test_a_planted_neuron_is_found_named_and_shown_first(ms, on):
    on()
    found = ms.findneurons(LINES)
    assert found[0][:3] == ('upper case', 0, 4) and found[0].r == pytest.approx(1) and 'upper case' not in found.nothing
    lines = repr(found).split('\n')
    assert lines[0] == 'layer neuron      r  by chance  follows' and re.fullmatch(r' +0 +4 +1\.00 +0\.\d\d  upper case', lines[1])
    for text, layer, shown in ((LINES, None, (0, 4)), (LINES, 0, (0, 4)), ('aF(c', None, None)):
        seen = ms.neurons(text, layer)
        if shown is None:                       # too short to tell: the last layer's that varies most
            shown = 1, max(range(6), key=lambda n: np.std(seen.states[1, n].astype(float)))
        assert (seen.layer, seen.neuron) == shown and bool(seen.follows) == (text is LINES)
    assert (ms.neurons('aF(c', neuron=2).layer, ms.neurons('aF(c', neuron=2).neuron) == (1, 2)
    assert "it follows 'upper case', r = 1.00." in ' '.join(repr(ms.neurons(LINES)).split())


def test_where_nothing_stands_out_that_is_said(ms, on):
    on()
    read = inside.read(ms, LINES, states=True)
    read.states = np.random.RandomState(0).uniform(-1, 1, read.states.shape).astype('float32')
    found = look.FoundNeurons(look.Neurons(read, ''))
    assert found == [] and repr(found).startswith('Nothing stands out.\nNo better than by chance: in quotes, in a comment')
    assert ms.findneurons('a\n' * 100).leftout == ['in quotes', 'in a comment', 'depth of brackets', 'indentation', 'upper case']


def test_gates_show_how_often_they_are_saturated(ms, on):
    on()
    gates = ms.gates(LINES)
    assert gates.z.shape == gates.r.shape == (2, 6, len(LINES))
    lines = repr(gates).split('\n')
    assert [line.split()[:2] for line in lines[1:5]] == [['0', 'z'], ['0', 'r'], ['1', 'z'], ['1', 'r']]
    _, _, shut, bars, opened, always, alwaysopen = lines[1].split()
    assert shut == f'{(gates.z[0] < 0.1).mean():.1%}' and opened == f'{(gates.z[0] > 0.9).mean():.1%}'
    assert int(always) >= 1 and len(bars) == 10                             # the planted neuron's z is 0 for ever
    on(encoding='ascii')
    assert repr(gates).isascii()


def test_of_a_long_text_it_is_said_that_it_is_read(ms, on, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    monkeypatch.setattr(inside.reading, 'SHOWN', 40)
    for read in (ms.gates, ms.surprise, ms.neurons):
        file = on()
        read(LINES[:50])
        assert 'Reading' in file.getvalue()
        file = on()
        read(LINES[:30])
        assert 'Reading' not in file.getvalue()


def test_a_long_text_is_shown_in_part_and_all_of_it_when_asked_for(ms, on, monkeypatch):
    monkeypatch.setattr(look, 'SHOWN', 50)
    file = on(NO_COLOR='1')
    seen = ms.surprise(LINES)
    assert f'... and {len(LINES) - 50:,} characters more: .show(50, 100) goes on, .show() prints all' in ' '.join(repr(seen).split())
    assert LINES[60:90] not in repr(seen)
    assert seen._repr_html_().count('<span') == 50
    seen.show()
    assert all(line in file.getvalue() for line in LINES.split('\n')) and '...' not in file.getvalue()
    file = on()
    seen.show(14, 40)
    assert file.getvalue().split('\n')[1].startswith('    """Say ."""')
    assert f'... and {len(LINES) - 40:,} characters more: .show(40, 66) goes on' in file.getvalue()
    file = on()
    seen.show(len(LINES) - 20)
    seen.show(5, 5)
    assert '...' not in file.getvalue().replace('"""', '')
    for start, stop, error in ((-1, None, ValueError), (0, len(LINES) + 1, ValueError), ('a', None, TypeError)):
        with pytest.raises(error):
            seen.show(start, stop)


@pytest.mark.parametrize('variables', [{'NO_COLOR': '1'}, {'TERM': 'xterm-256color'}, {'COLORTERM': 'truecolor'}, {'TERM': 'dumb'}])
def test_a_hostile_text_stays_text_in_the_terminal(ms, on, variables):
    on(**variables)
    with pytest.warns(UserWarning):
        seen = [ms.surprise(HOSTILE), ms.neurons(HOSTILE, 0, 1), ms.neurons(HOSTILE), ms.gates(HOSTILE)]
    for each in seen:
        assert not UNSAFE.search(SGR.sub('', repr(each)))


def test_a_notebook_gets_html_in_which_the_text_is_text(ms):
    with pytest.warns(UserWarning):
        seen = [ms.surprise(HOSTILE), ms.neurons(HOSTILE, 0, 1), ms.gates(HOSTILE), ms.findneurons(HOSTILE * 4)]
    for each in seen:
        whole = each._repr_html_()
        assert not UNSAFE.search(whole) and '\x1b' not in whole
        tags = {tag.lower() for tag in re.findall(r'<\s*/?\s*([^\s>]*)', whole)}
        assert tags <= {'div', 'pre', 'span', 'table', 'thead', 'tbody', 'tr', 'th', 'td'}
        assert set(re.findall(r'<\w+\s+(\w+)=', whole)) <= {'title', 'style'}
    pre = re.search('<pre[^>]*>(.*)</pre>', seen[0]._repr_html_(), re.DOTALL)[1]
    shown = html.unescape(re.sub('<[^>]*>', '', pre)).replace('\u21b5\n', '\u21b5')
    assert shown == ''.join(terminal.glyph(char)[0] for char in HOSTILE)


def test_a_notebook_shows_the_text_in_letters_of_one_width(ms):
    """Jupyter's own rules give a <pre> the letters of sentences."""
    for seen in ms.surprise('if a:\n    b'), ms.neurons('if a:\n    b', 0, 1):
        assert 'font-family:monospace' in re.search('<pre style="([^"]*)"', seen._repr_html_())[1].split(';')


# ---- refused

@pytest.mark.parametrize('arguments, error, said', [
    (('', None, None), ValueError, 'text is empty'), ((None, None, None), TypeError, 'text takes a str, got None'),
    ((b'abc', None, None), TypeError, "text takes a str, got b'abc'"), (('abc', 2, None), ValueError, 'layer must be from 0 to 1, got 2'),
    (('abc', -1, None), ValueError, 'layer must be from 0 to 1, got -1'), (('abc', 0, 6), ValueError, 'neuron must be from 0 to 5, got 6'),
    (('abc', '0', 1), TypeError, "layer takes a whole number, got '0'"),
    (('abc', None, 1.5), TypeError, 'neuron takes a whole number, got 1.5')])
def test_bad_input_is_refused_in_one_sentence_before_anything_is_read(ms, monkeypatch, arguments, error, said):
    def noreading(*args):
        raise AssertionError('read')
    monkeypatch.setattr(inside.reading, 'readcharacters', noreading)
    calls = [lambda: ms.neurons(*arguments)]
    if arguments[1:] == (None, None):
        calls += [lambda: ms.surprise(arguments[0]), lambda: ms.findneurons(arguments[0]), lambda: ms.gates(arguments[0])]
    for call in calls:
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value).startswith(said) and '\n' not in str(raised.value)
    with pytest.raises(ValueError, match='findneurons takes a text of 200 characters at least, got 199'):
        ms.findneurons('a' * 199)


def test_a_page_goes_to_an_html_file_whole_or_not_at_all(ms, tmp_path, monkeypatch, capsys):
    seen, path = ms.surprise('def F1'), tmp_path / 'a page.html'
    for bad, error, said in ((tmp_path / 'a.txt', ValueError, 'path takes a name that ends in .html'), (3, TypeError, 'path takes a path'),
                             (tmp_path / 'no' / 'a.html', FileNotFoundError, 'there is no directory'),
                             ('', ValueError, 'path takes a path')):
        with pytest.raises(error, match=said):
            seen.html(bad)
    (tmp_path / 'd.html').mkdir()
    os.mkfifo(tmp_path / 'pipe.html')
    for name in ('d.html', 'pipe.html'):
        with pytest.raises(OSError, match='no regular file'):
            seen.html(tmp_path / name)
    assert stat.S_ISFIFO(os.stat(tmp_path / 'pipe.html').st_mode)
    path.write_text('before')
    monkeypatch.setattr(page, 'MOSTBYTES', 300)
    with pytest.raises(ValueError, match='a page of these 6 characters, about 0 MB, is too large for browsers: give at most 5 of them'):
        seen.html(path)
    monkeypatch.undo()
    monkeypatch.setattr(page, 'MOSTCHARS', 4)
    with pytest.raises(ValueError, match='give at most 4 of them'):
        seen.html(path)
    monkeypatch.undo()
    monkeypatch.setattr('storage.os.fsync', lambda handle: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match=r"No space left on device: '.*/a page\.html'$"):
        seen.html(path)
    monkeypatch.undo()
    assert path.read_text() == 'before' and sorted(each.name for each in tmp_path.iterdir()) == ['a page.html', 'd.html', 'pipe.html']
    monkeypatch.setattr(report, 'verbose', True)
    seen.html(str(path))
    assert path.read_text(encoding='utf-8').startswith('<!doctype html>') and f"Wrote '{path}', 0.0 MB." in capsys.readouterr().out


def test_a_page_holds_the_text_as_data_that_ends_no_script_and_asks_for_nothing(ms):
    with pytest.warns(UserWarning):
        whole = ms.neurons(HOSTILE * 2)._page()
    assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]', whole)
    data = re.search('<script type="application/json" id="data">(.*?)</script>', whole, re.DOTALL)[1]
    assert data.isascii() and not set('<>&') & set(data) and '{js}' not in whole and '{data}' not in whole.replace(data, '')
    assert ''.join(json.loads(data)['chars'][0][0]) == '<' and whole.count('<script') == whole.count('</script') == 2
    assert not re.search(r'\bon\w+=|https?:|//\w+\.\w|src=|href=', whole.replace(data, ''))
    assert "default-src 'none'" in whole and 'unsafe' not in whole


# ---- in a browser

def opened(path, anchor='', extra=''):
    """The document, as HTML, that a browser makes of a page; extra: a script at its end, for which the page's policy is taken away."""
    if extra:
        whole = path.read_text(encoding='utf-8')
        whole = re.sub('<meta http-equiv[^>]*>', '', whole).replace('</body>', f'<script>{extra}</script></body>')
        path = path.with_name('with extra.html')
        path.write_text(whole, encoding='utf-8')
    done = subprocess.run([BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
                           f'--user-data-dir={path.parent / "profile"}', '--virtual-time-budget=4000', '--dump-dom',
                           path.as_uri() + anchor],
                          capture_output=True, timeout=60)
    return done.stdout.decode()


def lettered(document):
    """What stands in the document's text: a list of (sign, class)."""
    main = re.search('<main[^>]*>(.*)</main>', document, re.DOTALL)[1]
    return [(html.unescape(sign), kind) for kind, sign in re.findall(r'<span(?: class="([^"]*)")?>(.*?)</span>', main, re.DOTALL)]


def level(values, scale):
    return [('' if not round(value * scale) else ('p' if value > 0 else 'm') + str(abs(round(value * scale)))) for value in values]


@inbrowser
def test_a_browser_shows_a_hostile_text_as_text_and_each_characters_numbers(ms, tmp_path):
    path = tmp_path / 'surprise.html'
    with pytest.warns(UserWarning):
        seen = ms.surprise(HOSTILE)
    seen.html(path)
    whole = path.read_text(encoding='utf-8')
    path.write_text(whole.replace('</body>', '<script>document.title = "ran"</script></body>'), encoding='utf-8')      # no such hash
    document = opened(path, '#at=3&theme=dark')
    assert '<title>Surprise</title>' in document and 'data-theme="dark"' in document
    signs = lettered(document)
    assert [sign for sign, _ in signs] == [terminal.glyph(char)[0] for char in HOSTILE]
    main = re.search('<main.*</main>', document, re.DOTALL)[0]
    assert set(re.findall(r'<(\w+)', main)) == {'main', 'div', 'span'} and '<img' not in document and document.count('<script') == 3
    for (_, kind), share, i in zip(signs, seen.shares, range(999)):
        bits = min(int(share / np.log(2)), 8)
        assert kind.split() == [f'a{bits}'] * bool(bits) + ['end'] * (HOSTILE[i] == '\n') + ['at'] * (i == 3)
    footer = html.unescape(re.sub('<[^>]*>', ' ', re.search('<footer.*</footer>', document, re.DOTALL)[0]))
    assert 'U+0026 ampersand, line 1, character 4' in footer and f'surprise {seen.shares[3]:.2f} nats' in footer
    assert all(f' {round(100 * chance)} %' in footer or f' {100 * chance:.1f} %' in footer for _, chance in seen.alternatives(3)[:2])


@inbrowser
def test_keys_buttons_and_choices_work_in_a_browser(ms, tmp_path):
    path, text = tmp_path / 'neurons.html', LINES[:400]
    seen = ms.neurons(text)
    seen.html(path)
    document = opened(path, '#layer=1&neuron=2&theme=light', '''
        const main = byid('text');
        const press = key => main.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
        const told = () => document.querySelector('footer').innerText.split('\\n')[0] + '|' + byid('view').value + '|' + byid('unit').value;
        const log = [];
        main.dispatchEvent(new FocusEvent('focus')); log.push(told());
        press('ArrowRight'); press('ArrowRight'); log.push(told());
        press('ArrowDown'); log.push(told());
        press('ArrowUp'); press('End'); log.push(told());
        press('Home'); press('ArrowLeft'); log.push(told());
        press('.'); log.push(told());
        byid('before').click(); byid('before').click(); log.push(told());
        byid('unit').value = '99'; byid('unit').dispatchEvent(new Event('change')); log.push(told());
        byid('found').value = '0'; byid('found').dispatchEvent(new Event('change')); log.push(told());
        byid('theme').click(); log.push(document.documentElement.dataset.theme);
        main.querySelectorAll('span')[30].dispatchEvent(new MouseEvent('mouseover', { bubbles: true })); log.push(told());
        document.title = JSON.stringify(log);''')
    log = json.loads(html.unescape(re.search('<title>(.*?)</title>', document, re.DOTALL)[1]))
    lines = text.split('\n')

    def at(line, column):
        char = (lines[line] + '\n')[column]
        return f'{terminal.glyph(char)[0].replace(" ", chr(0x2423))} {terminal.name(char)}, line {line + 1}, character {column + 1}'
    here = at(0, 0)
    best = seen.found[0]
    assert log == [f'{here}|1|2', f'{at(0, 2)}|1|2', f'{at(1, 2)}|1|2', f'{at(0, len(lines[0]))}|1|2', f'{here}|1|2', f'{here}|1|3',
                   f'{here}|1|1', f'{here}|1|5', f'{here}|{best.layer}|{best.neuron}', 'dark',
                   f'{at(2, 0)}|{best.layer}|{best.neuron}']
    for (_, kind), value in zip(lettered(document), level(np.rint(seen.states[best.layer, best.neuron].astype(float) * 127) / 127, 9)):
        assert [each for each in kind.split() if each not in ('end', 'at')] == [value] * bool(value)


@inbrowser
def test_gates_can_be_walked_through_in_a_browser(ms, tmp_path):
    gates = ms.gates('def F1')
    gates.html(tmp_path / 'gates.html')
    document = opened(tmp_path / 'gates.html', '#layer=5&neuron=4&at=1')            # layer 1, update gate z
    assert re.search('layer 1, update gate z, unit 4: ' + re.escape(f'{np.rint(gates.z[1, 4, 1] * 255) / 255:.2f}'), document)
    assert 'surprise' not in re.search('<body>(.*)<script type', document, re.DOTALL)[1]
