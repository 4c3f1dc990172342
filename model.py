"""ModelState, what a person calls: a text, a network that learns it, and a working directory that keeps both."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

import device as places
import history
import info
import look
import opening
import plot
import reading
import report
import saving
import train
from checkpoint import Checkpoint, Checkpoints, WorkDir
from dataset import CharSet, DataSet, HeldOut
from errors import short
from generate import Stream, TextState
from history import Table
from hyperparams import FORGOOD, HyperParams
from info import Info
from layers import MODELTYPES, ModelParams
from opening import DATAFILE, DEFAULTTYPE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ModelState:
    """A text file, a GRU network that learns to predict its next character,
    and the working directory that keeps them.

        # a new model
        ms = ModelState.initfromsrcfile('book.txt', 'book', layers=2,
                                        state_size=256)
        # Ctrl-C stops, and keeps what was learnt
        ms.trainmodel(num_rounds=3, batchsize=16, valid_len=50,
                      print_every=200)
        # print text that the model writes
        generatestring(ms, numchars=500, temp=0.5)
        text = ms.sample(500)               # the same, as a str

        ms = ModelState.load('book')        # in another session
        ms.checkpoints()        # what was kept, oldest first, as a table
        # parameters back from the last checkpoint; restore('best'),
        # restore(name) from an earlier one
        ms.restore()
        ms.info()      # what is in the directory, and whether it is whole

        # a second text, in a directory of its own, from what was learnt
        # of the first
        ms = ModelState.initfromsrcfile('other.txt', 'other',
                                        start_from='book')

    Attributes: hyper (HyperParams; `ms.hyper.learnrate = 0.0005` holds
    from the next step on), charset (CharSet), data (DataSet), model (the
    network: get_params(), set_params(dict), epoch, pos), checkpoint (the
    last one read or written, or None), modeltype, numchars, seq_len,
    seed, startedfrom (of start_from, in words, or ''), workdir.
    trackneurons(text) tells every neuron's state along a text.

        # a text in colours, in the shell and in a page for the browser:
        # surprise, neurons, which of them follow something, gates
        ms.surprise(text)
        ms.findneurons(text)
        ms.neurons(text, layer=1, neuron=9).html('page.html')
        ms.gates(text)

    Loss is the mean negative log-likelihood in nats per character;
    divided by ln 2 it is bits per character.
    """

    def __init__(self, workdir: WorkDir, modeltype: str, hyper: HyperParams, charset: CharSet, numchars: int, seq_len: int, seed: int,
                 textchecksum: str, startedfrom: str = '') -> None:
        """For initfromsrcfile() and load(), which see."""
        self.workdir, self.modeltype, self.hyper, self.charset = workdir, modeltype, hyper, charset
        self.numchars, self.seq_len, self.seed, self.textchecksum = numchars, seq_len, seed, textchecksum
        self.startedfrom = startedfrom
        self.checkpoint: Checkpoint | None = None
        self.device: places.Device = places.CPU     # where the network computes
        self.advised = {}           # what advice.Advisor has said, and when

    @classmethod
    def initfromsrcfile(cls, srcfile: str | os.PathLike, workdir: str | os.PathLike, modeltype: str = DEFAULTTYPE, *, seq_len: int = 100,
                        init_checkpoint: bool = True, encoding: str | None = None, seed: int | None = None,
                        start_from: 'str | os.PathLike | ModelState | None' = None, verbose: bool = True,
                        **hyper: float | str) -> 'ModelState':
        """A new model for the text in `srcfile`, kept in the directory
        `workdir`.

        srcfile          path of a text file
        workdir          path of a directory, made if there is none; it must
                         not hold a model yet
        modeltype        'GRUEncode': a tanh layer feeds the first GRU layer;
                         'GRUResize': the first GRU layer reads characters
                         itself
        seq_len          characters in a sequence, the steps that gradients
                         reach back
        init_checkpoint  measure the untrained loss and write the first
                         checkpoint; False: restore() redraws the parameters
                         from the seed
        encoding         of the text; None: UTF-8, or what a byte-order mark
                         says
        seed             int >= 0 from which the initial weights come; None
                         draws one; it is stored
        start_from       a trained model to go on from, which stays as it is:
                         its directory, whose newest whole checkpoint counts,
                         or a ModelState, whose present parameters count (so
                         ms.restore(name), then start_from=ms, goes on from
                         that checkpoint)
        verbose          False: say nothing
        **hyper          what help(HyperParams) lists: layers, state_size,
                         learnrate, ...

        With start_from, the new model has the other's modeltype, layers and
        state_size, and of the other hyperparameters those that aren't given;
        seq_len isn't taken over. Its charset is the other's with the new
        text's characters. Every parameter is the other's, but for those of
        characters new to it, which are drawn as in a new model. Optimiser,
        states, position and epoch start from zero; the first checkpoint,
        which can't be left out then, has the loss before any training on this
        text.
        Nothing is compiled. What can't be right (a missing, empty or binary
        file, a directory that is taken, a wrong name or value) is refused in
        one sentence, and the disk is left as it was.
        """
        return opening.new(cls, srcfile, workdir, modeltype, seq_len, init_checkpoint, encoding, seed, start_from, verbose, hyper)

    @classmethod
    def load(cls, workdir: str | os.PathLike) -> 'ModelState':
        """The model kept in the directory `workdir`: its facts, charset and last
        checkpoint's facts; parameters are read when needed.

        Nothing is compiled. A damaged checkpoint is named and passed over.
        Raises FileNotFoundError where there is no such directory,
        WorkDirError where it holds no model or a damaged one.
        """
        return opening.load(cls, workdir)

    def __repr__(self) -> str:
        at = f'checkpoint {self.checkpoint.name}' if self.checkpoint else 'no checkpoint yet'
        return f'<ModelState {self._describe()}; {os.fspath(self.workdir.path)!r}, {at}>'

    def _describe(self):
        """One line: the network, its size, the text's."""
        layers, size, layernorm = self.hyper.layers, self.hyper.state_size, ' with layernorm' * self.hyper.layernorm
        count = MODELTYPES[self.modeltype].count(len(self.charset), layers, size)
        return (f'{self.modeltype} {layers} x {size}{layernorm}, {count:,} parameters; '
                f'{self.numchars:,} characters, {len(self.charset):,} different')

    @property
    def hyper(self) -> HyperParams:
        """The HyperParams."""
        return self._hyper

    @hyper.setter
    def hyper(self, hyper: HyperParams) -> None:
        if not isinstance(hyper, HyperParams):
            raise TypeError(f'hyper takes HyperParams, got {short(hyper)}: set one of its fields, as in ms.hyper.learnrate = 0.001')
        before = vars(self).get('_hyper', hyper)
        for name in FORGOOD:
            if getattr(hyper, name) != getattr(before, name):
                raise ValueError(f'{name} is {getattr(before, name)} for good, got {getattr(hyper, name)}: make a new model for it')
        self._hyper = hyper

    # --- What is read when it is needed ---------------------------------------------------------------------------

    def _newmodel(self):
        model = MODELTYPES[self.modeltype](len(self.charset), self.hyper.layers, self.hyper.state_size, self.seed, self.hyper)
        model.place(self.device)
        return model

    def _place(self, device):
        """Compute on this device from now on."""
        self.device = device
        if 'model' in vars(self):
            self.model.place(device)

    @cached_property
    def model(self) -> ModelParams:
        """The network (layers.ModelParams) with the parameters of the last
        checkpoint read or written, or else of the newest whole one."""
        return saving.filled(self, None, self._newmodel(), self.checkpoint)

    @property
    def data(self) -> DataSet:
        """The encoded text that is trained on (DataSet), memory-mapped, once its
        checksum is found right."""
        return self._parts[0]

    @property
    def heldout(self) -> HeldOut | None:
        """The encoded text that valid_frac holds out (HeldOut), or None."""
        return self._parts[1]

    @cached_property
    def _parts(self):
        data = DataSet.load(self.workdir.path / DATAFILE, self.numchars, self.seq_len, len(self.charset), self.textchecksum)
        return data.split(self.hyper.valid_frac)

    # --- Checkpoints ----------------------------------------------------------------------------------------------

    def checkpoints(self) -> Checkpoints:
        """The checkpoints, a list, oldest first, that the shell shows as a
        table.

        Each has .name, .loss (nats/char), .kind (of its loss: 'validation',
        'training' or 'untrained'), .epoch, .pos and .time (UTC); the list's
        .best is the one with the lowest validation loss.
        """
        return self.workdir.checkpoints()

    def info(self) -> Info:
        """What is in the model's directory and what state it is in: a text that
        the shell shows. Reads every file, about a second a GB."""
        return info.describe(self)

    def restore(self, name: str | None = None, *, precision: str | None = None, device: str | None = None, threads: int | None = None,
                verbose: bool = True) -> None:
        """Put data and parameters back from the last checkpoint, or the one
        called `name`, and compile what generates text.

        name       a bare file name, as checkpoints() lists them, or 'best'
                   (the lowest validation loss) or 'latest'
        precision  'float32', 'bfloat16' or 'int8': text is generated, and
                   prime, score() and trackneurons() read it, with weights of
                   so many bits, until the next restore() or training; None:
                   as in training. int8 writes two to three times as fast as
                   float32, and its loss is 0.0005 higher; the checkpoint
                   stays as it is
        device     where the network computes from now on: 'cpu', by the
                   native kernels; 'jax', the device that JAX takes by
                   default, by XLA; or one by its name, as 'cuda', 'cuda:1',
                   'tpu'; None: as before, at first 'cpu'. It is never
                   stored, and needs requirements-jax.txt
        threads    of the native kernels; None: RN_GRU_THREADS, or as many as
                   the process may use
        verbose    False: say nothing

        Every file is checked first, about a second a GB. Without a name, a
        damaged checkpoint is named and the newest one that is whole taken.
        Going to another checkpoint than the one that stands brings back its
        hyperparameters as well. Without any checkpoint the parameters are
        drawn anew from the seed. Raises CheckpointError where there is none
        of that name (it lists those that are) or it is damaged, where none is
        whole, or where there is none at all and start_from gave the
        parameters; WorkDirError where the encoded text is damaged; then
        nothing has changed.
        """
        saving.restore(self, name, precision, device, threads, verbose)

    # --- Training -------------------------------------------------------------------------------------------------

    def trainmodel(self, num_rounds: int = 1, batchsize: int = 16, train_len: int = 0, valid_len: int = 0, print_every: int = 1000,
                   clear_state: bool = False, *, minutes: float | None = None, schedule: str = 'constant', warmup: int = 0,
                   end_learnrate: float | None = None, patience: int | None = None, resume: bool = False, save_every: float = 600,
                   keep: int | None = None, watch: str | None = None, device: str | None = None, devices: int | str | None = None,
                   threads: int | None = None, verbose: bool = True) -> None:
        """Train for some rounds, each with a validation and a checkpoint at its
        end.

        num_rounds     how many rounds
        batchsize      B, sequences read side by side; each goes on where it
                       stopped, through the whole text
        train_len      steps in a round (a step is one batch of sequences); 0:
                       ms.data.batchepoch(batchsize), an epoch; with minutes,
                       a tenth of the run or more
        valid_len      steps of validation, on the text that comes next, which
                       the model saw longest ago; 0: an epoch's, which costs
                       about a third of an epoch's training (with minutes, a
                       twentieth of the time at most). With valid_frac it is
                       left out: validation is on all of the held-out part
                       then
        print_every    steps between samples of 100 characters, counted across
                       rounds, the first one before the first step; 0: none
        clear_state    start from a zero hidden state, at the position reached
        minutes        train for so long, compilation and validations
                       included, in place of num_rounds: some steps are timed
                       first, and so many planned, by whose number the
                       schedule goes; some times on the way the plan is made
                       anew, by the speed until then, and the learning rate
                       goes on by the new one. resume finishes the plan that
                       stands in the checkpoint
        schedule       of the learning rate, from ms.hyper.learnrate on:
                       'constant'; 'linear' or 'cosine' to end_learnrate at
                       the end of the run; 'plateau', halved whenever two
                       validations in a row brought no lower loss
        warmup         steps in which the learning rate first rises from
                       nearly 0
        end_learnrate  where 'linear' and 'cosine' end, and 'plateau' stops
                       falling; without it: 0
        patience       stop when so many validations in a row have brought no
                       lower loss
        resume         finish the run that Ctrl-C, a kill or a crash broke
                       off, as it was begun: its own arguments hold
        save_every     seconds: after so many without a checkpoint one is
                       written within the round, so that a long round loses
                       little; 0: never. There is no validation: its loss is
                       the mean training loss since the last checkpoint. Of
                       these and of Ctrl-C's only the newest is kept, and none
                       counts as best
        keep           how many of the rounds' checkpoints to keep, the
                       newest, and the best one besides; None: all. On a full
                       disk the oldest make room for the next one first; the
                       newest and the best always stay until it is written
        watch          a text to look at: before training, and behind each
                       round, a line says how surprising it is (as score()
                       does), how that has changed, and which of its words
                       surprises most. It changes no training, and like
                       print_every it holds for this call only; reading a
                       long one takes its share of minutes
        device         where the network computes from now on: 'cpu', by the
                       native kernels; 'jax', the device that JAX takes by
                       default, by XLA; or one by its name, as 'cuda',
                       'cuda:1', 'tpu'; None: as before, at first 'cpu'. It
                       is never stored: a run that was broken off on one
                       device may be finished on another
        devices        how many of them, or 'all': each computes its share of
                       the batch's rows, so batchsize has to divide by their
                       number, and their gradients are averaged. The result is
                       that of one device but for rounding; None: as before,
                       at first one. Needs JAX; never stored either
        threads        of the native kernels, never stored; None:
                       RN_GRU_THREADS, or as many as the process may use. The
                       result doesn't depend on it
        verbose        False: say nothing

        The training function is compiled when it is first needed. Two rounds
        of 50 steps give bit for bit what one of 100 gives.
        Ctrl-C ends after the step in hand with a checkpoint written, whose
        loss is the mean training loss since the last one; a second Ctrl-C
        ends at once. With minutes or patience, and a held-out part, the run
        ends on the best checkpoint, of which a copy becomes the latest.
        Another batch size than before starts the epoch again, from a zero
        state.
        Where a round shows over-fitting, too few rows for a large text, too
        high or too low a learning rate or units that are stuck, a line says
        so and what to try. Every step's loss and every validation stand in
        history.csv: ms.history(), ms.plot().
        Where the disk is full or gone in mid-training, that is said, training
        goes on in memory and the next checkpoint tries again. Raises
        TypeError or ValueError for a wrong argument, FloatingPointError where
        the loss is no number any more (the next use goes back to the last
        checkpoint), CheckpointError where the last checkpoint could not be
        written (the network stays as it was trained), WorkDirError where
        another process is training in the directory.
        """
        asked = {'num_rounds': num_rounds, 'batchsize': batchsize, 'train_len': train_len, 'valid_len': valid_len,
                 'clear_state': clear_state, 'minutes': minutes, 'schedule': schedule, 'warmup': warmup,
                 'end_learnrate': end_learnrate, 'patience': patience}
        train.train(self, asked, resume, print_every, save_every, keep, watch, device, devices, threads, verbose)

    def history(self) -> Table:
        """Every step's loss and every validation, a history.Table that the shell
        shows: arrays by column (`ms.history()['loss']`), rows, .steps,
        .validations, .best. The file is history.csv in the model's directory
        (`pandas.read_csv` reads it).

        Raises FileNotFoundError before the first training, WorkDirError where
        the file is damaged.
        """
        return history.read(self.workdir.path)

    def plot(self, path: str | os.PathLike | None = None, *, others: Sequence[str | os.PathLike] = (), logx: bool = False) -> 'Figure':
        """Draw training and validation loss over the characters seen and over
        time, with those of `others`, working directories: see plot.plot.

        path  a .png, .svg or .pdf file to write; None: show it. Needs
              matplotlib.
        """
        return plot.plot([self.workdir.path, *others], path, logx=logx)

    # --- Generation -----------------------------------------------------------------------------------------------

    def sample(self, numchars: int = 100, temp: float = 0.5, seed: int | None = None, *, prime: str = '', top_k: int | None = None,
               top_p: float | None = None, min_p: float | None = None, until: str | None = None, n: int | None = None,
               state: TextState | None = None) -> str | list[str]:
        """A text that the model writes: `prime` and `numchars` characters behind
        it, as a str; with `n`, a list of n such texts.

        numchars   how many characters to draw
        temp       temperature: characters are drawn from
                   softmax(logits / temp). 0.3 plays safe, 1 is as varied
                   as the source, 0 always takes the most likely character
        seed       int >= 0: the same seed gives the same text, with any
                   number of threads; without one, a fresh text each time
        prime      text that the model reads first and goes on from
        top_k      draw from the k likeliest characters only
        top_p      draw from the fewest likeliest characters only that have
                   this share, 0 to 1, of the probability (of the top_k's,
                   with both)
        min_p      draw from characters only that are at least so many times,
                   0 to 1, as likely as the likeliest
        until      end behind the first occurrence of this text among the
                   characters drawn, or after numchars
        n          how many texts, drawn side by side: 16 at once take little
                   longer than two. The first one is what a single one would
                   be
        state      a stream's .state, to go on from there

        Without prime and state the first character is drawn by how often a
        character begins a line in the source.
        Raises TypeError or ValueError for a wrong argument.
        """
        stream = self.stream(numchars, temp, seed, prime=prime, top_k=top_k, top_p=top_p, min_p=min_p, until=until, n=n, state=state)
        pieces = list(stream)
        return [''.join(each) for each in zip([''] * stream.n, *pieces)] if stream.islist else ''.join(pieces)

    def stream(self, numchars: int = 100, temp: float = 0.5, seed: int | None = None, *, prime: str = '', top_k: int | None = None,
               top_p: float | None = None, min_p: float | None = None, until: str | None = None, n: int | None = None,
               state: TextState | None = None) -> Stream:
        """The text of `sample`, which see, piece by piece while it is being
        written: an iterator over str, or with `n` over lists of n of them.

            stream = ms.stream(1000, prime='ROMEO:')
            for piece in stream:
                print(piece, end='', flush=True)
            more = ms.sample(1000, state=stream.state)   # goes on from there
        """
        return Stream(self, numchars, temp, seed, prime=prime, top_k=top_k, top_p=top_p, min_p=min_p, until=until, n=n, state=state)

    def score(self, text: str) -> reading.Score:
        """How well the model foretells `text`, read from a zero state: a Score
        with .nats and .bits per character, and .shares, each character's.

        `shares` (len(text),) float64 are negative log-likelihoods in nats,
        the first character's by how often one begins a line in the source.
        """
        return reading.score(self, text)

    def trackneurons(self, text: str) -> np.ndarray:
        """The states that reading `text` gives, from a zero state: a float32
        array (layer, neuron, character)."""
        return reading.trackneurons(self, text)

    # --- A look inside --------------------------------------------------------------------------------------------

    def surprise(self, text: str) -> look.Surprise:
        """How surprising each character of `text` is to the model, read from a
        zero state: a look.Surprise, which the shell shows in colours, each
        shade half as likely as the one before, and what was likelier where
        it was surprised most.

        It is a Score, with .nats, .bits and .shares, and has
        .alternatives(i), the likeliest in the place of character i,
        .show(start, stop), which prints a part, and .html(path), which writes
        a page for a browser. Raises TypeError or ValueError for what is no
        text, as all of these do.
        """
        return look.surprise(self, text)

    def neurons(self, text: str, layer: int | None = None, neuron: int | None = None) -> look.Neurons:
        """`text` in the colours of a neuron, blue where its state is negative,
        orange where it is positive: a look.Neurons.

        layer   from 0; without it: the last one, or with neither given the
                one that holds the neuron shown
        neuron  from 0; without it: the one that findneurons() ranks first,
                or where none follows anything, or the text is short, the
                one of the layer that varies most

        It has .states, what trackneurons(text) gives, .values, the neuron's,
        .show(start, stop), and .html(path), a page in which every other
        neuron can be chosen. That page takes a byte and a third for each
        neuron and character. Raises ValueError for a layer or neuron that
        there isn't, MemoryError for a text whose states are beyond this
        machine.
        """
        return look.neurons(self, text, layer, neuron)

    def findneurons(self, text: str) -> look.FoundNeurons:
        """Which neurons follow something that a person can name along `text`: a
        look.FoundNeurons, a list that the shell shows as a table, strongest
        first. .html(path) writes the page of neurons(text).

        Looked for are: in quotes, in a comment (#, or // and /* */), depth of
        brackets, indentation, position in the line, upper case, word ends,
        as far as the text has them; how each is read off the text says
        help(properties.properties). Some thousand characters tell more than
        the 200 that it takes at least.

        The measure is the correlation r, -1 to 1, of a neuron's state with
        the property at the character just read. The three neurons with the
        highest |r| in the text's first half are tried, and the r given is
        that of the second half, which had no part in the choice. Only what
        goes beyond chance is listed, the same neurons against the same
        property shifted along the second half in a circle (`by chance`: what
        |r| reaches then, but for a share of 0.01 over the number of neurons
        tried); where nothing does, that is said.
        """
        return look.findneurons(self, text)

    def gates(self, text: str) -> look.Gates:
        """How open the gates of each layer are along `text`: a look.Gates, with
        .z and .r, update and reset gates, float32 (layer, unit, character)
        from 0 to 1, that the shell shows as a table of how often they are
        saturated, below 0.1 or above 0.9. .html(path): a page of each unit's
        along the text. Raises MemoryError as neurons() does.
        """
        return look.gates(self, text)


def generatestring(ms: ModelState, numchars: int = 100, temp: float = 0.5, seed: int | None = None, *, prime: str = '',
                   top_k: int | None = None, top_p: float | None = None, min_p: float | None = None, until: str | None = None,
                   n: int | None = None, state: TextState | None = None) -> None:
    """Print a text that the model `ms` writes, while it is being written;
    Ctrl-C ends it. The arguments are ModelState.sample's.

        generatestring(ms, numchars=3000, temp=0.5)
        generatestring(ms, 500, temp=0.8, prime='KING RICHARD:',
                       until='\\n\\n', n=3)
    """
    if not isinstance(ms, ModelState):
        raise TypeError(f'generatestring takes a ModelState first, got {short(ms)}')
    stream = ms.stream(numchars, temp, seed, prime=prime, top_k=top_k, top_p=top_p, min_p=min_p, until=until, n=n, state=state)
    report.write(stream)
