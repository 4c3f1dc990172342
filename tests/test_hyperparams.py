"""HyperParams: names, values, and which of them go together."""

import pytest

from hyperparams import HyperParams, checkgiven
from modelcases import make


@pytest.mark.parametrize('name, value, error, said', [
    ('optimizer', 'adamm', ValueError, "'rmsprop', 'adam', 'adamw', 'sgd', got 'adamm', did you mean adam"),
    ('optimizer', 'RMSProp', ValueError, 'did you mean rmsprop'), ('optimizer', None, TypeError, "'sgd', got None"),
    ('optimizer', 3, TypeError, '3'),
    ('clipping', 'norms', ValueError, 'did you mean norm'), ('init', 'orthogonl', ValueError, 'did you mean orthogonal'),
    ('beta1', 1, ValueError, '1'), ('beta2', -0.1, ValueError, '-0.1'), ('momentum', 1.5, ValueError, '1.5'),
    ('momentum', '0.9', TypeError, '0.9'),
    ('weight_decay', -1, ValueError, '-1'), ('clip', 0, ValueError, 'more than 0'), ('clip', float('inf'), ValueError, 'inf'),
    ('dropout', 1, ValueError, 'below 1'), ('ema', 1.0, ValueError, 'below 1'), ('ema', 0.99999999999, ValueError, 'below 1'),
    ('valid_frac', 1, ValueError, 'below 1'),
    ('layernorm', 'yes', TypeError, "True or False, got 'yes'"), ('layernorm', 1, TypeError, 'got 1')])
def test_wrong_values_are_refused_in_one_sentence(name, value, error, said):
    forgood = name in ('init', 'valid_frac', 'layernorm')
    hyper = HyperParams(**({} if forgood else {name: {'optimizer': 'sgd', 'clipping': 'norm'}.get(name, 0.5)}))
    before = hyper.facts()
    for attempt in (lambda: HyperParams(**{name: value}), lambda: setattr(hyper, name, value)):
        with pytest.raises(error, match=said) as raised:
            attempt()
        assert '\n' not in str(raised.value) and name in str(raised.value)
    assert hyper.facts() == before


@pytest.mark.parametrize('name, value, error', [('optimiser', 'adam', TypeError), ('weightdecay', 0.1, TypeError),
                                                ('beta_1', 0.9, TypeError)])
def test_a_wrong_name_is_told_the_right_one(name, value, error):
    with pytest.raises(error, match=f'did you mean {dict(optimiser="optimizer", weightdecay="weight_decay", beta_1="beta1")[name]}'):
        HyperParams(**{name: value})


def test_what_old_files_lack_has_its_default():
    hyper = HyperParams(**{'layers': 2, 'state_size': 4, 'learnrate': 0.01, 'decay': 0.9, 'regcost': 0.1})
    assert (hyper.optimizer, hyper.clipping, hyper.clip, hyper.init) == ('rmsprop', 'value', 5, 'uniform')
    assert hyper.ema == hyper.dropout == hyper.valid_frac == 0 and hyper.layernorm is False
    assert HyperParams(**hyper.facts()) == hyper


@pytest.mark.parametrize('name, value, other', [('init', 'orthogonal', 'uniform'), ('valid_frac', 0.1, 0.2), ('layers', 2, 3),
                                               ('layernorm', True, False), ('layernorm', False, True)])
def test_what_is_set_once_stays(name, value, other):
    hyper = HyperParams(**{name: value})
    setattr(hyper, name, value)
    with pytest.raises(AttributeError, match=f'{name} is {value} for good.*make a new model for {name}={other}'):
        setattr(hyper, name, other)


def test_hyper_refuses_wrong_names_and_values_when_assigned(srcfile):
    ms = make(srcfile)
    with pytest.raises(AttributeError, match='learnrate'):
        ms.hyper.learn_rate = 0.1
    with pytest.raises(ValueError):
        ms.hyper.learnrate = -1
    with pytest.raises(AttributeError, match='state_size is 8'):
        ms.hyper.state_size = 16
    with pytest.raises(AttributeError, match='init is uniform'):
        ms.hyper.init = 'orthogonal'
    assert ms.hyper == HyperParams(state_size=8)
    for name, value in (('state_size', 16), ('init', 'orthogonal'), ('valid_frac', 0.1)):
        with pytest.raises(ValueError, match=f'{name} is .* for good, got {value}'):
            ms.hyper = HyperParams(**{'state_size': 8, name: value})
    ms.hyper = HyperParams(state_size=8, optimizer='adam', momentum=0.5)


@pytest.mark.parametrize('given, said', [
    ({'momentum': 0.5}, "momentum=0.5 does nothing with optimizer='rmsprop': .*optimizer='sgd'"),
    ({'optimizer': 'adam', 'momentum': 0.5}, "'sgd'"),
    ({'beta1': 0.5}, "'adam' or 'adamw'"), ({'beta2': 0.5, 'optimizer': 'sgd'}, "'adam' or 'adamw'"),
    ({'weight_decay': 0.1, 'optimizer': 'adam'}, "weight_decay=0.1 .*optimizer='adamw'"), ({'weight_decay': 0}, "'adamw'"),
    ({'layernorm': True, 'state_size': 1}, 'state_size=1: use a larger one'),
    ({'optimizer': 'adam', 'decay': 0.9}, "'rmsprop'"), ({'optimizer': 'sgd', 'decay': 0.95}, "'rmsprop'")])
def test_what_another_option_makes_useless_is_refused_in_one_sentence(given, said):
    with pytest.raises(ValueError, match=said) as raised:
        checkgiven(given)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('given', [{}, {'decay': 0.9}, {'layernorm': True, 'state_size': 2}, {'layernorm': False, 'state_size': 1},
                                   {'optimizer': 'rmsprop', 'decay': 0.9}, {'optimizer': 'sgd', 'momentum': 0.5},
                                   {'optimizer': 'adam', 'beta1': 0.5, 'beta2': 0.9},
                                   {'optimizer': 'adamw', 'beta1': 0.5, 'weight_decay': 0.1},
                                   {'optimizer': 'adam', 'clip': 1.0, 'clipping': 'norm', 'ema': 0.9, 'regcost': 0.1, 'layers': 2}])
def test_options_that_go_together_are_taken(given):
    checkgiven(given)


def test_help_names_each_with_its_default_and_comment():
    for line in ("optimizer=rmsprop", "clip=5.0", "ema=0.0"):
        assert line in HyperParams.__doc__
    for name in HyperParams().facts():
        assert f'\n{name}=' in HyperParams.__doc__
