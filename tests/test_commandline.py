"""The command line, as its user runs it, and its options, which are the library's."""

import dataclasses
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import commandline
import page
import reading
import report
from commandline import COMMANDS, commandparser, mainparser, parse
from errors import CheckpointError
from rn_rnn_char import HyperParams, ModelState, join

pytestmark = pytest.mark.anyengine

ROOT = Path(__file__).parent.parent
TEXT = ''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(40))
NEW = ['--seq-len', '10', '--layers', '2', '--state_size', '8', '--seed', '1', '--learnrate', '0.01']
TRAINING = ['--batchsize', '8', '--train-len', '5', '--valid-len', '2', '--print-every', '4']


def start(*words, **kwargs):
    """The command line as a process of its own, SIGINT and SIGPIPE as a shell leaves them."""
    def asashell():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    kwargs = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'encoding': 'utf-8', **kwargs}
    return subprocess.Popen([sys.executable, str(ROOT / 'rn_rnn_char.py'), *map(str, words)], preexec_fn=asashell,
                            env={**os.environ, 'PYTHONIOENCODING': 'utf-8', 'PYTHONUNBUFFERED': ''}, **kwargs)


def done(*words, given=None, **kwargs):
    """(exit code, standard output, standard error) of a command line that ends by itself; given: bytes of standard input."""
    process = start(*words, stdin=subprocess.PIPE, encoding=None, **kwargs)
    out, err = process.communicate(given, timeout=60)
    return process.returncode, (out or b'').decode(), err.decode()


@pytest.fixture(scope='module')
def book(tmp_path_factory):
    """Path of a directory with text.txt and the model `work`, which the command line made of it, and what it said."""
    path = tmp_path_factory.mktemp('book')
    (path / 'text.txt').write_text(TEXT)
    return path, done('train', *NEW, path / 'text.txt', *TRAINING, path / 'work')


@pytest.fixture
def ran(monkeypatch, capsys):
    """A function that runs a command line in this process, and gives (exit code, standard output, standard error)."""
    monkeypatch.setattr(report, 'verbose', True)
    monkeypatch.setattr(report, 'messages', 'stderr')

    def run(*words):
        capsys.readouterr()
        return commandline.run([str(word) for word in words]), *capsys.readouterr()
    return run


# --- Options are the library's parameters -----------------------------------------------------------------------------

def offered():
    """(command, option, annotation, default) of everything that the library takes."""
    sources = {'train': [ModelState.initfromsrcfile, ModelState.trainmodel, ModelState.restore, join],
               'sample': [ModelState.sample, ModelState.restore], 'score': [ModelState.restore], 'surprise': [ModelState.restore],
               'neurons': [ModelState.neurons, ModelState.restore]}
    for command, functions in sources.items():
        for function in functions:
            for name, parameter in inspect.signature(function).parameters.items():
                ishyper = command == 'train' and name == 'precision'        # of training, not of restore's generation
                if name not in ('self', 'srcfile', 'workdir', 'text', 'hyper', 'state', 'verbose') and not ishyper:
                    option = {(ModelState.restore, 'name'): 'checkpoint', (join, 'address'): 'join'}.get((function, name), name)
                    yield pytest.param(command, option, parameter.annotation, parameter.default, id=f'{command}-{function.__name__}-{name}')
    for field in dataclasses.fields(HyperParams):
        yield pytest.param('train', field.name, field.type, field.default, id=f'train-hyper-{field.name}')
    for command in ('score', 'surprise', 'neurons'):
        yield pytest.param(command, 'encoding', str | None, None, id=f'{command}-encoding')
    for command in ('surprise', 'neurons'):
        yield pytest.param(command, 'html', str | None, None, id=f'{command}-html')


@pytest.mark.anyengine(False)
@pytest.mark.parametrize('command, name, annotation, default', list(offered()))
def test_every_parameter_of_the_library_is_an_option_with_its_default_and_a_help_line(command, name, annotation, default):
    assert annotation is not inspect.Parameter.empty, f'{name} needs an annotation: its option has its type from there'
    flag = '--' + name.replace('_', '-')
    helped = re.search(rf'\n  {flag}\b(?!-)(.*?)(?=\n  -|\n\n)', commandparser(command).format_help(), re.DOTALL)
    text = ' '.join(helped[1].split())
    assert len(text) > 20 and not re.search(r'\b(None|True|False)\b', text)
    shown = {True: 'yes', False: 'no'}[default] if isinstance(default, bool) else str(default)
    assert (f'(default {shown})' in text) if default not in (None, '', inspect.Parameter.empty) else 'default ' not in text


