"""The command line of rn_rnn_char.py: train, sample, score, surprise, neurons and info, for people who don't want the shell.

Options, their types, defaults and help are those of the library's own functions and of HyperParams: signatures, annotations and the
tables in the docstrings. The library checks the values, and says in its own sentences what is wrong.
What was asked for goes to standard output, all messages to standard error. Exit codes: 0; 1: it can't be done; 2: wrong usage;
130: Ctrl-C.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import typing
import warnings
from collections.abc import Callable

import cluster
import report
from checkpoint import WorkDir
from encode import readtext
from errors import RNGRUError, WorkDirError, checkpath, nearest, sentence, short
from hyperparams import checkgiven
from look import checkhtml
from model import ModelState
from options import Option, addoption, hyperparameters, parameters
from page import checksize

PROGRAM = 'rn_rnn_char.py'
WRONGUSE = (RNGRUError, OSError, ValueError, TypeError, LookupError, MemoryError, FloatingPointError, ImportError)


# --- The options, by what they are for ---------------------------------------------------------------------------------

NEW = parameters(ModelState.initfromsrcfile)
HYPER = hyperparameters()
TRAINING = parameters(ModelState.trainmodel)
TOGETHER = parameters(cluster.join, address='join')
GENERATION = parameters(ModelState.sample)
RESTORING = parameters(ModelState.restore, name='checkpoint')
NEURONS = parameters(ModelState.neurons)
HTML = [Option('html', (str,), None, 'write a page for a browser there, a name that ends in .html, instead of colours to the terminal')]
ENCODING = [option for option in NEW if option.name == 'encoding']


def _pick(given, options):
    """Of the options given, those of `options`, as keyword arguments."""
    return {option.name: given[option.flag or option.name] for option in options if (option.flag or option.name) in given}


# --- The commands -----------------------------------------------------------------------------------------------------

def _train(paths, given, refuse):
    *file, directory = paths
    if joined := _pick(given, TOGETHER):
        if len(joined) < len(TOGETHER):
            refuse('--join, --processes and --process belong together: give all three of them, or none')
        cluster.join(**joined)
    if file:
        for name, what in ('checkpoint', 'is one'), ('resume', 'finishes a run'):
            if given.get(name):
                refuse(f'--{name} {what} of a model that is there, and FILE starts a new one: leave one of them out')
        try:
            ms = ModelState.initfromsrcfile(*paths, **_pick(given, NEW + HYPER))
        except WorkDirError:
            with contextlib.suppress(RNGRUError, OSError):
                WorkDir(checkpath('DIR', directory)).statefile()
                report.say(f"'{directory}' holds a model: without FILE, this goes on with it.")
            raise
    else:
        if new := [f'--{option.dashed}' for option in NEW if option.name in given]:
            refuse(f'{", ".join(new)}: for a new model only, so give its text FILE before DIR, or leave '
                   f'{"it" if len(new) == 1 else "them"} out')
        if os.path.isfile(directory):
            refuse(f"'{directory}' is a file: give a directory DIR for its model as well")
        ms = ModelState.load(directory)
        if 'checkpoint' in given:
            ms.restore(given['checkpoint'])
        hyper = _pick(given, HYPER)
        if hyper:
            ms.model                            # first: should an older checkpoint have to do, its hyperparameters come with it
            checkgiven({'optimizer': ms.hyper.optimizer, **hyper})
        try:
            for name, value in hyper.items():
                setattr(ms.hyper, name, value)
        except AttributeError as error:         # of what shapes the network
            raise ValueError(str(error)) from error
    with _ctrlc() as came:
        try:
            ms.trainmodel(**_pick(given, TRAINING))
        except WRONGUSE:
            if file:
                report.say(f"The new model is in '{directory}': without FILE, this goes on with it.")
            raise
        return 130 if came() else 0


def _sample(paths, given, refuse):
    ms = _load(paths[0], given)
    return 0 if report.write(ms.stream(**_pick(given, GENERATION))) else 130


def _score(paths, given, refuse):
    ms, text = _modelandtext(paths, given)
    print(ms.score(text))
    return 0


def _surprise(paths, given, refuse):
    ms, text = _modelandtext(paths, given)
    _checkpage(given, text, 0)
    return _looked(ms.surprise(text), given)


def _neurons(paths, given, refuse):
    ms, text = _modelandtext(paths, given)
    _checkpage(given, text, ms.hyper.layers * ms.hyper.state_size)
    return _looked(ms.neurons(text, **_pick(given, NEURONS)), given)


def _checkpage(given, text, units):
    """Refuse a page that can't be written before a long text is read for it."""
    if 'html' in given:
        checkhtml(given['html'])
        checksize(len(text), units)


