"""What README.md tells to type works as it stands there, and so do the commands of the other papers.

README.md's blocks are run in order, in a directory of their own: Python in one shell, command lines as processes. What needs a GPU, other
machines or the network, or minutes, is parsed instead: its calls against signatures, its options by the programs' own parsers. A line of a
kind that isn't known here fails.
"""

import ast
import contextlib
import doctest
import importlib.util
import inspect
import io
import itertools
import json
import os
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

import commandline
import demo
import report
import rn_rnn_char
from conftest import ROOT
from rn_rnn_char import HyperParams, ModelState, generatestring, join, tryhyper

pytestmark = pytest.mark.anyengine

ROOT = Path(ROOT)
README = ROOT / 'README.md'
PAPERS = [README, ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks' / 'README.md']

# What makes hours moments, and places in a reader's file system ones in this test's directory; demo.py is shortened by it too.
SHORTER = [
    (r'(state[_-]size[= ])\d+', r'\g<1>16'),
    (r'minutes=\d+', 'minutes=0.01'),
    (r'((?:train|valid)[_-]len[= ])\d+', r'\g<1>5'),
    (r'batchsize=\d{3,}', 'batchsize=64'),
    (r"('learnrate': )\[[^]]*\]", r'\1[0.004]'),
    (r'\b1_000_000\b', '30_000'),
    (r'/path/to/|/shared/', ''),
    (r"'checkpoint-filename'", 'ms.checkpoints()[0].name'),
]

# Blocks that are no code, by their beginnings: what a network wrote, and formulas.
NOCODE = ('AUTOLYCUS:', 'z = hard_sigmoid(')

# Python that needs what isn't here is bound to signatures, not run.
ELSEWHERE = r"\bdevices?=(?!'cpu')|\bjoin\("

# What these print, a network wrote: it has no shape.
WRITES = ('generatestring(', 'print(')


# --- Reading a paper --------------------------------------------------------------------------------------------------

class Line(NamedTuple):
    """A statement or command: its place, its text, 'python', 'shell' or '' for neither, and what it printed, '' where that isn't told."""

    where: str
    text: str
    kind: str
    want: str = ''


def blocks(paper):
    """(number of the first line, text) of each indented block."""
    lines, start = paper.read_text(encoding='utf-8').splitlines(), None
    assert not any(line.startswith('```') for line in lines), 'blocks of code are indented, not fenced'
    for i, line in enumerate([*lines, 'end']):
        if start is None and line.startswith('    ') and not lines[i - 1].strip():
            start = i
        elif start is not None and line.strip() and not line.startswith('    '):
            yield start + 1, '\n'.join(each[4:] for each in lines[start:i]).rstrip()
            start = None


def statements(paper):
    """The Lines of all blocks; those of NOCODE are left out."""
    for first, block in blocks(paper):
        if not block.startswith(NOCODE):
            yield from _statements(block, f'{paper.relative_to(ROOT)}:', first)


def _statements(block, name, first):
    for part in re.finditer(r'(?:.+\n?)+', block):          # between empty lines: a session, a shell's commands, or Python
        number, lines = first + block.count('\n', 0, part.start()), part[0].rstrip()
        if lines.startswith('>>> '):
            for example in doctest.DocTestParser().get_examples(lines):
                yield Line(f'{name}{number + example.lineno}', example.source.rstrip(), 'python', example.want)
            continue
        if all(map(isshell, lines.replace('\\\n', '').splitlines())):
            lines = [(number, lines)] if '\\\n' in lines else enumerate(lines.splitlines(), number)
            yield from (Line(f'{name}{i}', text.replace('\\\n', ''), 'shell') for i, text in lines)
            continue
        try:
            nodes = ast.parse(lines).body
        except SyntaxError:
            yield Line(f'{name}{number}', lines, '')
            continue
        for node in nodes:
            yield Line(f'{name}{number + node.lineno - 1}', ast.get_source_segment(lines, node), 'python')


def isshell(line):
    return bool(re.match(r'(?:\w+=\S+ +)*(?:make|(?:\S*/)?(?:python3?|pip|jupyter)) ', line))


def spans(paper):
    """(place, text) of each `span` of code within sentences; one that goes on in the next line is joined."""
    text = re.sub(r'^    .*$', '', paper.read_text(encoding='utf-8'), flags=re.MULTILINE)
    for found in re.finditer(r'`([^`]+)`', text):
        yield f'{paper.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}', ' '.join(found[1].split())


# --- Python -----------------------------------------------------------------------------------------------------------

def shape(text):
    """What a printed text has in common with another of its kind: numbers, quoted words and marks under a text replaced, what stood before
    a character left out, and of lines that are alike then, a table's, one kept."""
    lines = ['0' if re.fullmatch(r'[\d ]+', line) else line for line in text.splitlines()]
    text = re.sub(r""" behind "[^"\n]*"|'''|'(?:[^'\\\n]|\\.)*'|"[^"\n]*\"""", lambda found: '' if found[0].startswith(' ') else "''",
                  '\n'.join(lines))
    text = re.sub(r'(?:under |over )?-?\d+(?:[.,:]\d+)*', '0', text)
    return '\n'.join(line for line, _ in itertools.groupby(re.sub(r' +', ' ', text).strip().splitlines()))


def likely(want, got):
    """Whether what was printed has the shape of what README.md shows; there `...` stands for anything."""
    pattern = '.*'.join(map(re.escape, re.split(r'\n? ?\.\.\.', shape(want))))
    return re.fullmatch(pattern, shape(got), re.DOTALL) is not None


def called(call, names):
    """The function of an ast.Call, of ModelState where it is a model's method; None if it is none of this library's."""
    if isinstance(call.func, ast.Name):
        return names.get(call.func.id)
    if isinstance(call.func.value, ast.Name) and call.func.value.id in ('ms', 'ModelState'):
        return getattr(ModelState, call.func.attr)
    return None


def bind(text, names):
    """Raise TypeError where a call of the library in `text` has arguments that it doesn't take."""
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        if (function := called(call, names)) is not None:
            signature = inspect.signature(function)
            given = [None] * len(call.args) + [None] * (next(iter(signature.parameters), '') == 'self')
            signature.bind(*given, **{keyword.arg: None for keyword in call.keywords})


def python(line, names):
    """Run a statement as the shell does, and see that it prints what it should."""
    if re.search(ELSEWHERE, line.text):
        bind(line.text, names)
        return
    new = re.search(r"\.initfromsrcfile\([^,]*, '(\w+)'", line.text)
    if new and Path(new[1]).exists():           # the example above has a model there
        shutil.rmtree(new[1])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for node in ast.parse(line.text).body:
            exec(compile(ast.Interactive([node]), line.where, 'single'), names)
    if line.want:
        isright = out.getvalue().strip() if line.text.startswith(WRITES) else likely(line.want, out.getvalue())
        assert isright, f'this was printed:\n{out.getvalue()}'


# --- A shell's lines --------------------------------------------------------------------------------------------------

def check(text):
    """Fail where a command can't be run as it stands there: targets, files and the library's options are looked up. Returns its words."""
    words = shlex.split(text, comments=True)
    while '=' in words[0]:                      # variables of the environment
        words.pop(0)
    program, *rest = words
    files = []
    if program == 'make':
        makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
        for target in rest:
            assert re.search(rf'^{re.escape(target)}:', makefile, re.MULTILINE), f'the Makefile has no {target}'
    elif rest[0] == 'rn_rnn_char.py':
        with contextlib.suppress(SystemExit) if '-h' in rest else contextlib.nullcontext():
            commandline.parse(rest[1:rest.index('>')] if '>' in rest else rest[1:])
    elif rest[:2] == ['-i', 'rn_rnn_char.py']:
        assert not rest[2:]
    elif program.endswith('jupyter'):
        files = rest[1:]
    elif 'pip' in words and 'install' in rest:
        files = [rest[i + 1] for i, word in enumerate(rest) if word == '-r']
    elif rest[0] == '-m' and rest[1] in ('pytest', 'ruff', 'nbconvert'):
        files = [word for word in rest if word.endswith(('.py', '.ipynb'))]
    else:
        assert rest[0].startswith('benchmarks/'), 'no test knows what this is'
        files = rest[:1]                        # its options: test_options_of_benchmarks_are_theirs
    for file in files:
        assert (ROOT / file).is_file(), f'there is no {file}'
    return words


def shell(text):
    """Check a command, and run what can be: `make demo`, and the library's command lines where they need nothing that isn't here."""
    words = check(text)
    if words == ['make', 'demo']:
        Path('demo.py').write_text(shortened((ROOT / 'demo.py').read_text(encoding='utf-8')), encoding='utf-8')
        execute('python3 demo.py')
    elif 'rn_rnn_char.py' in words[1:3] and not {'--device', '--join'} & set(words):
        execute(text)
        for file in re.findall(r'> *(\S+)', text):
            assert Path(file).read_text(encoding='utf-8').strip(), f'{file} is empty'


def execute(text):
    """Run a command line with this Python, and fail where it does."""
    text = re.sub(r'\brn_rnn_char\.py', shlex.quote(str(ROOT / 'rn_rnn_char.py')), text)
    text = re.sub(r'^\S*python3?\b', shlex.quote(sys.executable), text)
    done = subprocess.run(text, shell=True, stdin=subprocess.DEVNULL, capture_output=True, encoding='utf-8', timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8'})
    assert done.returncode == 0, done.stderr


def shortened(text):
    for pattern, instead in SHORTER:
        text = re.sub(pattern, instead, text)
    return text


# --- The tests --------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(importlib.util.find_spec('matplotlib') is None, reason='matplotlib is not installed (requirements-test.txt)')
def test_every_line_of_the_readme_works_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setattr(report, 'verbose', True)
    text = demo.librarysources()
    for i, name in enumerate(['file.txt', 'book.txt', 'letters.txt', 'other.txt', 'part.txt']):
        Path(name).write_text(text[i * 10_000:][:20_000 if i < 2 else 7_000], encoding='utf-8')
    names = {'text': text[:2_000], **{name: getattr(rn_rnn_char, name) for name in rn_rnn_char.__all__}}
    failed, count = [], 0
    for line in statements(README):
        line, count = line._replace(text=shortened(line.text)), count + 1
        try:
            assert line.kind, 'this is neither Python nor a command that is known: mend it, or name it in NOCODE'
            python(line, names) if line.kind == 'python' else shell(line.text)
        except (Exception, SystemExit) as error:      # argparse's
            failed.append(f'{line.where}: {line.text}\n{"".join(traceback.format_exception_only(error))}')
    assert not failed, '\n'.join(failed)
    assert count > 20


@pytest.mark.parametrize('paper', PAPERS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_other_papers_is_one(paper):
    lines = [line for line in statements(paper) if line.kind == 'shell']
    assert lines
    for line in lines:
        check(line.text)
    for line in statements(paper):              # Python and sentences beside them, but no command of an unknown kind among known ones
        assert line.kind or not any(map(isshell, line.text.splitlines())), line


@pytest.mark.parametrize('paper', PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_sentences_name_is_there(paper):
    """Calls, methods, settings, commands and variables of the environment."""
    names = {name: getattr(rn_rnn_char, name) for name in rn_rnn_char.__all__}
    functions = (*(getattr(ModelState, name) for name in ('initfromsrcfile', 'trainmodel', 'sample', 'restore', 'neurons', 'plot')),
                 HyperParams, tryhyper, join, generatestring)
    parameters = {name for function in functions for name in inspect.signature(function).parameters}
    variables = {name for path in ROOT.glob('*.py') for name in re.findall(r'RN_GRU_\w+', path.read_text(encoding='utf-8'))}
    wrong = []
    for where, text in spans(paper):
        try:
            if found := re.fullmatch(r'help\(([\w.]+)\)', text):
                assert pydoc.locate(found[1]) or pydoc.locate(f'rn_rnn_char.{found[1]}')
            elif re.match(r'(?:ms|ModelState)\.\w+\(|(?:generatestring|tryhyper|join)\(', text):
                bind(text, names)
            elif found := re.match(r'ms\.(\w+)', text):
                assert hasattr(ModelState, found[1])
            elif re.fullmatch(r'[a-z]\w+=[^=\s]+(?:, \w+=[^=\s]+)*', text):
                assert set(re.findall(r'(\w+)=', text)) <= parameters
            elif re.match(r'(?:make|pip|python3) \S', text):
                check(text)
            assert set(re.findall(r'RN_GRU_\w+', text)) <= variables
        except (TypeError, AttributeError, AssertionError, SystemExit) as error:
            wrong.append(f'{where}: `{text}`: {error}')
    assert not wrong, '\n'.join(wrong)


# A program for a process of its own: given [script, words, options] in JSON, it prints what the scripts' parsers have to say against them.
PARSE = '''
import argparse, json, runpy, sys
from unittest import mock

class Parsed(BaseException):
    pass

def parsing(plain):
    def parse(parser):
        plain(parser)
        known.update(parser._option_string_actions)
        raise Parsed
    return parse

for name in 'parse_args', 'parse_intermixed_args':
    setattr(argparse.ArgumentParser, name, parsing(getattr(argparse.ArgumentParser, name)))
try:
    import torch
except ImportError:
    sys.modules['torch'] = mock.MagicMock()
for script, words, options in json.loads(sys.argv[1]):
    known, sys.argv, sys.path[0] = {}, [script, *words], script.rpartition('/')[0]
    try:
        runpy.run_path(script, run_name='__main__')
    except Parsed:
        for option in options:
            if option not in known:
                print(script, 'has no option', option)
    except SystemExit:
        print(script, 'refuses', *words)
'''


def test_options_of_benchmarks_are_theirs():
    """Of each command line, and in the comments behind it and within sentences: `--option`, and `--option values`."""
    lines = [line.text for paper in PAPERS for line in statements(paper) if ' benchmarks/' in line.text]
    lines += [f'python {text}' for paper in PAPERS for _, text in spans(paper) if re.match(r'benchmarks/\w+\.py', text)]
    asked = []
    for line in lines:
        line, _, comment = line.partition('#')
        script, *words = shlex.split(line[line.index('benchmarks/'):])
        asked.append((str(ROOT / script), words, re.findall(r'--[\w-]+', comment)))
        asked += [(str(ROOT / script), words + more.split(), []) for more in re.findall(r'(--[\w-]+(?: [\w.-]+)+) *(?:[;,]|$)', comment)]
    bare = [each for each in asked if 'argparse' not in Path(each[0]).read_text(encoding='utf-8')]
    assert not any(words for _, words, _ in bare)
    asked = [each for each in asked if each not in bare]
    assert len({script for script, *_ in asked}) > 5
    done = subprocess.run([sys.executable, '-c', PARSE, json.dumps(asked)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