def given(*words):
    return parse([*words])[2]


def test_what_is_not_given_is_left_to_the_library_and_what_is_has_its_type():
    assert given('train', 'a', 'b') == given('sample', 'a') == given('score', 'a', 'b') == given('info', 'a') == {'quiet': False}
    assert given('train', 'a', 'b', '--seq-len', '50', '--learnrate', '1e-3', '--keep', '3', '--no-init-checkpoint', '--encoding', '8',
                 '--save_every', '7', '--clear_state', '--layers=2', '-q', '--checkpoint', 'best') == {
        'seq_len': 50, 'learnrate': 0.001, 'keep': 3, 'init_checkpoint': False, 'encoding': '8', 'save_every': 7.0, 'clear_state': True,
        'layers': 2, 'quiet': True, 'checkpoint': 'best'}
    assert given('train', 'a', 'b', '--layernorm')['layernorm'] is True and given('train', 'a', 'b', '--no-layernorm')['layernorm'] is False
    values = given('sample', 'a', '--n', '3', '--prime=--x y', '--until', '\n\n', '--top_p', '1', '--seed', '-1')
    assert values == {'n': 3, 'prime': '--x y', 'until': '\n\n', 'top_p': 1.0, 'seed': -1, 'quiet': False}
    assert type(values['top_p']) is float and type(values['n']) is int


def test_paths_and_options_come_in_any_order():
    for words in (['--seed', '1', 'a', 'b'], ['a', '--seed', '1', 'b'], ['a', 'b', '--seed', '1'], ['--seed=1', '--', 'a', 'b']):
        assert parse(['train', *words])[1:3] == (['a', 'b'], {'seed': 1, 'quiet': False})
    assert parse(['score', '-q', '--', '-dir', '-'])[1] == ['-dir', '-']
    assert parse(['score', 'a', '-'])[1] == ['a', '-']


def test_without_docstrings_the_options_stand_without_help():
    """As under `python3 -OO`."""
    def call(workdir, numchars: int = 100):
        pass
    (option,) = commandline.parameters(call)
    assert (option.name, option.types, option.default, option.help) == ('numchars', (int,), 100, '')


def test_new_parameters_become_options_by_themselves(monkeypatch):
    def function(self, rate: float | None = None, schedule: str = 'flat', *, half_way: bool = False, depth=2, verbose: bool = True, **more):
        """Do something.

        rate: of what,
              in lines
        schedule  how it falls; None: it doesn't
        half_way  stop 50 % of the way

        depth  of the tree, is no table's line here but is read as one
        """

    @dataclasses.dataclass
    class Others:
        optimiser: str = dataclasses.field(default='rmsprop', metadata={'comment': 'what learns', 'choices': ('rmsprop', 'adam')})
        warmup: float | None = dataclasses.field(default=None, metadata={'comment': 'steps'})
    monkeypatch.setattr('options.HyperParams', Others)
    options = commandline.parameters(function) + commandline.hyperparameters()
    monkeypatch.setitem(COMMANDS, 'train', COMMANDS['train']._replace(groups={'all': options}))
    text = ' '.join(commandparser('train').format_help().split())
    for part in ('--rate X of what, in lines --', '--schedule SCHEDULE how it falls; without it: it doesn\'t (default flat)',
                 '--half-way, --no-half-way stop 50 % of the way (default no)', '--depth N of the tree',
                 '--optimiser {rmsprop,adam} what learns (default rmsprop)', '--warmup X steps'):
        assert part in text
    assert given('train', 'a', '--rate', '1', '--half_way', '--depth', '3', '--optimiser', 'adm', '--warmup', '2.5') == {
        'rate': 1.0, 'half_way': True, 'depth': 3, 'optimiser': 'adm', 'warmup': 2.5, 'quiet': False}       # the library knows better


def helps():
    return [mainparser().format_help(), *(commandparser(name).format_help() for name in COMMANDS)]