def _looked(seen, given):
    """Show it on standard output, or write its page."""
    seen.html(given['html']) if 'html' in given else seen.show()
    return 0


def _modelandtext(paths, given):
    """The model in the first path, the text in the second, or on standard input."""
    if paths[1] == '-' and sys.stdin is None:   # closed by `<&-`
        raise OSError('standard input is closed: give a FILE, or a text to read from it')
    ms = _load(paths[0], given)
    text, numundecodable = readtext(sys.stdin.buffer if paths[1] == '-' else checkpath('FILE', paths[1]), **_pick(given, ENCODING))
    if numundecodable:
        report.say(f'{report.counted(numundecodable, "undecodable place")} in the text, read as U+FFFD: another --encoding may suit it '
                   'better.')
    return ms, text


def _info(paths, given, refuse):
    ms = ModelState.load(paths[0])
    print(f'{ms.info()!r}\n\n{ms.checkpoints()}')
    return 0


def _load(directory, given):
    """The model in a directory, from the checkpoint and with the threads asked for."""
    ms = ModelState.load(directory)
    if restoring := _pick(given, RESTORING):
        ms.restore(**restoring)
    return ms


@contextlib.contextmanager
def _ctrlc():
    """Gives a function that tells, within the block, whether a Ctrl-C came in it: trainmodel() handles one, and ends as usual behind it."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)

        def came():
            with contextlib.suppress(BlockingIOError):
                return signal.SIGINT in reader.recv(1 << 16)
            return False
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield came
        finally:
            signal.set_wakeup_fd(before)


class Command(typing.NamedTuple):
    """A command: what it does in a line, its paths, groups of options {title: Options}, a description, examples, the function."""

    purpose: str
    paths: tuple
    groups: dict
    description: str
    examples: tuple
    run: typing.Callable

    @property
    def usage(self) -> str:
        return ' '.join(self.paths)

    def flags(self) -> list[str]:
        """Every long option of the command."""
        options = [option for group in self.groups.values() for option in group]
        return [f'--{option.dashed}' for option in options] + [f'--no-{option.dashed}' for option in options if bool in option.types] + [
            '--quiet', '--help']


COMMANDS = {
    'train': Command(
        'start a model of a text and train it, or train one on', ('[FILE]', 'DIR'),
        {'a new model (with FILE)': NEW, 'hyperparameters': HYPER, 'training': TRAINING, 'several processes': TOGETHER,
         'going on (without FILE; info lists the checkpoints)': [each for each in RESTORING if each.name != 'precision']},
        'Start a model of the text FILE, keep it in the directory DIR, and train it.\n'
        'Without FILE: train the model in DIR on from its last checkpoint. Then\n'
        'hyperparameters that are given take the place of those it had; what shapes\n'
        'the network stays. --resume finishes a run that was broken off, as it was begun.\n\n'
        'Ctrl-C stops after the step in hand with a checkpoint written (exit code 130);\n'
        'a second one stops at once. Everything said goes to standard error.',
        ('train book.txt book --layers 2 --state-size 256 \\\n      --num-rounds 3 --valid-len 50',
         'train book --num-rounds 2 --learnrate 0.0003',
         'train book --resume', 'train book --checkpoint best --learnrate 0.0001 -q'), _train),
    'sample': Command(
        'let the model in DIR write', ('DIR',), {'generation': GENERATION, 'model (info lists the checkpoints)': RESTORING},
        'Let the model in the directory DIR write: the text goes to standard output\n'
        'while it is being written. Ctrl-C ends it (exit code 130).\n\n'
        "In bash a line end in an option is written $'...': --until $'\\n\\n' ends behind\n"
        'an empty line.',
        ('sample book --numchars 1000 --temp 0.7 > page.txt',
         "sample book --prime 'KING RICHARD:' --until $'\\n\\n'",
         'sample book --n 3 --checkpoint best -q | less'), _sample),
    'score': Command(
        'how well the model in DIR foretells the text FILE', ('DIR', 'FILE'),
        {'text': ENCODING, 'model (info lists the checkpoints)': RESTORING},
        'How well the model in the directory DIR foretells the text in FILE, read as the\n'
        'text that it learnt was read; -: standard input. One line, such as\n\n'
        '  1.4182 nats/char (2.0460 bits) over 54,321 characters\n\n'
        'The loss: mean negative log-likelihood per character, less is better.',
        ('score book other.txt', 'score book - < other.txt'), _score),
    'surprise': Command(
        'the text FILE in the colours of its surprise', ('DIR', 'FILE'),
        {'page': HTML, 'text': ENCODING, 'model (info lists the checkpoints)': RESTORING},
        'How surprising each character of the text in FILE is to the model in the\n'
        'directory DIR: in colours on a terminal that has some (NO_COLOR=1: none), or as\n'
        'a page for a browser; -: standard input. Below, what was likelier where it was\n'
        'surprised most.',
        ('surprise book other.txt', 'surprise book other.txt --html other.html'), _surprise),
    'neurons': Command(
        'the text FILE in the colours of a neuron', ('DIR', 'FILE'),
        {'neuron': NEURONS, 'page': HTML, 'text': ENCODING, 'model (info lists the checkpoints)': RESTORING},
        'The text in FILE in the colours of a neuron of the model in the directory DIR,\n'
        'blue where its state is negative, orange where it is positive. In the page that\n'
        '--html writes every neuron can be chosen, and those that follow something are\n'
        'listed; it takes a byte and a third for each neuron and character.',
        ('neurons book part.txt --html part.html', 'neurons book part.txt --layer 1 --neuron 9'), _neurons),
    'info': Command(
        'what is in DIR, whether it is whole, and its checkpoints', ('DIR',), {},
        'What is in the directory DIR of a model, whether every file is whole, and its\n'
        'checkpoints, oldest first. Reads every file, about a second a GB.',
        ('info book',), _info),
}


# --- Reading the command line -----------------------------------------------------------------------------------------

def _formatter(prog):
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=80)


def _examples(lines):
    return 'examples:\n' + '\n'.join(f'  python3 {PROGRAM} {line}' for line in lines)


def commandparser(name: str) -> argparse.ArgumentParser:
    """The ArgumentParser of a command's options; its paths are those words that are left over, in any order with the options."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(f'{PROGRAM} {name}', f'python3 {PROGRAM} {name} {command.usage} [options]', command.description,
                                     _examples(command.examples), formatter_class=_formatter, allow_abbrev=False, add_help=False)
    seen = set()
    for title, options in command.groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            if option.dashed not in seen:       # threads, say, is a parameter of two functions
                seen.add(option.dashed)
                addoption(group, option)
    group = parser.add_argument_group('other')
    group.add_argument('-q', '--quiet', action='store_true', help='say nothing but warnings and errors')
    group.add_argument('-h', '--help', action='help', help='show this and exit')
    return parser


