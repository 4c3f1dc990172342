"""What a person is told: on a terminal, in a pipe, and in the shell where something was asked for that can't be."""

import os
import pty
import re
import select
import subprocess
import sys
import termios

import pytest

import report
from conftest import ROOT


@pytest.fixture
def screen(monkeypatch):
    """screen(columns): standard output is a terminal of so many; gives a function that tells whether a text came there, and no more."""
    opened = []

    def screen(columns):
        leader, follower = pty.openpty()
        termios.tcsetwinsize(leader, (24, columns))
        opened.extend([os.fdopen(leader, 'rb', 0), os.fdopen(follower, 'w', encoding='utf-8')])
        monkeypatch.setattr(sys, 'stdout', opened[-1])

        def shows(expected):
            seen, expected = b'', expected.replace('\n', '\r\n').encode()
            while select.select([leader], [], [], 5 * (len(seen) < len(expected)))[0]:
                seen += os.read(leader, 65536)
            assert seen.decode() == expected.decode()
            return True
        return shows
    monkeypatch.setattr(report, 'verbose', True)
    yield screen
    monkeypatch.undo()
    for file in opened:
        file.close()


def test_a_message_is_broken_at_blanks_where_the_terminal_ends_and_a_text_of_a_model_is_not(screen):
    said, text = 'Round 1/1: validation loss 2.0681 nats/char (2.9836 bits), 2.5066 less than before training', 'to be or not ' * 9
    shows = screen(60)
    report.say(said)
    assert shows('Round 1/1: validation loss 2.0681 nats/char (2.9836 bits),\n  2.5066 less than before training\n')
    report.say(text, isfolded=False)
    assert shows(text + '\n')
    shows = screen(100)
    report.say(said)
    assert shows(said + '\n')


def test_where_no_terminal_is_lines_stay_whole(capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    report.say('word ' * 100 + '.')
    assert capsys.readouterr().out == 'word ' * 100 + '.\n'


def test_what_a_model_writes_commands_no_terminal_and_stands_in_a_file_as_it_is(screen, capsys):
    class Stream(list):
        islist = False

    written = 'a\x1b[33m\u65e5\x07\x9b1m\x7f\tb\n\U0001f468\u200d\U0001f680'
    report.write(Stream([written, written]))
    assert capsys.readouterr().out == 2 * written + '\n'
    shows, seen = screen(80), 'a\u241b[33m\u65e5\u2407\ufffd1m\u2421\tb\n\U0001f468\u200d\U0001f680'
    report.write(Stream([written, written]))
    assert shows(2 * seen + '\n')
    report.say(written, isfolded=False)
    assert shows(seen + '\n')


def test_the_shell_tells_wrong_use_in_its_sentence_alone_and_all_else_with_its_traceback(tmp_path):
    """Each part of what is typed, and what is said to it."""
    again = f"ModelState.initfromsrcfile('README.md', {str(tmp_path / 'model')!r}, init_checkpoint=False, verbose=False)"
    parts = {"ModelState.load('nowhere')": lambda lines: lines == [
                 f"FileNotFoundError: there is no directory '{ROOT}/nowhere': check the name, or make a model in it with "
                 'ModelState.initfromsrcfile()'],
             'HyperParams(layer=2)': lambda lines: len(lines) == 1 and 'did you mean layers?' in lines[0],
             "def mine(name):\n    ModelState.load(name)\n\nmine('nowhere')": lambda lines: (
                 lines[0].startswith('Traceback') and any(line.endswith('in mine') for line in lines)
                 and not any('in load' in line for line in lines) and lines[-1].startswith('FileNotFoundError: ')),
             # In a context manager, so that frames of Python's own contextlib stand between ours.
             f'ms = {again}\n{again}': lambda lines: len(lines) == 1 and 'already holds a model' in lines[0],
             "ms.model.set_params({'x': 1})": lambda lines: len(lines) == 1 and lines[0].startswith("KeyError: no parameter 'x': "),
             '1 / 0': lambda lines: (lines[0].startswith('Traceback') and lines[-1] == 'ZeroDivisionError: division by zero'),
             # A person's own module beside the library's: its lines, as Python keeps them, and what they say when they are run.
             f"import linecache\nmine = {ROOT + '/mine.py'!r}\nlinecache.cache[mine] = 0, None, ['raise ValueError(1)'], mine\n"
             "exec(compile('raise ValueError(1)', mine, 'exec'))": lambda lines: any('mine.py", line 1' in line for line in lines),
             # A defect of the library's shows all of its traceback, and so does wrong use to whoever asks for it.
             "import opening, traceback\nopening.checkpath = None\nModelState.load('nowhere')": lambda lines: (
                 any('in load' in line for line in lines) and lines[-1].startswith('TypeError')),
             # As traceback.print_last() does, but for those of 3.12 and 3.13 that have it wrong.
             "traceback.print_exception(getattr(sys, 'last_exc', None) or sys.last_value)": lambda lines: (
                 any('in load' in line for line in lines))}
    typed = '\n'.join(f'{part}\nprint("---", file=sys.stderr)' for part in parts)
    done = subprocess.run([sys.executable, '-i', 'rn_rnn_char.py'], cwd=ROOT, input=f'import sys\n{typed}\n', capture_output=True,
                          text=True, timeout=60)
    told = re.sub(r'>>> |\.\.\. ', '', done.stderr).split('---\n')
    for (typed, isright), said in zip(parts.items(), told, strict=False):
        assert isright(said.strip().split('\n')), (typed, said)
    assert len(told) == len(parts) + 1