def test_help_fits_into_80_columns_and_its_examples_are_commands():
    assert max(len(line) for text in helps() for line in text.splitlines()) <= 80
    assert not any('ModelState' in text for text in helps())            # which no word of a command can be
    examples = [line for text in helps() for line in re.findall(r'^  python3 rn_rnn_char.py (.*)', text.replace('\\\n', ''), re.MULTILINE)]
    assert len(examples) >= 12
    for example in examples:
        words = shlex.split(re.split(r' [<>|] ', example)[0])
        assert parse(words)[0] is COMMANDS[words[0]]
    assert "$'\\n\\n'" in commandparser('sample').format_help()
    assert not any('<class' in text for text in helps())               # of a parameter without a default


@pytest.mark.parametrize('words, sentence', [
    (['smaple', 'a'], "no command is called 'smaple', did you mean sample?"),
    (['--layers'], "no command is called '--layers'"),
    (['train', 'a', '--num-round', '2'], "no option is called '--num-round', did you mean --num-rounds?"),
    (['train', 'a', '--learn_rate=2'], "no option is called '--learn-rate', did you mean --learnrate?"),
    (['sample', 'a', '--zzzzzz'], "no option is called '--zzzzzz': rn_rnn_char.py sample -h lists them"),
    (['sample', 'a', '-x'], "no option is called '-x'"),
    (['sample', 'a', '--verbose'], "no option is called '--verbose'"),
    (['sample', 'a', '--numchars', '1.5'], "argument --numchars: takes a whole number, got '1.5'"),
    (['sample', 'a', '--temp', 'hot'], "argument --temp: takes a number, got 'hot'"),
    (['sample', 'a', '--temp'], 'argument --temp: expected one argument'),
    (['sample'], 'sample takes DIR, got no path'),
    (['sample', 'a', 'b'], "sample takes DIR, got 'a' 'b'"),
    (['score', 'a'], "score takes DIR FILE, got 'a'"),
    (['train', 'a', 'b', 'c'], "train takes [FILE] DIR, got 'a' 'b' 'c'"),
    (['train', 'a', '--seed', '1', '--seq_len', '5'],
     '--seq-len, --seed: for a new model only, so give its text FILE before DIR, or leave them out'),
    (['train', 'a', 'b', '--checkpoint', 'best'], '--checkpoint is one of a model that is there'),
    (['train', 'a', 'b', '--resume'], '--resume finishes a run of a model that is there'),
    (['train', __file__], 'is a file: give a directory DIR for its model as well'),
])
def test_wrong_usage_is_said_with_exit_code_2(words, sentence, ran):
    code, out, err = ran(*words)
    assert (code, out) == (2, '') and err.startswith('usage: ') and sentence in err.splitlines()[-1]


# --- What can't be done -----------------------------------------------------------------------------------------------

@pytest.mark.anyengine(False)
def test_wrong_values_are_refused_in_the_librarys_sentence_with_exit_code_1(book, ran, tmp_path, monkeypatch):
    path, work = book[0], book[0] / 'work'
    for words, sentence in [
            (['sample', tmp_path / 'none'], 'there is no directory'),
            (['sample', work, '--top-p', '3'], 'top_p must be more than 0 and at most 1, got 3.0'),
            (['sample', work, '--seed', '-1'], 'seed must be'),
            (['sample', work, '--checkpoint', 'none'], "has no checkpoint 'none'"),
            (['sample', work, '--threads', '0'], 'threads'),
            (['score', work, path / 'none.txt'], 'there is no text file'),
            (['score', work, path / 'text.txt', '--encoding', 'martian'], "unknown text encoding 'martian'"),
            (['info', tmp_path], 'holds no model'),
            (['train', work, '--layers', '3'], 'layers is 2 for good, it shapes the network'),
            (['train', work, '--layernorm'], 'layernorm is False for good, it shapes the network'),
            (['train', work, '--learnrate', '-1'], 'learnrate must be more than 0'),
            (['train', work, '--momentum', '0.5'], "momentum=0.5 does nothing with optimizer='rmsprop'"),
            (['train', work, '--schedule', 'linea'], 'did you mean linear?'),
            (['train', work, '--resume', '--train-len', '5'], 'train_len=5 does nothing with resume=True'),
            (['train', work, '--resume'], 'no run to finish'),
            (['train', work, '--batchsize', '0'], 'batchsize'),
            (['train', path / 'text.txt', tmp_path / 'new', '--modeltype', 'GRUEncoder'], 'did you mean GRUEncode?')]:
        code, out, err = ran(*words)
        assert (code, out) == (1, '') and err.startswith('rn_rnn_char: ') and sentence in err and err.count('\n') == 1, (words, err)
    assert not (tmp_path / 'new').exists()
    code, out, err = ran('train', path / 'text.txt', work)
    assert code == 1 and 'already holds a model' in err and "work' holds a model: without FILE, this goes on with it." in err
    code, out, err = ran('train', path / 'text.txt', tmp_path / 'new', '--batchsize', '100000', '--state-size', '2')
    assert (code, out) == (1, '') and f"The new model is in '{tmp_path / 'new'}': without FILE" in err
    for error, sentence in [(MemoryError(), 'there is not enough memory'), (FloatingPointError('it has\ndiverged'), 'it has diverged'),
                            (KeyError('no such thing'), 'no such thing'), (ModuleNotFoundError('install JAX'), 'install JAX'),
                            (CheckpointError('damaged'), 'damaged'),
                            (OSError(28, 'No space left on device', '/x'), '/x: No space left on device')]:
        monkeypatch.setattr(ModelState, 'load', lambda directory: (_ for _ in ()).throw(error))
        assert ran('info', work) == (1, '', f'rn_rnn_char: {sentence}\n')


