"""What a round's numbers say about its training, in a line that a person can act on: learning rate, over-fitting, rows, stuck gates.

    Advisor(ms, run), then step(...) behind each step and round(...) behind each validation: a line, or None where all is well
    unlike(codes, heldout, vocab), before all training: the same of what is held out

Every threshold here was chosen so that healthy runs, of all optimizers and both model types, stay well on its quiet side.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

import history
import report
from errors import WorkDirError
from reading import STILL, gates
from run import Run

if TYPE_CHECKING:
    from model import ModelState

WINDOW = 100            # steps whose mean loss stands for where the training is
NOISE = 1.6             # nats: standard deviation of a character's loss in a healthy run; a step's is this / sqrt(its characters)
PATIENT = 300           # steps at one rate after which a network knows more than how often each letter occurs
AGAIN = 5               # rounds after which the same advice is given again
GATECHARS = 400         # characters, half of them at least, along which the gates are looked at, of 500 times as many that were
GATESHARE = 1 / 500     # trained on: NumPy takes a hundredth of that time for it, in the smallest networks too
COMPARED, PIECE = 5000, 1000    # characters that a held-out part must have to be compared with the rest; those of a piece of a long text
UNLIKE = 0.3            # nats
MANY = 500              # different characters, whose first weights are too much alike in a new model but with init='lookup'
STUCK = 0.25            # share of a layer's units
FEWROWS, BENT = 64, 0.2         # rows of a batch; nats that validation is above training where a text is not read to its end


class Point(NamedTuple):
    """A validation, and the training that led to it."""

    updates: int
    position: int
    validation: float
    train: float                # mean loss of the last WINDOW steps
    steps: int                  # since the validation before
    learnrate: float            # of the last step


class Text(NamedTuple):
    """What can be said about a text without a network: nats per character."""

    uniform: float              # ln V: anything may come
    letters: float              # entropy of the characters as often as they occur
    pairs: float                # that of a character where the one before is known

    @classmethod
    def of(cls, codes: np.ndarray, vocab: int) -> Self:
        """Of an array of indices; its first 100,000 are enough."""
        codes = np.asarray(codes[:100_000]).astype(np.int64)
        letters, kinds = _entropy(codes)
        both, pairkinds = _entropy(codes[:-1] * vocab + codes[1:])
        # Few pairs of many possible ones look more certain than they are (Miller 1955).
        return cls(math.log(vocab), letters, min(both - letters + (pairkinds - kinds) / (2 * len(codes)), letters))


def _entropy(values):
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()), len(counts)


def unlike(codes: np.ndarray, heldout: np.ndarray, vocab: int) -> str | None:
    """A line where the part held out is another kind of text than the one trained on, else None: their indices, arrays, and V.

    Measured by the divergence of its characters' frequencies from the other part's (Kullback and Leibler 1951), less three times what
    chance gives (Miller 1955). The end of one book or program lies within 0.05 nats of the rest; prose before verse, or a second language,
    goes above 0.3.
    """
    if len(heldout) < COMPARED:
        return None
    one, other = (np.bincount(_spread(each), minlength=vocab).astype(float) for each in (codes, heldout))
    seen, count = other > 0, other.sum()
    rest, end = (one[seen] + 0.5) / (one.sum() + 0.5 * vocab), other[seen] / count
    if (end * np.log(end / rest)).sum() < UNLIKE + 3 * seen.sum() / (2 * count):
        return None
    return (f"The last {len(heldout):,} characters, held out, are unlike the rest: validation will tell little of how that is learnt. "
            "Mix the text's parts first.")


def _spread(codes):
    """Enough of an array to count characters in: all of a short one, else pieces from all of it."""
    if len(codes) <= 1000 * PIECE:
        return np.asarray(codes)
    return np.concatenate([codes[at:at + PIECE] for at in np.linspace(0, len(codes) - PIECE, 1000).astype(int)])


class Advisor:
    """Watches a training and says, at most once a round, what is wrong with it. Silent, it does nothing."""

    def __init__(self, ms: 'ModelState', run: Run) -> None:
        """run: the Run that is carried out."""
        self.ms, self.run = ms, run
        self.clipped, self.learnrate = [], 0.0
        self.start = ms.model.updates
        self.points: list[Point] | None = None          # these two from the first round on
        self.text: Text | None = None
        self.lowest = math.inf          # mean loss of any window so far
        # Whether training losses, and validations, are to be compared with those of the training before.
        before = ms.checkpoint.facts if ms.checkpoint else {}
        self.issamedropout = before.get('hyper', {}).get('dropout') == ms.hyper.dropout
        self.issametext = bool(ms.heldout) or all(before.get('run', {}).get(name) == getattr(run, name)
                                                       for name in ('batchsize', 'valid_len'))
        self.unchecked = 0              # characters since the gates were looked at

    def step(self, clipped: float, learnrate: float) -> None:
        """A step was made: the share of its gradient that was clipped, its learning rate."""
        if report.verbose:
            self.clipped.append(clipped)
            self.learnrate = learnrate

    def round(self, validation: float, losses: Sequence[float]) -> str | None:
        """A round has ended with this validation loss and these losses of its steps: the most important advice, one line, or None."""
        clipped, self.clipped = float(np.mean(self.clipped or [0])), []
        if not report.verbose or not losses:
            return None
        if self.points is None:
            self.points = self._former()
            if self.points and self.issamedropout and math.isfinite(self.points[-1].train):
                self.lowest = self.points[-1].train
            self.text = Text.of(self.ms.data.codes, len(self.ms.charset))
        model = self.ms.model
        steps = model.updates - (self.points[-1].updates if self.points else self.start)
        train = _recent(losses)
        self.points.append(Point(model.updates, model.pos, validation, train, steps, self.learnrate))
        self.unchecked += len(losses) * self.run.batchsize * self.ms.data.seq_len
        # Units that are stuck from the first step on also make the loss stay where it is, and jump.
        found = self._stuck() if self._isalike else None
        found = (found or self._toohigh(losses, clipped) or self._overfitting(losses) or self._bent(losses) or self._stuck()
                 or self._toolow(losses, clipped))
        self.lowest = min(self.lowest, _lowestwindow(losses))
        return self._news(found)

    def _news(self, found):
        """The line of (kind, severity, line), unless it was said in the last rounds and things are not clearly worse now; None for None.

        Rounds count across trainings: a person often asks for one at a time.
        """
        said = self.ms.advised
        now = said['rounds'] = said.get('rounds', 0) + 1
        if found is None:
            return None
        kind, severity, line = found
        before, worst = said.get(kind, (-AGAIN, 0.0))
        if now - before < AGAIN and severity < 1.5 * worst + 0.05:
            return None
        said[kind] = now, severity
        return line

    def _former(self):
        """The Points of earlier trainings, newest last; none where there is no history that can be read."""
        try:
            rows = history.rounds(self.ms.workdir.path, WINDOW)
        except (OSError, WorkDirError):
            return []
        points, before = [], 0
        for updates, position, validation, losses, learnrate in rows:
            points.append(Point(updates, position, validation, _recent(losses), updates - before, learnrate))
            before = updates
        return [point for point in points if point.updates <= self.start]

    @property
    def _noise(self):
        return NOISE / math.sqrt(self.run.batchsize * self.ms.data.seq_len)

    @property
    def _isalike(self):
        """Whether the rows of so many characters were drawn too much alike."""
        return len(self.ms.charset) >= MANY and self.ms.hyper.init != 'lookup'

    def _isfading(self):
        """Whether a schedule has taken the rate far below what was asked for: what its end looks like is meant so."""
        return self.learnrate < 0.5 * self.ms.hyper.learnrate

    def _toohigh(self, losses, clipped):
        found = toohigh(losses, self._noise, self.text, self.lowest, clipped, self.run.batchsize, self.points[-1].validation)
        if found is None or self._isfading() and found[0] < 1:
            return None
        return self._ratetoohigh(*found, clipped)

    def _ratetoohigh(self, severity, what, clipped):
        rate = self.ms.hyper.learnrate
        often = f', {clipped:.0%} of steps clipped' if clipped > 0.5 else ''
        isworse = self.points[-1].validation > 0.1 + min((point.validation for point in self.points[:-1]), default=math.inf)
        back = "ms.restore('best'), then " if isworse else ''          # first, since it brings that one's learnrate
        return 'high', severity, (f'Learning rate too high: {what}{often}: {back}try ms.hyper.learnrate = '
                                  f'{_rounded(rate / (10 if severity > 5 else 3))} (now {rate:g}).')

    def _overfitting(self, losses):
        ms, run, now = self.ms, self.run, self.points[-1]
        if ms.model.characters < ms.data.numchars:      # nothing was read twice: what rises then tells of other text
            return None
        isall = ms.heldout or run.valid_len >= ms.data.batchepoch(run.batchsize)
        # Without a held-out part, validations are on other text each, but for those at the same place of the epochs.
        points = [point for point in self.points
                  if (isall or point.position == now.position) and (self.issametext or point.updates > self.start)]
        chars = ms.heldout.numchars if ms.heldout else run.valid_len * run.batchsize * ms.data.seq_len
        found = overfitting(points, chars, run.batchsize, scatter(losses))
        if found is None:
            return None
        rounds, rise = found
        dropout = ms.hyper.dropout
        better = f'dropout={min(dropout + 0.1, 0.5) if dropout else 0.2:g}' if dropout < 0.5 else 'a smaller network or less time'
        return 'over', rise, (f'Over-fitting: validation has risen for {report.counted(rounds, "round")}, {rise:.2f} above the best, '
                              f"while training fell: ms.restore('best'), then try {better}{' (ms.hyper.dropout)' * (dropout < 0.5)}.")

    def _bent(self, losses):
        """Of a text that this run won't read to its end few places are read: the network follows those, and knows the rest the less."""
        ms, run, now = self.ms, self.run, self.points[-1]
        gap, ahead = now.validation - now.train, (run.steps - run.done) * run.batchsize * ms.data.seq_len
        if not ms.heldout or ms.model.characters + ahead >= ms.data.numchars:
            return None
        if run.rounds == 1 and not run.bestlast:        # a person who asks for one round at a time may still come to the end
            return None
        if run.batchsize >= FEWROWS or len(losses) < WINDOW or gap < BENT:
            return None
        if unlike(ms.data.codes, ms.heldout.codes, len(ms.charset)):    # which was told before training
            return None
        return 'bent', gap, (f'Few rows: validation is {gap:.2f} above training, of a text too long to be read to its end: the network '
                             f'bends to the {report.counted(run.batchsize, "place")} that it reads. Try batchsize={4 * run.batchsize}.')

    def _stuck(self, isurgent=False):
        """isurgent: whether it is worth its time, however short the round was."""
        ms, model = self.ms, self.ms.model
        count = GATECHARS if isurgent else min(GATECHARS, int(self.unchecked * GATESHARE))
        if count < GATECHARS // 2:
            return None
        x, _ = ms.data.batch(model.pos, self.run.batchsize)
        rows = min(max(count // len(x), 1), x.shape[1])
        if x[:count, :rows].size < GATECHARS // 2:
            return None
        self.unchecked = 0
        layers = gates(model, x[:count, :rows], model.get_state()[:, :rows], compiled=False)
        shares = [(layer.stuck.mean(), l, layer) for l, layer in enumerate(layers)]
        share, l, layer = max(shares, key=lambda each: each[0])
        if share <= STUCK:
            return None
        kinds = {'update gate is always 1 (state never changes)': (layer.zopen == 1).sum(),
                 'update gate is always 0 (nothing remembered)': (layer.zshut == 1).sum(),
                 'state never varies': (layer.spread < STILL).sum()}
        better = (f"of {len(ms.charset):,} different characters a new model with init='lookup' learns more."
                  if self._isalike else
                  f'ms.restore(name) an earlier checkpoint and lower ms.hyper.learnrate ({ms.hyper.learnrate:g}).')
        return f'gates {l}', float(share), f'Stuck units: {share:.0%} of layer {l}, whose {max(kinds, key=kinds.get)}: {better}'

    def _toolow(self, losses, clipped):
        ms, rate = self.ms, self.ms.hyper.learnrate
        steps = 0
        for point in reversed(self.points):             # at the present rate; in this training a warm-up may have led to it
            if point.updates <= self.start and not math.isclose(point.learnrate, rate, rel_tol=1e-6):
                break
            steps += point.steps
        # What shrinks the weights, or a network of hardly any units, holds the loss up as well.
        if self._isfading() or ms.hyper.state_size < 4 or ms.hyper.regcost > 0.01 * self.run.batchsize * ms.data.seq_len:
            return None
        level = min(self.points[-1].train, self.points[-1].validation)
        bound = toolow(steps, level, self.text)
        if bound is None or scatter(losses) > 2 * self._noise:
            return None
        line = f'after {steps:,} steps the loss is {level:.2f}; {bound}'
        # Too high a rate may end at the same loss. All optimizers but SGD move a weight by about the rate a step: how many times its own
        # size, 1 / sqrt(H), it can have moved. Runs that learn have 3 to 30; those that only need more have less, ruined ones more.
        reach = 0.0 if ms.hyper.optimizer == 'sgd' else rate * math.sqrt(ms.hyper.state_size) * PATIENT
        if found := self._stuck(isurgent=True):
            return found
        if reach > 30:
            return self._ratetoohigh(0.0, line, clipped)
        if reach > 10:
            return None
        better = (f'try a larger ms.hyper.clip ({ms.hyper.clip:g}), which binds {clipped:.0%} of the steps' if clipped > 0.5 else
                  f'try ms.hyper.learnrate = {_rounded(rate * (10 if level > self.text.letters + 0.1 else 3))} (now {rate:g})')
        return 'low', 0.0, f'Learning slowly: {line}: {better}.'


def toohigh(losses: Sequence[float] | np.ndarray, noise: float, text: Text, lowest: float, clipped: float, rows: int,
            validation: float) -> tuple[float, str] | None:
    """(severity, what was seen, in words) where a round's losses are those of too high a rate, else None.

    noise: a step's in a healthy run; text: the Text; lowest: mean loss of the best window before the round; clipped: share of clipping
    in it; rows: B; validation: the loss behind it.
    """
    losses = np.asarray(losses, np.float64)
    if len(losses) < 20:
        return None
    train = float(np.median(losses[-min(WINDOW, len(losses) // 2):]))
    level = min(train, validation)          # dropout makes the first the higher one, and is no fault
    # Worse than knowing nothing: confidently wrong. An untrained network lies within 0.1 of it.
    if level > text.uniform + 0.3:
        return level - text.uniform, f'loss {level:.4g} is worse than guessing ({text.uniform:.2f})'
    # Where gradients are clipped most of the time, as a small `clip` may have it too, less of each sign is enough.
    ease = 0.5 if clipped > 0.5 else 1.0
    # Healthy runs scatter by 0.7 to 1.2 of the noise, whatever the optimizer.
    jumps = scatter(losses)
    if level > text.letters + 0.1 and jumps > (1 + ease) * noise:
        return jumps, f'the loss jumps by {jumps:.2f} from step to step and stays at {level:.2f}'
    # Another part of the text may well be harder: the fewer rows read side by side, the more so.
    lowest = min(lowest, _lowestwindow(losses))
    if train - lowest > 0.3 * ease + 1.5 / math.sqrt(rows) + noise:
        return train - lowest, f'the loss has risen from {lowest:.2f} to {train:.2f}'
    # Single spikes come in healthy runs, 0.3 high in batches of 400 characters, and several where few rows come to text of another kind.
    blocks = losses[:len(losses) // 20 * 20].reshape(-1, 20)
    spikes = int((blocks[1:] - np.median(blocks, axis=1)[:-1, None] > 0.5 * ease + 5 * noise + 1.5 / math.sqrt(rows)).sum())
    if spikes >= max(3, 0.02 * len(losses)):
        return spikes / len(losses), f'the loss leaps up again and again ({spikes} times in {len(losses):,} steps)'
    return None


def overfitting(points: Sequence[Point], chars: int, rows: int, scatter: float) -> tuple[int, float] | None:
    """(rounds, rise above the best) where validation has risen since its best while training fell, else None.

    points: comparable Points, oldest first; chars: of a validation; rows: B; scatter: of a step's loss.
    """
    at = min(range(len(points)), key=lambda i: points[i].validation)
    best, later = points[at], points[at + 1:]
    if not later:
        return None
    now = later[-1]
    # Two networks of the same quality differ on so many characters by about half a nat / sqrt(chars); a plateau wavers by 0.02, and
    # the fewer rows are read side by side, the more a network leans to the text that it has just read.
    margin = 0.02 + 1 / math.sqrt(chars) + 0.1 / math.sqrt(rows)
    rise = now.validation - best.validation
    # One round is enough where it brought far more: it may have been many epochs.
    hasrisen = (rise > margin and later[-2].validation - best.validation > margin / 3 if len(later) > 1
                else rise > 0.1 + 5 * margin)
    fell = best.train - now.train > max(min(0.02, 0.1 * best.train), 3 * scatter / math.sqrt(WINDOW))
    return (len(later), rise) if hasrisen and fell else None


def toolow(steps: int, level: float, text: Text) -> str | None:
    """What the network does not know yet, in words, though after so many steps of its rate it should; None where it does or may.

    level: its loss; text: the Text. In a text whose pairs of letters tell nothing there is nothing to say.
    """
    gap = text.letters - text.pairs
    if gap < 0.2 or steps < PATIENT:
        return None
    if level > text.letters - 0.1 * gap:
        return f'letter frequencies give {text.letters:.2f}'
    if steps >= 2000 and level > text.letters - 0.5 * gap:
        return f'pairs of letters give {text.pairs:.2f}'
    return None


def scatter(losses: Sequence[float] | np.ndarray) -> float:
    """How much a step's loss differs from its neighbours', as a standard deviation that neither a trend nor single leaps move."""
    return float(np.median(np.abs(np.diff(losses))) * 1.4826 / math.sqrt(2)) if len(losses) > 1 else 0.0


def _lowestwindow(losses: Sequence[float] | np.ndarray) -> float:
    """The lowest mean of a tenth of the round, of 10 steps at least; infinity where there are fewer."""
    size = max(len(losses) // 10, 10)
    sums = np.cumsum([0.0, *losses])
    return float((sums[size:] - sums[:-size]).min() / size) if len(losses) >= size else math.inf


def _recent(losses):
    return float(np.mean(losses[-WINDOW:])) if len(losses) else math.nan


def _rounded(rate):
    """To one digit, as a person would type it."""
    return f'{float(f"{rate:.1g}"):g}'