def mainparser() -> argparse.ArgumentParser:
    """The ArgumentParser that tells of all commands."""
    return argparse.ArgumentParser(
        PROGRAM, f'python3 {PROGRAM} COMMAND [paths and options]',
        'Train multi-layer GRU networks on a text, character by character, and let them\nwrite.\n\ncommands:\n'
        + '\n'.join(f'  {f"{name} {command.usage}":19} {command.purpose}' for name, command in COMMANDS.items())
        + f'\n\n`python3 {PROGRAM} COMMAND -h` lists the options of a command.',
        _examples([command.examples[0] for command in COMMANDS.values()])
        + f'\n\n`python3 -i {PROGRAM}` is the interactive shell, with all of this and\nmore at hand as a library.',
        formatter_class=_formatter, add_help=False)


def parse(argv: list[str]) -> tuple[Command, list[str], dict, Callable]:
    """(Command, paths, options given by name, a function that refuses with a sentence) of the words of a command line.

    Raises SystemExit, as argparse does, where they are wrong or ask for help.
    """
    name = argv[0] if argv else '--help'
    if name not in COMMANDS:
        parser = mainparser()
        if name in ('-h', '--help'):
            parser.print_help()
            parser.exit()
        parser.error(f'no command is called {short(name)}{nearest(name, COMMANDS) or ":"} There are {", ".join(COMMANDS)}')
    command, parser = COMMANDS[name], commandparser(name)
    flags, words = command.flags(), argv[1:]
    end = words.index('--') if '--' in words else len(words)
    for i, word in enumerate(words[:end]):
        flag, equals, value = word.partition('=')
        if flag.startswith('--') and ' ' not in flag:
            flag = flag.replace('_', '-')
            if flag not in flags:
                near = nearest(flag[2:], [each[2:] for each in flags]).replace('mean ', 'mean --')
                parser.error(f'no option is called {short(flag)}{near or f": {PROGRAM} {name} -h lists them"}')
            words[i] = flag + equals + value
    given, paths = parser.parse_known_args(words[:end])
    for word in paths:
        if word.startswith('-') and word != '-':
            parser.error(f'no option is called {short(word)}: {PROGRAM} {name} -h lists them')
    paths += words[end + 1:]
    least, most = sum(not path.startswith('[') for path in command.paths), len(command.paths)
    if not least <= len(paths) <= most:
        parser.error(f'{name} takes {command.usage}, got {" ".join(map(short, paths)) or "no path"}')
    return command, paths, vars(given), parser.error