# --- As a person runs it ----------------------------------------------------------------------------------------------

@pytest.mark.anyengine(False)
def test_train_makes_a_model_and_training_again_goes_on_where_it_stopped(book, tmp_path):
    path, (code, out, err) = book
    assert (code, out) == (0, '') and re.search(r'(?s)^Reading .*--- sample at step 4 ---\n.*Round 1/1: validation loss', err)
    work = path / 'work'
    code, out, err = done('train', work, '-q', *TRAINING, '--num-rounds', '2')
    assert (code, out, err) == (0, '', '')
    whole = ModelState.initfromsrcfile(path / 'text.txt', tmp_path / 'whole', seq_len=10, layers=2, state_size=8, seed=1, learnrate=0.01)
    whole.trainmodel(batchsize=8, train_len=15, valid_len=2, print_every=0)
    ms = ModelState.load(work)
    assert (ms.model.epoch, ms.model.pos) == (whole.model.epoch, whole.model.pos) and len(ms.checkpoints()) == 4
    for name, value in whole.model.arrays().items():
        np.testing.assert_array_equal(ms.model.arrays()[name], value, err_msg=name)


def test_hyperparameters_that_are_given_hold_from_there_on_and_a_checkpoint_is_gone_back_to(book, ran, tmp_path):
    work = tmp_path / 'work'
    ModelState.initfromsrcfile(book[0] / 'text.txt', work, seq_len=10, state_size=8, seed=1, learnrate=0.01, decay=0.8)
    assert ran('train', work, *TRAINING, '--learnrate', '0.5')[0] == 0
    ms = ModelState.load(work)
    assert (ms.hyper.learnrate, ms.hyper.decay, ms.checkpoint.pos) == (0.5, 0.8, 5)
    assert ran('train', work, *TRAINING, '--checkpoint', ms.checkpoints()[0].name, '--regcost', '0.25')[0] == 0
    ms = ModelState.load(work)
    assert (ms.hyper.learnrate, ms.hyper.regcost, ms.checkpoint.pos, len(ms.checkpoints())) == (0.01, 0.25, 5, 3)


@pytest.mark.anyengine(False)
def test_sample_prints_what_the_library_gives_for_the_seed_and_nothing_else(book, ran):
    ms = ModelState.load(book[0] / 'work')
    code, out, err = done('sample', book[0] / 'work', '--seed', '3', '--numchars', '300', '--temp', '0.8', '--prime', 'söme ')
    assert (code, out) == (0, ms.sample(300, 0.8, 3, prime='söme ') + '\n') and 'Compiled' in err and "'\\xf6'" in err
    one, two = ms.sample(20, seed=3, n=2)
    first = ms.checkpoints()[0].name
    assert ran('sample', book[0] / 'work', '--seed', '3', '--numchars', '20', '--n', '2', '-q') == (
        0, f'--- 1 of 2 ---\n{one}\n--- 2 of 2 ---\n{two}\n', '')
    ms.restore(first)
    assert ran('sample', book[0] / 'work', '--seed', '3', '--checkpoint', first)[:2] == (0, ms.sample(seed=3) + '\n')


