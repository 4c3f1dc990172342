"""Where a ModelState comes from: a text, of which one is made, or the directory that keeps one."""

import inspect
import os
import secrets
from typing import TYPE_CHECKING

import cluster
import report
import saving
import startfrom
from advice import unlike
from checkpoint import WorkDir
from dataset import CharSet
from encode import checksource, encodefile
from errors import CheckpointError, WorkDirError, checkbool, checkint, checkpath, nearest, short
from hyperparams import HyperParams, checkgiven, checknames
from layers import MODELTYPES
from report import counted, lossline
from run import MOST
from storage import filechecksum, loadfacts, savefacts

if TYPE_CHECKING:
    from model import ModelState

DATAFILE = 'text-v1.npy'            # the encoded text; its format version stands in its name
DEFAULTTYPE = type('Default', (str,), {})('GRUEncode')      # a default that can be told from the same name given
UNTRAINED_STEPS, UNTRAINED_ROWS = 50, 8


def new(kind: type['ModelState'], srcfile: str | os.PathLike, workdir: str | os.PathLike, modeltype: str, seq_len: int,
        init_checkpoint: bool, encoding: str | None, seed: int | None, start_from: 'str | os.PathLike | ModelState | None', verbose: bool,
        given: dict) -> 'ModelState':
    """The ModelState of `ModelState.initfromsrcfile`, which see; kind: that class, given: a dict of hyperparameters.

    Of several processes (`cluster`) process 0 makes it, and the others load it.
    """
    if cluster.isshared():
        made = []

        def make():
            with cluster.alone():
                made.append(new(kind, srcfile, workdir, modeltype, seq_len, init_checkpoint, encoding, seed, start_from, verbose, given))
        cluster.first(make)
        return made[0] if made else load(kind, workdir)
    if not isinstance(modeltype, str) or modeltype not in MODELTYPES:
        raise ValueError(f'no model type is called {short(modeltype)}{nearest(modeltype, MODELTYPES) or ":"} '
                         f'There are {" and ".join(MODELTYPES)}')
    srcfile, asked, modeltype = checkpath('srcfile', srcfile), modeltype is not DEFAULTTYPE, str(modeltype)
    directory = WorkDir(checkpath('workdir', workdir))
    init_checkpoint, verbose = checkbool('init_checkpoint', init_checkpoint), checkbool('verbose', verbose)
    checknames(given, inspect.signature(kind.initfromsrcfile).parameters)
    hyper = HyperParams(**given)
    seq_len = checkint('seq_len', seq_len, 1, MOST)
    if start_from is None:
        checkgiven(given)
    seed = secrets.randbits(48) if seed is None else checkint('seed', seed, 0, MOST)
    checksource(srcfile, encoding)
    if start_from is not None:
        if not init_checkpoint:
            raise ValueError('init_checkpoint=False would lose the parameters that start_from gives: leave one of the two out')
        with report.quiet(not verbose):
            start_from = startfrom.opened(kind, start_from, directory)
        checkgiven({'optimizer': start_from.hyper.optimizer, **given})
        modeltype, hyper = startfrom.settings(start_from, modeltype if asked else start_from.modeltype, given)
    MODELTYPES[modeltype].checkmemory(1, hyper.layers, hyper.state_size, 1, seq_len)
    with report.quiet(not verbose), directory.create(DATAFILE):
        report.say(f'Reading {srcfile} ...')
        charset, data, numundecodable = encodefile(srcfile, directory.path / DATAFILE, seq_len, encoding,
                                                   start_from.charset.chars if start_from else '')
        if numundecodable:
            report.say(f'{counted(numundecodable, "undecodable place")} in {srcfile}, read as U+FFFD: another encoding= may suit it '
                       'better.')
        ms = kind(directory, modeltype, hyper, charset, data.numchars, seq_len, seed, filechecksum(directory.path / DATAFILE),
                  startfrom.origin(start_from) if start_from else '')
        ms._parts = data.split(hyper.valid_frac)
        data = ms.data
        ms.model = ms._newmodel()
        savefacts(directory.path / f'{modeltype}-{hyper.layers}x{hyper.state_size}-state.p', {
            'modeltype': modeltype, 'hyper': hyper.facts(), 'charset': charset.facts(), 'numchars': ms.numchars,
            'seq_len': seq_len, 'seed': seed, 'textchecksum': ms.textchecksum, 'startedfrom': ms.startedfrom})
        report.say(f'{ms._describe()}.')
        if ms.heldout and (advice := unlike(data.codes, ms.heldout.codes, len(charset))):
            report.say(advice)
        if start_from:
            startfrom.takeover(ms, start_from)
        if init_checkpoint:
            what = 'starting' if start_from else 'untrained'
            report.say(f'Measuring the {what} loss ...')
            rows = min(UNTRAINED_ROWS, data.numseqs)
            steps = min(UNTRAINED_STEPS, data.batchepoch(rows))
            loss = ms.model.untrainedloss(data.batch(p, rows) for p in range(steps))
            checkpoint = saving.write(ms, loss, 'untrained')
            report.say(f'{what.capitalize()} loss {lossline(loss)}. Checkpoint {checkpoint.name}')
    return ms


def load(kind: type['ModelState'], workdir: str | os.PathLike) -> 'ModelState':
    """The ModelState of `ModelState.load`, which see; kind: that class."""
    directory = WorkDir(checkpath('workdir', workdir))
    statefile = directory.statefile()
    facts = loadfacts(statefile)
    try:
        if facts['modeltype'] not in MODELTYPES:
            raise ValueError(f'unknown model type {facts["modeltype"]!r}')
        ms = kind(directory, facts['modeltype'], HyperParams(**facts['hyper']), CharSet.fromfacts(facts['charset']),
                  checkint('numchars', facts['numchars'], 1, MOST), checkint('seq_len', facts['seq_len'], 1, MOST),
                  checkint('seed', facts['seed'], 0, MOST), str(facts['textchecksum']),
                  str(facts.get('startedfrom', '')))      # the first ones had none
    except (KeyError, TypeError, ValueError) as error:
        raise WorkDirError(f'{statefile} is damaged ({error}): copy it back from a backup, or start anew in another '
                           'directory') from error
    for checkpoint in reversed(ms.checkpoints()):
        try:
            ms.hyper, ms.checkpoint = saving.training(ms, checkpoint)[0], checkpoint
            break
        except CheckpointError as error:
            report.warn(str(error))
    return ms
