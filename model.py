"""ModelState, what a person calls: a text, a network that learns it, and a working directory that keeps both."""

import math
import numbers
import os
import secrets
from functools import cached_property

import numpy as np

import native
import report
import train
from checkpoint import WorkDir
from dataset import CharSet, DataSet
from encode import encodefile
from errors import WorkDirError, checkint
from hyperparams import HyperParams, nearest
from layers import MODELTYPES
from storage import loadfacts, savefacts

DATAFILE = 'text-v1.npy'            # the encoded text; its format version stands in its name
UNTRAINED_STEPS, UNTRAINED_ROWS = 50, 8


class ModelState:
    """A text file, a GRU network that learns to predict its next character, and the working directory that keeps them.

        ms = ModelState.initfromsrcfile('book.txt', 'book', layers=2, state_size=256)   # a new model
        ms.trainmodel(num_rounds=3, batchsize=16, valid_len=50, print_every=200)        # Ctrl-C stops, and keeps what was learnt
        generatestring(ms, numchars=500, temp=0.5)                                      # print text that the model writes
        text = ms.sample(500)                                                           # the same, as a str

        ms = ModelState.load('book')        # in another session
        ms.checkpoints()                    # what was kept, oldest first
        ms.restore()                        # parameters back from the last checkpoint, or restore(name) from an earlier one

    Attributes: hyper (HyperParams; `ms.hyper.learnrate = 0.0005` holds from the next step on), charset (CharSet), data (DataSet), model
    (the network: get_params(), set_params(dict), epoch, pos), checkpoint (the last one read or written, or None), seed, workdir.

    Loss is the mean negative log-likelihood in nats per character; divided by ln 2 it is bits per character.
    """

    def __init__(self, workdir, modeltype, hyper, charset, numchars, seq_len, seed, checkpoint=None):
        """For initfromsrcfile() and load(), which see."""
        self.workdir, self.modeltype, self.hyper, self.charset = workdir, modeltype, hyper, charset
        self.numchars, self.seq_len, self.seed, self.checkpoint = numchars, seq_len, seed, checkpoint

    @classmethod
    def initfromsrcfile(cls, srcfile, workdir, modeltype='GRUEncode', *, seq_len=100, init_checkpoint=True, encoding=None, seed=None,
                        verbose=True, **hyper):
        """A new model for the text in `srcfile`, kept in the directory `workdir`.

        srcfile          path of a text file
        workdir          path of a directory, made if there is none; it must not hold a model yet
        modeltype        'GRUEncode': a tanh layer feeds the first GRU layer; 'GRUResize': the first GRU layer reads characters itself
        seq_len          characters in a sequence, the steps that gradients reach back
        init_checkpoint  measure the untrained loss and write the first checkpoint; False: restore() redraws the parameters from the seed
        encoding         of the text; None: UTF-8, or what a byte-order mark says
        seed             int >= 0 from which the initial weights come; None draws one; it is stored
        verbose          False: say nothing
        **hyper          HyperParams: layers=1, state_size=128, learnrate=0.001, decay=0.95, regcost=0.0

        Nothing is compiled. What can't be right (a missing, empty or binary file, a directory that is taken, a wrong name or value)
        is refused in one sentence, and the disk is left as it was.
        """
        if modeltype not in MODELTYPES:
            raise ValueError(f'no model type is called {modeltype!r}{nearest(modeltype, MODELTYPES) or ":"} '
                             f'There are {" and ".join(MODELTYPES)}')
        hyper = HyperParams(**hyper)
        seq_len = checkint('seq_len', seq_len, 1)
        seed = secrets.randbits(48) if seed is None else checkint('seed', seed)
        with report.quiet(not verbose), WorkDir(workdir).create(DATAFILE) as directory:
            charset, data, numundecodable = encodefile(srcfile, directory.path / DATAFILE, seq_len, encoding)
            if numundecodable:
                report.say(f'{numundecodable:,} bytes of {srcfile} could not be decoded and were read as U+FFFD.')
            ms = cls(directory, modeltype, hyper, charset, data.numchars, seq_len, seed)
            ms.data = data
            ms.model = ms._newmodel()
            savefacts(directory.path / f'{modeltype}-{hyper.layers}x{hyper.state_size}-state.p', {
                'modeltype': modeltype, 'hyper': hyper.facts(), 'charset': charset.facts(), 'numchars': data.numchars,
                'seq_len': seq_len, 'seed': seed, 'srcfile': os.path.basename(os.fspath(srcfile))})
            report.say(f'{ms.describe()}.')
            if init_checkpoint:
                rows = min(UNTRAINED_ROWS, data.numseqs)
                steps = min(UNTRAINED_STEPS, data.batchepoch(rows))
                loss = ms.model.untrainedloss(data.batch(p, rows) for p in range(steps))
                checkpoint = ms.writecheckpoint(loss, 'untrained', 1)
                report.say(f'Untrained loss {train.lossline(loss)}. Checkpoint {checkpoint.name}')
        return ms

    @classmethod
    def load(cls, workdir):
        """The model kept in the directory `workdir`: its facts, charset and last checkpoint's facts; parameters are read when needed.

        Nothing is compiled. Raises FileNotFoundError where there is no such directory, WorkDirError where it holds no model or a damaged one.
        """
        directory = WorkDir(workdir)
        statefile = directory.statefile()
        facts = loadfacts(statefile)
        checkpoints = directory.checkpoints()
        checkpoint = checkpoints[-1] if checkpoints else None
        try:
            if facts['modeltype'] not in MODELTYPES:
                raise ValueError(f'unknown model type {facts["modeltype"]!r}')
            return cls(directory, facts['modeltype'], HyperParams(**(checkpoint.facts if checkpoint else facts)['hyper']),
                       CharSet.fromfacts(facts['charset']), checkint('numchars', facts['numchars'], 1),
                       checkint('seq_len', facts['seq_len'], 1), checkint('seed', facts['seed']), checkpoint)
        except (KeyError, TypeError, ValueError) as error:
            raise WorkDirError(f'{statefile} is damaged ({error}): copy it back from a backup, or start anew '
                               'in another directory') from error

    def __repr__(self):
        at = (f'checkpoint {self.checkpoint.name}' if self.checkpoint else 'no checkpoint yet')
        return f'<ModelState {self.describe()}; {os.fspath(self.workdir.path)!r}, {at}>'

    def describe(self):
        """One line: the network, its size, the text's."""
        numparams = self._newmodel().numparams if 'model' not in vars(self) else self.model.numparams
        return (f'{self.modeltype} {self.hyper.layers} x {self.hyper.state_size}, {numparams:,} parameters; '
                f'{self.numchars:,} characters, {len(self.charset):,} different')

    # --- What is read when it is needed ---------------------------------------------------------------------------

    def _newmodel(self):
        return MODELTYPES[self.modeltype](len(self.charset), self.hyper.layers, self.hyper.state_size, self.seed)

    @cached_property
    def model(self):
        """The network (layers.ModelParams) with the last checkpoint's parameters."""
        model = self._newmodel()
        self._fill(model, self.checkpoint)
        return model

    @cached_property
    def data(self):
        """The encoded text (DataSet), memory-mapped."""
        return DataSet.load(self.workdir.path / DATAFILE, self.numchars, self.seq_len, len(self.charset))

    def _fill(self, model, checkpoint):
        if checkpoint is None:
            model.set_arrays(self._newmodel().arrays())
            model.epoch = model.pos = 0
            return
        batchsize = checkpoint.facts.get('batchsize')
        model.set_arrays(self.workdir.loadarrays(checkpoint, model.expected(checkint('batchsize', batchsize, 1))))
        model.epoch, model.pos = checkpoint.epoch, checkpoint.pos

    # --- Checkpoints ----------------------------------------------------------------------------------------------

    def checkpoints(self):
        """The checkpoints, oldest first: each has .name, .loss (nats/char), .epoch, .pos and .time (UTC)."""
        return self.workdir.checkpoints()

    def restore(self, name=None, *, threads=None, verbose=True):
        """Put data and parameters back from the last checkpoint, or the one called `name`, and compile what generates text.

        name: a bare file name, as checkpoints() lists them; with it, learnrate, decay and regcost are that checkpoint's again.
        threads: of the native kernels; None: RN_GRU_THREADS, or as many as the process may use.
        Raises CheckpointError where there is none of that name (it lists those that are) or its files are damaged.
        """
        native.checkthreads(threads)
        with report.quiet(not verbose):
            checkpoint = self.workdir.checkpoint(name) if name is not None or self.checkpoints() else None
            if name is not None:
                hyper = HyperParams(**checkpoint.facts['hyper'])
            if 'model' in vars(self):
                self._fill(self.model, checkpoint)
            self.checkpoint = checkpoint
            if name is not None:
                self.hyper = hyper
            model, _ = self.model, self.data
            report.say(f'Restored {checkpoint.name}: epoch {model.epoch}, position {model.pos}.' if checkpoint
                       else 'No checkpoint yet: parameters drawn anew from the seed.')
            native.setthreads(threads)
            model.sampletext, model.allstates

    def writecheckpoint(self, loss, losskind, batchsize, **facts):
        """Write a checkpoint of the network as it is; the Checkpoint. losskind: 'validation', 'training' or 'untrained'."""
        model = self.model
        self.checkpoint = self.workdir.writecheckpoint(
            loss, model.epoch, model.pos, {'losskind': losskind, 'batchsize': batchsize, 'hyper': self.hyper.facts(), **facts},
            model.arrays())
        return self.checkpoint

    # --- Training -------------------------------------------------------------------------------------------------

    def trainmodel(self, num_rounds=1, batchsize=16, train_len=0, valid_len=0, print_every=1000, clear_state=False, *,
                   threads=None, verbose=True):
        """Train for some rounds, each with a validation and a checkpoint at its end.

        num_rounds   how many rounds
        batchsize    B, sequences read side by side; each goes on where it stopped, through the whole text
        train_len    steps in a round (a step is one batch of sequences); 0: ms.data.batchepoch(batchsize), an epoch
        valid_len    steps of validation, on the text that comes next, which the model saw longest ago; 0: an epoch's, which costs
                     about a third of an epoch's training
        print_every  steps between samples of 100 characters, counted across rounds, the first one before the first step; 0: none
        clear_state  start from a zero hidden state, at the position reached
        threads      of the native kernels, never stored; None: RN_GRU_THREADS, or as many as the process may use. The result doesn't depend on it
        verbose      False: say nothing

        The training function is compiled when it is first needed. Two rounds of 50 steps give bit for bit what one of 100 gives.
        Ctrl-C ends after the step in hand with a checkpoint written, whose loss is the round's mean training loss; a second Ctrl-C ends at
        once. Another batch size than before starts the epoch again, from a zero state.
        Raises TypeError or ValueError for a wrong argument, FloatingPointError where the loss is no number any more.
        """
        num_rounds = checkint('num_rounds', num_rounds, 1)
        self.data.batchepoch(batchsize)         # refuses what is no batch size, or one too large for the text
        train_len, valid_len = checkint('train_len', train_len), checkint('valid_len', valid_len)
        print_every = checkint('print_every', print_every)
        native.checkthreads(threads)
        with report.quiet(not verbose):
            native.setthreads(threads)
            train.train(self, num_rounds, int(batchsize), train_len, valid_len, print_every, bool(clear_state))

    # --- Generation -----------------------------------------------------------------------------------------------

    def sample(self, numchars=100, temp=0.5, seed=None):
        """A text of exactly `numchars` characters that the model writes.

        temp   temperature: characters are drawn from softmax(logits / temp). 0.3 plays safe, 1 is as varied as the source, 0 always takes
               the most likely character
        seed   int >= 0: the same seed gives the same text; None: a fresh one each time

        The first character is drawn by how often a character begins a line in the source. Raises TypeError or ValueError for a wrong argument.
        """
        numchars = checkint('numchars', numchars)
        if isinstance(temp, bool) or not isinstance(temp, numbers.Real):
            raise TypeError(f'temp takes a number, got {temp!r}')
        if not 0 <= temp < math.inf:
            raise ValueError(f'temp must be at least 0 and finite, got {temp}')
        return self.drawtext(numchars, temp, None if seed is None else checkint('seed', seed))

    def drawtext(self, numchars, temp, seed):
        """`sample` with a seed as numpy.random takes it."""
        if not numchars:
            return ''
        rng = np.random.Generator(np.random.PCG64(seed))
        starts = np.cumsum(self.charset.linestartprobs())
        first = int(min(np.searchsorted(starts, rng.random() * starts[-1], side='right'), np.searchsorted(starts, starts[-1])))
        allowed = np.ones(len(self.charset), np.int8)
        allowed[0] = self.charset.hasunknown
        s0 = np.zeros((self.hyper.layers, self.hyper.state_size), np.float32)
        drawn, _ = self.model.sampletext(first, rng.random(numchars - 1), temp, allowed, s0)
        return self.charset.decode(np.concatenate([[first], drawn]))

    def trackneurons(self, text):
        """The states that reading `text` gives, from a zero state: a float32 array (layer, neuron, character)."""
        if not isinstance(text, str) or not text:
            raise TypeError(f'text takes a str of at least one character, got {text!r}')
        x = self.charset.encode(text).astype(np.int32)[:, None]
        state = np.zeros((self.hyper.layers, 1, self.hyper.state_size), np.float32)
        return np.stack([S[:, 0, :].T for S in self.model.allstates(x, state)])


def generatestring(ms, numchars=100, temp=0.5):
    """Print a text of `numchars` characters that the model `ms` writes, at temperature `temp`; see ModelState.sample.

        generatestring(ms, numchars=3000, temp=0.5)
    """
    print(ms.sample(numchars, temp))