@pytest.mark.anyengine(False)
def test_score_is_one_line_for_a_file_or_standard_input_read_as_a_training_text_is(book, ran):
    path, words = book[0], 'some words\nof no\ngreat meaning'
    nats = ModelState.load(path / 'work').score(words).nats
    line = f'{nats:.4f} nats/char ({nats / 0.6931471805599453:.4f} bits) over 30 characters\n'
    code, out, err = done('score', path / 'work', '-', given=b'\xef\xbb\xbf' + words.replace('\n', '\r\n').encode())
    assert (code, out) == (0, line) and 'Traceback' not in err
    (path / 'wide.txt').write_bytes(b'\xff\xfe' + words.replace('\n', '\r').encode('utf-16-le'))
    (path / 'odd.txt').write_bytes(words.encode() + b'\xff')
    (path / 'binary').write_bytes(bytes(9))
    assert ran('score', path / 'work', path / 'wide.txt', '-q') == (0, line, '')
    code, out, err = ran('score', path / 'work', path / 'odd.txt')
    assert out.endswith(' over 31 characters\n') and '1 undecodable place in the text' in err
    code, out, err = ran('score', path / 'work', path / 'binary')
    assert (code, out) == (1, '') and 'is a binary file' in err


def test_surprise_and_neurons_show_what_the_library_does_or_write_its_page(book, ran, monkeypatch, tmp_path):
    path, words, ms = book[0], 'some words\nof no\ngreat meaning', ModelState.load(book[0] / 'work')
    monkeypatch.setenv('COLUMNS', '40')
    (path / 'part.txt').write_text(words)
    code, out, err = done('surprise', path / 'work', '-', given=words.encode())
    assert (code, out) == (0, repr(ms.surprise(words)) + '\n') and '\x1b' not in out
    assert ran('surprise', path / 'work', path / 'part.txt', '-q') == (0, out, '')
    assert ran('neurons', path / 'work', path / 'part.txt', '--layer', '1', '--neuron', '3', '-q') == (
        0, repr(ms.neurons(words, 1, 3)) + '\n', '')
    code, out, err = ran('neurons', path / 'work', path / 'part.txt', '--neuron', '3', '--html', tmp_path / 'page.html')
    assert (code, out) == (0, '') and f"Wrote '{tmp_path / 'page.html'}'" in err
    ms.neurons(words, neuron=3).html(tmp_path / 'same.html')
    assert (tmp_path / 'page.html').read_bytes() == (tmp_path / 'same.html').read_bytes()


def test_a_page_that_cannot_be_written_is_refused_before_the_text_is_read(book, ran, monkeypatch, tmp_path):
    path = book[0]
    (path / 'part.txt').write_text('some words')
    monkeypatch.setattr(reading, 'readcharacters', lambda *args: pytest.fail('read'))
    monkeypatch.setattr(page, 'MOSTBYTES', 700)                 # of 10 characters at 2 x 8 units: 60 + 16 * 4 / 3 bytes each, 813
    for command, options, sentence in (
            ('neurons', ['--html', tmp_path / 'page.txt'], 'path takes a name that ends in .html'),
            ('neurons', ['--layer', '2'], 'layer must be from 0 to 1, got 2'),
            ('neurons', ['--html', tmp_path / 'page.html'], 'too large for browsers: give at most 8 of them'),
            ('surprise', ['--html', tmp_path / 'no' / 'page.html'], 'there is no directory')):
        code, out, err = ran(command, path / 'work', path / 'part.txt', '-q', *options)
        assert (code, out, err.count('\n')) == (1, '', 1) and sentence in err


