"""Computing on JAX's devices: what is asked for, and that everything there gives what the processor gives.

XLA on the processor stands for all.
"""

import concurrent.futures
import importlib.util
import shutil

import numpy as np
import pytest

import device
import engine
import report
from errors import CheckpointError
from model import ModelState

needsjax = pytest.mark.skipif(engine.name != 'pytensor' or importlib.util.find_spec('jax') is None,
                              reason='needs PyTensor and JAX (requirements-jax.txt)')
SETTINGS = [pytest.param(dict(), marks=pytest.mark.long),
            dict(modeltype='GRUResize', optimizer='adamw', clipping='norm', ema=0.99, regcost=0.1),
            dict(optimizer='adam', dropout=0.2, layernorm=True, precision='bfloat16')]


def make(text, path, **hyper):
    return ModelState.initfromsrcfile(text, path, seed=3, seq_len=20, init_checkpoint=False, layers=2, state_size=24, **hyper)


# --- Which device -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, error, sentence', [
    (3, TypeError, "device takes a name, as 'cpu', 'jax' or 'cuda:1', got 3"),
    ('the GPU', ValueError, "device takes 'cpu', 'jax' or a name like 'cuda' or 'cuda:1', got 'the GPU'"),
    ('cpu:0', ValueError, "device='cpu:0': the processor is one device, device='cpu' (for JAX's own way to compute on it say 'jax' with "
                          'JAX_PLATFORMS=cpu in the environment)'),
    ('cuda:', ValueError, "device takes 'cpu', 'jax' or a name like 'cuda' or 'cuda:1', got 'cuda:'")])
def test_what_is_no_devices_name_is_refused(name, error, sentence):
    with pytest.raises(error) as caught:
        device.chosen(name, device.CPU)
    assert str(caught.value) == sentence


def test_without_a_name_the_device_stays():
    assert device.chosen('cpu', None) is device.CPU and device.chosen(None, 'the one before') == 'the one before'


@pytest.mark.skipif(engine.name != 'theano', reason='what classic Theano says')
def test_classic_theano_refuses_other_devices_and_names_pytensor():
    with pytest.raises(ValueError, match='needs PyTensor, and this is classic Theano'):
        device.chosen('jax', device.CPU)


@pytest.mark.skipif(engine.name != 'pytensor', reason='what PyTensor says')
def test_without_jax_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        device.chosen('cuda', device.CPU)
    assert 'requirements-jax.txt' in str(caught.value) and '\n' not in str(caught.value)


@needsjax
@pytest.mark.parametrize('name', ['warp:0', 'jax:999'])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=f"no device '{name}' here: JAX has [a-z]+:0"):
        device.chosen(name, device.CPU)


@pytest.mark.parametrize('call', ['restore', 'trainmodel'])
def test_a_wrong_device_is_refused_before_anything_changes(text, tmp_path, call):
    ms = make(text, tmp_path / 'work')
    with pytest.raises(ValueError, match='device takes'):
        getattr(ms, call)(device='no such thing')
    assert ms.device is device.CPU and not ms.checkpoints() and not (tmp_path / 'work/history.csv').exists()


# --- What it computes -------------------------------------------------------------------------------------------------

