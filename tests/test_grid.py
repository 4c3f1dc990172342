"""A grid's settings: their product, in order; names and values checked; directories' names that every file system takes."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, strategies as st

from grid import nameof, settingsof

NAMES = re.compile(r'[A-Za-z0-9.,=_+~-]{0,119}[A-Za-z0-9]')        # no space, quote, colon, slash; no dot at the end; none of Windows' own


def refused(error, words, grid, **fixed):
    with pytest.raises(error) as caught:
        settingsof(grid, fixed)
    assert '\n' not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_dict_of_lists_is_their_product():
    settings, fixed = settingsof({'layers': [1, 2], 'optimizer': ('adam', 'sgd'), 'learnrate': np.array([0.25, 4])},
                                 {'train_len': 5, 'state_size': 8})
    # By HyperParams' own order, whatever that of the grid is: so that another order finds the same directories.
    assert [nameof(setting) for setting in settings] == [
        'layers=1,learnrate=0.25,optimizer=adam', 'layers=1,learnrate=4.0,optimizer=adam',
        'layers=1,learnrate=0.25,optimizer=sgd', 'layers=1,learnrate=4.0,optimizer=sgd',
        'layers=2,learnrate=0.25,optimizer=adam', 'layers=2,learnrate=4.0,optimizer=adam',
        'layers=2,learnrate=0.25,optimizer=sgd', 'layers=2,learnrate=4.0,optimizer=sgd']
    assert settings[3] == {'layers': 1, 'learnrate': 4.0, 'optimizer': 'sgd'} and fixed == {'train_len': 5, 'state_size': 8}
    assert all(type(setting['learnrate']) is float and type(setting['layers']) is int for setting in settings)


def test_a_list_of_dicts_is_the_settings_themselves():
    settings, _ = settingsof([{'optimizer': 'adam', 'beta1': 0.5}, {'optimizer': 'sgd', 'momentum': np.float64(0.75)}, {}], {})
    assert settings == [{'optimizer': 'adam', 'beta1': 0.5}, {'optimizer': 'sgd', 'momentum': 0.75}, {}]
    assert [nameof(setting) for setting in settings] == ['optimizer=adam,beta1=0.5', 'optimizer=sgd,momentum=0.75', 'defaults']


def test_names_of_models_and_of_runs_stand_in_a_grid_too():
    grid = {'modeltype': ['GRUEncode', 'GRUResize'], 'seq_len': [10], 'seed': range(2), 'batchsize': [4], 'schedule': ['linear'],
            'warmup': [3], 'patience': [None, 2], 'layernorm': [False, True]}
    settings, _ = settingsof(grid, {})
    assert len(settings) == 2 * 2 * 2 * 2
    assert nameof(settings[-1]) == 'layernorm=True,modeltype=GRUResize,seq_len=10,seed=1,batchsize=4,schedule=linear,warmup=3,patience=2'


@pytest.mark.parametrize('grid, error, words', [
    ({'lernrate': [0.1]}, TypeError, ['lernrate', 'did you mean learnrate?']),
    ({'batch_size': [4]}, TypeError, ['did you mean batchsize?']), ({'threads': [1]}, TypeError, ["'threads'", 'There are']),
    ([{'layer': 2}], TypeError, ['did you mean layers?']),
    ({7: [1]}, TypeError, ['7']),
    ({'keep': [1]}, TypeError, ['keep stands beside the grid only']),
    ({'device': ['jax']}, TypeError, ["trials compute on the processor, several at a time: leave device='jax' out"]),
    ({'layers': [0]}, ValueError, ['layers', '0']),
    ({'layers': [1, 1.5]}, TypeError, ['layers', '1.5']), ({'learnrate': 0.1}, TypeError, ['learnrate takes a list', 'write [0.1]']),
    ({'layers': {1, 2}}, TypeError, ['{1, 2}: make a list of it']), ({'layers': map(int, '12')}, TypeError, ['make a list of it']),
    ({'optimizer': 'adam'}, TypeError, ["['adam']"]), ({'optimizer': ['adan']}, ValueError, ['did you mean adam?']),
    ({'modeltype': ['GRUencode']}, ValueError, ['GRUEncode']), ({'schedule': ['linaer']}, ValueError, ['did you mean linear?']),
    ({'seed': [-1]}, ValueError, ['seed', '-1']), ({'patience': [0]}, ValueError, ['patience']), ({'seed': [None]}, TypeError, ['seed']),
    ({'minutes': [0]}, ValueError, ['minutes']), ({'end_learnrate': [-1]}, ValueError, ['end_learnrate']),
    ({'layers': []}, ValueError, ['layers has no values']), ({}, ValueError, ['grid is empty']), ([], ValueError, ['grid is empty']),
    ('layers', TypeError, ['layers']), ([1], TypeError, ['list of dicts', '1']), (None, TypeError, ['None']),
    ({'learnrate': [0.001, 1e-3]}, ValueError, ['learnrate=0.001', 'twice']), ([{}, {}], ValueError, ['defaults', 'twice']),
    ({'valid_frac': [0.1, 0.2]}, ValueError, ['valid_frac']), ([{}, {'valid_frac': 0.2}], ValueError, ['valid_frac']),
    ({'optimizer': ['adam', 'sgd'], 'momentum': [0.5]}, ValueError, ["momentum=0.5 does nothing with optimizer='adam'"])])
def test_what_is_wrong_is_refused_in_one_sentence(grid, error, words):
    refused(error, words, grid)


def test_what_stands_beside_the_grid_is_checked_alike_and_stands_there_once():
    refused(TypeError, ['did you mean train_len?'], {'layers': [1]}, trainlen=4)
    refused(ValueError, ['save_every'], {'layers': [1]}, save_every=-1)
    refused(ValueError, ['layers stands in the grid, and beside it as layers=2'], {'layers': [1]}, layers=2)
    refused(ValueError, ["beta1=0.5 does nothing with optimizer='rmsprop'"], {'layers': [1]}, beta1=0.5)
    settings, _ = settingsof([{'layers': 1}, {}], {'layers': 2})        # for those that don't say it themselves
    assert settings == [{'layers': 1}, {}]


@given(st.lists(st.fixed_dictionaries({}, optional={
    'learnrate': st.floats(1e-30, 1e30), 'ema': st.floats(1e-30, 0.99), 'layers': st.integers(1, 100), 'layernorm': st.booleans(),
    'modeltype': st.sampled_from(['GRUEncode', 'GRUResize']), 'end_learnrate': st.none() | st.floats(0, 1e30),
    'seed': st.integers(0, 2 ** 63 - 1), 'patience': st.none() | st.integers(1, 2 ** 63 - 1), 'regcost': st.floats(0, 1e30),
    'schedule': st.sampled_from(['linear', 'cosine'])}), min_size=1, max_size=4, unique_by=nameof))
def test_names_of_directories_are_legal_on_every_file_system_and_differ_in_more_than_case(grid):
    names = [nameof(setting) for setting in settingsof(grid, {})[0]]
    assert all(NAMES.fullmatch(name) for name in names)
    assert len({name.lower() for name in names}) == len(grid)


def test_long_names_that_differ_at_the_end_only_stay_apart():
    grid = {'learnrate': [1 / 3], 'regcost': [2 / 3], 'decay': [1 / 7], 'clip': [1 / 9], 'ema': [5 / 7], 'warmup': [10 ** 15],
            'patience': range(1, 50)}
    names = [nameof(setting) for setting in settingsof(grid, {})[0]]
    assert len(set(names)) == 49 and {len(name) for name in names} == {120} and all(NAMES.fullmatch(name) for name in names)
    assert all(one[:100] == two[:100] for one, two in itertools.pairwise(names))