def test_a_closed_standard_input_is_one_sentence(book, ran, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', None)
    code, out, err = ran('score', book[0] / 'work', '-')
    assert (code, out, err.count('\n')) == (1, '', 1) and 'standard input is closed' in err


def test_info_tells_of_the_directory_and_lists_its_checkpoints(book, ran):
    code, out, err = ran('info', book[0] / 'work')
    assert (code, err) == (0, '') and 'Every file is whole.' in out
    assert all(each.name in out.partition('name: time')[2] for each in ModelState.load(book[0] / 'work').checkpoints())


def test_a_reader_that_leaves_ends_a_sample_quietly(book):
    process = start('sample', book[0] / 'work', '--numchars', '50000000')
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == -signal.SIGPIPE and re.fullmatch(r'(Compil\w+ .*\n)*', err)
    process.stderr.close()


def test_a_listener_that_leaves_ends_no_training(book, tmp_path):
    process = start('train', book[0] / 'text.txt', tmp_path / 'work', *NEW, *TRAINING)
    assert process.stderr.readline().startswith('Reading')
    process.stderr.close()
    assert process.wait(60) == 0 and process.stdout.read() == '' and ModelState.load(tmp_path / 'work').checkpoint.pos == 5
    process.stdout.close()


def test_ctrl_c_ends_a_long_sample_and_keeps_what_was_printed(book):
    process = start('sample', book[0] / 'work', '--numchars', '50000000', '--quiet', '--seed', '3')
    begun = process.stdout.read(1000)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, '') and rest.endswith('\n')
    assert begun == ModelState.load(book[0] / 'work').sample(1000, seed=3)


@pytest.mark.anyengine(False)
def test_ctrl_c_ends_a_training_with_a_checkpoint_written(book, tmp_path):
    process = start('train', book[0] / 'text.txt', tmp_path / 'work', *NEW, *TRAINING, '--train-len', '100000000', '--print-every', '20')
    for line in process.stderr:
        if 'sample at step 20 ' in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, '') and 'Stopped in round 1' in err and 'Traceback' not in err
    ms = ModelState.load(tmp_path / 'work')
    assert ms.checkpoint.kind == 'training' and ms.checkpoint.epoch * ms.data.batchepoch(8) + ms.checkpoint.pos >= 20


def test_resume_finishes_the_run_that_ctrl_c_broke_off(book, tmp_path):
    run = [*NEW, *TRAINING, '--train-len', '2000', '--schedule', 'linear', '--warmup', '5', '--print-every', '20', '--valid-frac', '0.2']
    del run[run.index('--valid-len'):run.index('--valid-len') + 2]
    process = start('train', book[0] / 'text.txt', tmp_path / 'work', *run)
    for line in process.stderr:
        if 'sample at step 20 ' in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'resume=True (on the command line --resume) finishes the run.' in err
    code, out, err = done('train', tmp_path / 'work', '--resume', '--print-every', '0')
    assert (code, out) == (0, '') and re.search(r'1,\d\d\d of 2,000 steps left', err) and 'Round 1/1: validation loss' in err
    assert done('train', book[0] / 'text.txt', tmp_path / 'whole', *run, '-q')[0] == 0
    one, two = ModelState.load(tmp_path / 'work'), ModelState.load(tmp_path / 'whole')
    for name, value in two.model.arrays().items():
        np.testing.assert_array_equal(one.model.arrays()[name], value, err_msg=name)
    np.testing.assert_array_equal(one.history()['learnrate'], two.history()['learnrate'])
    assert one.checkpoint.loss == two.checkpoint.loss


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk_is_one_sentence(book):
    with open('/dev/full', 'w') as full:
        process = start('info', book[0] / 'work', stdout=full)
        assert process.communicate(timeout=60)[1] == 'rn_rnn_char: No space left on device\n' and process.returncode == 1


def test_warnings_are_one_line_in_quiet_runs_and_without_arguments_the_ways_are_told(book):
    code, out, err = done('sample', book[0] / 'work', '--prime', 'é', '-q')
    assert code == 0 and err.startswith('rn_rnn_char: Not in the text that the model learnt') and err.count('\n') == 1
    code, out, err = done()
    assert (code, out) == (0, '') and 'python3 -i rn_rnn_char.py\n' in err and 'python3 rn_rnn_char.py -h\n' in err


def test_messages_can_go_to_standard_error_and_text_stays_on_standard_output(monkeypatch, capsys):
    class Stream(list):
        islist = False
    monkeypatch.setattr(report, 'verbose', True)
    monkeypatch.setattr(report, 'messages', 'stderr')
    report.say('said')
    assert report.write(Stream(['te', 'xt'])) is True
    progress = report.Progress('Round', 1, 1)
    progress.step(1.0)
    progress.close()
    out, err = capsys.readouterr()
    assert out == 'text\n' and err.startswith('said\nRound: 1/1 steps')

    def interrupted():
        yield 'te'
        raise KeyboardInterrupt
    stream = type('Broken', (), {'islist': False, '__iter__': lambda self: interrupted()})()
    assert report.write(stream) is False and capsys.readouterr().out == 'te\n'