@needsjax
@pytest.mark.parametrize('settings', SETTINGS)
def test_fifty_steps_lose_what_they_lose_on_the_processor_to_three_digits(text, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(device.native, 'trainable', lambda precision: precision)        # bfloat16 whatever the processor has
    losses = []
    for name in 'cpu', 'jax':
        ms = make(text, tmp_path / name, **settings)
        ms.trainmodel(train_len=50, valid_len=3, batchsize=4, print_every=0, device=name)
        losses.append([*ms.history().steps['loss'], ms.checkpoint.loss])
    np.testing.assert_allclose(losses[1], losses[0], atol=5e-4)
    assert losses[0][-1] < losses[0][0] - 0.3           # they have learnt something by then


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A network that has learnt a little, in a working directory."""
    path = tmp_path_factory.mktemp('device')
    report.verbose = False
    source = path / 'text.txt'
    source.write_text(''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(300)))
    ms = make(source, path / 'work', optimizer='adam', learnrate=0.01, layernorm=True)
    ms.trainmodel(train_len=150, valid_len=1, batchsize=4, print_every=0)
    return path / 'work'


@needsjax
def test_texts_are_written_and_read_as_on_the_processor(trained):
    texts, scores, states, streams = [], [], [], []
    for name in 'cpu', 'jax':
        ms = ModelState.load(trained)
        ms.restore(device=name)
        texts.append([ms.sample(200, 0, seed=9), *ms.sample(70, 0.7, seed=5, n=3),
                      ms.sample(90, 1, seed=2, prime='some words', top_k=9, top_p=0.9),
                      *ms.sample(40, 0.5, seed=3, until='w', n=2)])
        scores.append(ms.score('7: some meaning, 3.\n').shares)
        states.append(ms.trackneurons('great words\n'))
        stream = ms.stream(50, 0.5, seed=1)
        first = ''.join(stream)
        streams.append(first + ms.sample(30, 0.5, seed=4, state=stream.state))
    assert texts[0] == texts[1] and streams[0] == streams[1]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    np.testing.assert_allclose(states[1], states[0], atol=1e-4)


@needsjax
@pytest.mark.parametrize('precision', [pytest.param('bfloat16', marks=pytest.mark.long), 'int8'])
def test_texts_are_read_in_the_precision_asked_for(trained, precision):
    ms = ModelState.load(trained)
    ms.restore(precision=precision, device='jax')
    there = ms.score('7: some meaning, 3.\n').shares, ms.sample(60, 0.5, seed=1)
    ms.restore(precision=precision, device='cpu')
    np.testing.assert_allclose(ms.score('7: some meaning, 3.\n').shares, there[0], atol=0.02)      # a rounding may fall to the other side
    assert len(there[1]) == 60


@needsjax
def test_many_lengths_of_text_are_compiled_once(trained, monkeypatch):
    said = []
    ms = ModelState.load(trained)
    monkeypatch.setattr(report, 'say', lambda text='': said.append(text))
    ms.restore(device='jax')
    assert [text.split(' with')[0] for text in said if text.startswith('Compiled')] == ['Compiled generation', 'Compiled neurons']
    for count in (40, 33, 61, 50, 300):
        ms.sample(count, 0.5)
    ms.score('words ' * 50)
    assert len([text for text in said if text.startswith('Compiled')]) == 2        # and nothing in the middle of a text


@needsjax
def test_parameters_stay_on_the_device_and_come_back_unchanged(trained):
    import jax
    ms = ModelState.load(trained)
    ms.restore(device='jax')
    before = ms.model.arrays()
    ms.sample(5)
    assert all(isinstance(engine.held(shared), jax.Array) for shared in ms.model.params.values())
    ms.trainmodel(train_len=2, valid_len=1, batchsize=4, print_every=0)                 # still there
    assert all(isinstance(engine.held(shared), jax.Array) for shared in [*ms.model.params.values(), *ms.model.states])
    name = ms.checkpoints()[0].name
    ms.restore(name, device='cpu')
    assert all(isinstance(engine.held(shared), np.ndarray) for shared in ms.model.params.values())
    for key, value in ms.model.arrays().items():
        np.testing.assert_array_equal(value, before[key])


@needsjax
def test_one_thread_may_write_and_read_while_another_trains(trained, tmp_path):
    ms = ModelState.load(shutil.copytree(trained, tmp_path / 'work'))
    ms.restore(device='jax')
    ms.sample(20), ms.score('some words')
    ms.trainmodel(train_len=1, valid_len=1, batchsize=4, print_every=0)
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        training = other.submit(ms.trainmodel, train_len=150, valid_len=1, batchsize=4, print_every=0)
        count = 0
        while not training.done() or not count:
            assert len(ms.sample(20)) == 20 and 0 < ms.score('some words').nats < 10
            count += 1
        training.result()


@needsjax
def test_a_run_begun_on_one_device_is_finished_on_another(text, tmp_path, monkeypatch):
    """And loses what it loses on one alone, but for the rounding."""
    import train
    whole, broken = (make(text, tmp_path / name, optimizer='adam', dropout=0.1) for name in ('whole', 'broken'))
    arguments = {'num_rounds': 2, 'train_len': 12, 'valid_len': 2, 'batchsize': 4, 'print_every': 0, 'schedule': 'linear'}
    whole.trainmodel(**arguments)
    step, count = train._step, []

    def interrupted(*args):
        count.append(1)
        if len(count) == 18:
            raise KeyboardInterrupt
        return step(*args)
    monkeypatch.setattr(train, '_step', interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.trainmodel(**arguments, device='jax')
    monkeypatch.setattr(train, '_step', step)
    broken.trainmodel(resume=True, device='cpu')
    assert broken.checkpoint.epoch == whole.checkpoint.epoch and broken.checkpoint.pos == whole.checkpoint.pos
    assert abs(broken.checkpoint.loss - whole.checkpoint.loss) < 1e-4


@needsjax
@pytest.mark.parametrize('why, error, sentence', [
    ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.', MemoryError, 'jax has too little memory for training'),
    ('INTERNAL: the card fell off the bus', RuntimeError, 'fell off')], ids=['memory', 'else'])
def test_where_a_device_fails_in_mid_training_the_model_is_back_at_its_checkpoint(trained, tmp_path, monkeypatch, why, error, sentence):
    """What it was about to write over is gone by then."""
    import jax
    ms = ModelState.load(shutil.copytree(trained, tmp_path / 'work'))
    before, steps, jit = ms.model.get_params(), len(ms.history().steps), device.Accelerator._jit

    def failing(self, function, inputs, outputs, updated):
        f, count = jit(self, function, inputs, outputs, updated), []

        def call(*values):
            count.append(1)
            if len(count) < 5:
                return f(*values)
            for i in updated.values():
                values[i].delete()
            raise jax.errors.JaxRuntimeError(why)
        return call if updated else f
    monkeypatch.setattr(device.Accelerator, '_jit', failing)
    with pytest.raises(error, match=sentence) as caught:
        ms.trainmodel(train_len=9, valid_len=1, batchsize=4, print_every=0, device='jax')
    assert error is RuntimeError or '\n' not in str(caught.value)
    for name, value in ms.model.get_params().items():
        np.testing.assert_array_equal(value, before[name])
    assert len(ms.history().steps) == steps + 3         # the fourth's numbers were still to come


@needsjax
def test_a_restore_that_fails_leaves_the_network_where_it_computes(trained):
    ms = ModelState.load(trained)
    ms.restore(device='jax')
    with pytest.raises(CheckpointError):
        ms.restore('no such checkpoint', device='cpu')
    assert ms.device.name == ms.model.device.name == 'jax'


@needsjax
def test_a_diverged_network_is_said_to_be_one(trained):
    ms = ModelState.load(trained)
    ms.restore(device='jax')
    ms.model.set_params({'c': np.full(len(ms.charset), 3e38, np.float32), 'V': np.full((24, len(ms.charset)), 3e38, np.float32)})
    with pytest.raises(FloatingPointError, match='diverged'):
        ms.sample(5)
