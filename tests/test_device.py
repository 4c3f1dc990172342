"""Computing on JAX's devices: what is asked for, and that everything there gives what the processor gives. XLA on the processor stands for all."""

import importlib.util

import numpy as np
import pytest

import device
import engine
import report
from errors import RNGRUError    # noqa: F401 (the tests' names)
from model import ModelState

needsjax = pytest.mark.skipif(engine.name != 'pytensor' or importlib.util.find_spec('jax') is None,
                              reason='needs PyTensor and JAX (requirements-jax.txt)')
SETTINGS = [dict(), dict(modeltype='GRUResize', optimizer='adamw', clipping='norm', ema=0.99, regcost=0.1),
            dict(optimizer='adam', dropout=0.2, layernorm=True, precision='bfloat16')]


def make(text, path, **hyper):
    return ModelState.initfromsrcfile(text, path, seed=3, seq_len=20, init_checkpoint=False, layers=2, state_size=24, **hyper)


# --- Which device -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, error, sentence', [
    (3, TypeError, "device takes a name, as 'cpu', 'jax' or 'cuda:1', got 3"),
    ('the GPU', ValueError, "device takes 'cpu', 'jax' or a name like 'cuda' or 'cuda:1', got 'the GPU'"),
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