def _complain(text):
    report.alarm(f'{PROGRAM.removesuffix(".py")}: {text}')


def run(argv: list[str]) -> int:
    """Do what the words of a command line say; the exit code."""
    try:
        try:
            command, paths, given, refuse = parse(argv)
            with report.quiet(given.pop('quiet')):
                code = command.run(paths, given, refuse)
        except SystemExit as end:               # argparse's
            code = end.code
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except WRONGUSE as error:
        _complain(sentence(error))
        return 1


def main(argv: list[str]) -> int:
    """`run` as a process of its own: what a shell expects of output, pipes and warnings; the exit code."""
    for name in 'stdout', 'stderr':
        if getattr(sys, name) is None:          # closed by `>&-`
            setattr(sys, name, open(os.devnull, 'w'))       # noqa: SIM115 (open to the end)
    if hasattr(signal, 'SIGPIPE') and argv[:1] != ['train']:        # `sample book | head` ends quietly; a training goes on unheard
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    report.messages = 'stderr'
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *where: (
        f'{PROGRAM.removesuffix(".py")}: {message}\n' if category is UserWarning else plain(message, category, *where))
    try:
        code = run(argv)
        cluster.leave(code)
        return code
    finally:
        for file in sys.stdout, sys.stderr:
            try:
                file.flush()
            except OSError:                     # the disk is full or nobody listens: no matter for Python's last breath
                os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
