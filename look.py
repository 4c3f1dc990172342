"""What a text looks like with a network's eyes: objects that show `inside`'s numbers in the shell, in a notebook, and as a page.

In a shell they show themselves, in as many colours as the terminal has; `.show()` prints a long text whole, `.html(path)` writes a page.
"""

import os
import pathlib
import sys
from typing import TYPE_CHECKING

import numpy as np

import colours
import inside
import page
import report
from colours import AMOUNT, SIGNED
from errors import checkint, checkpath, checktext, short
from inside import GateValues
from reading import Score
from storage import Staged
from terminal import encodable, fitting, glyph, shown, width

if TYPE_CHECKING:
    from model import ModelState

SHOWN = 4000                # characters of a long text that the shell shows by itself
LISTED = 5                  # surprising characters that are listed
CONTEXT = 16                # characters before one of them


class Paged:
    """The base of what can be written as a page."""

    def html(self, path: str | os.PathLike) -> None:
        """Write a page to look at in a browser, one file that needs no
        network: .html or .htm, replacing what is there. A character's
        numbers appear under the pointer, or as the arrow keys walk
        through the text.

        Raises ValueError for another kind of name, and where the page
        would be too large; OSError where the disk refuses, and then what
        was there stays.
        """
        path = checkhtml(path)
        data = self._page().encode()
        try:
            with Staged(path) as staged:
                staged.file.write(data)
                staged.publish()
        except OSError as error:                # of a file beside it, that nobody asked for
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        report.say(f"Wrote '{path}', {len(data) / 1e6:,.1f} MB.")

    def _page(self) -> str:
        """What stands in it."""
        raise NotImplementedError


def checkhtml(path: str | os.PathLike) -> pathlib.Path:
    """The pathlib.Path of a page to write; TypeError, ValueError or OSError in one sentence where none can be written there."""
    path = pathlib.Path(checkpath('path', path))
    if path.suffix.lower() not in ('.html', '.htm'):
        raise ValueError(f'path takes a name that ends in .html, got {short(os.fspath(path))}')
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory '{path.parent}' for the page: make it first")
    if path.exists() and not path.is_file():
        raise OSError(f"'{path}' is no regular file: name another one for the page")
    return path


class Look(Paged):
    """The base of what shows a text in colours, with a few lines above and below it."""

    text: str
    _scale, _inhtml = AMOUNT, 'Each shade is a bit of surprise, half as likely as the one before, up to 8 bits.'

    def show(self, start: int = 0, stop: int | None = None) -> None:
        """Print the text in colours, or its part from character `start` to
        before `stop`, from 0; None: its end. Raises ValueError beyond it."""
        length = len(self.text)
        start, stop = checkint('start', start, 0, length), length if stop is None else checkint('stop', stop, 0, length)
        print(self._shown(start, max(stop, start)))

    def __repr__(self) -> str:
        return self._shown(0, min(SHOWN, len(self.text)))

    def _shown(self, start, stop):
        bits, encoding = colours.depth(), getattr(sys.stdout, 'encoding', None) or 'utf-8'
        lines = [fitting(line) for line in self._above()]
        lines += colours.rows(self.text[start:stop], self._levels()[start:stop], self._scale, width(), bits, encoding)
        left = len(self.text) - stop
        if left > 0 and stop > start:
            following = min(2 * stop - start, len(self.text))
            lines.append(fitting(f"... and {left:,} characters more: .show({stop}, {following}) goes on, .show() prints all, "
                                 ".html('page.html') makes a page."))
        lines += [self._key(bits), *self._below(encoding)]
        return encodable('\n'.join(lines), encoding)

    def _repr_html_(self):
        """What a Jupyter notebook shows: no script, a character's numbers under the pointer."""
        text = self.text[:SHOWN]
        more = len(self.text) - len(text)
        return page.snippet([*self._above(), *([f'The first {SHOWN:,} characters of {len(self.text):,}:'] if more else [])], text,
                            self._levels()[:SHOWN], self._scale, self._titles(SHOWN), [self._inhtml, *self._below('utf-8')])


class Surprise(Score, Look):
    """How surprising each character of a text was: .nats and .bits per
    character, .shares, each character's, (len(text),) float64 nats, and
    what was likelier there, .alternatives(i).

    Shown in colours, a shade for each bit, so that each shade is half as
    likely as the one before; below, the most surprising characters with
    what was likeliest in their place. .show(), .html(path).
    """

    def __init__(self, reading: inside.Reading, about: str) -> None:
        """For ModelState.surprise(), which see."""
        super().__init__(reading.shares)
        self.text, self._reading, self._about = reading.text, reading, about

    def alternatives(self, i: int) -> list[tuple[str, float]]:
        """The likeliest characters in the place of character i, from 0: a
        list of at most 5 of (character, probability)."""
        i, read = checkint('i', i, 0, len(self.text) - 1), self._reading
        return [(read.chars[at], float(chance)) for at, chance in zip(read.likeliest[i], read.chances[i])]

    __repr__ = Look.__repr__

    def _levels(self):
        return np.minimum(self.shares / np.log(2), AMOUNT.high).astype(int).clip(0)

    def _above(self):
        return [Score.__repr__(self)]

    def _key(self, bits):
        labels = {0: 'under 1', **{level: str(level) for level in range(1, 8)}, 8: '8 and more'}
        if not bits:
            return fitting('The digit under a character: its surprise in whole bits, 8 for all above; none: under 1.')
        return 'In bits, each shade half as likely: ' + colours.legend(AMOUNT, labels, bits)

    def _below(self, encoding):
        worst = [i for i in np.argsort(-self.shares, kind='stable')[:LISTED] if self.shares[i] >= np.log(2)]
        lines = ['Most surprising, and what was likeliest there:'] if worst else []
        for i in worst:
            line, before = self.text.count('\n', 0, i) + 1, self.text[max(i - CONTEXT, 0):i]
            before = ''.join(glyph(char)[0] for char in before)
            what = f'  {shown(self.text[i], encoding)} {self.shares[i]:.2f} nats, line {line:,}' + f' behind "{before}"' * bool(before)
            lines.append(fitting([what + ':', *self._likelier(i, encoding)]))
        return lines

    def _likelier(self, i, encoding='utf-8'):
        """Words for the likeliest characters there, each with its comma."""
        words = [f'{shown(char, encoding)} {_share(chance)}' for char, chance in self.alternatives(i)]
        return [f'{word},' for word in words[:-1]] + words[-1:]

    def _titles(self, count):
        return [f'{shown(char)} {nats:.2f} nats ({nats / np.log(2):.2f} bits, {_share(np.exp(-nats))}); likeliest: '
                + ' '.join(self._likelier(i))
                for i, (char, nats) in enumerate(zip(self.text[:count], self.shares))]

    def _page(self):
        return page.page('Surprise', [self._about, Score.__repr__(self)], self.text, self._reading)


class Neurons(Look):
    """The neurons along a text: .states (layer, neuron, character),
    float32 from -1 to 1, and one of them in colours: .layer, .neuron,
    .values (len(text),), and .follows, the inside.Found of what it
    follows, or None.

    Blue: negative, orange: positive. .show(), .html(path): there any
    other one can be chosen, and each character's surprise looked at.
    """

    _scale, _inhtml = SIGNED, 'Blue: down to -1, orange: up to 1.'

    def __init__(self, reading: inside.Reading, about: str, layer: int | None = None, neuron: int | None = None) -> None:
        """For ModelState.neurons(), which see."""
        self.text, self.states, self._reading, self._about = reading.text, reading.states, reading, about
        L, _, T = self.states.shape
        self.found, self.nothing, self.leftout = inside.find(self.states, self.text) if T >= inside.SHORTEST else ([], [], [])
        if neuron is None:
            best = [each for each in self.found if layer in (None, each.layer)]
            layer = best[0].layer if best else L - 1 if layer is None else layer
            neuron = best[0].neuron if best else int(self.states[layer].std(1).argmax())
        self.layer, self.neuron = L - 1 if layer is None else layer, neuron
        self.follows = next((each for each in self.found if each[1:3] == (self.layer, self.neuron)), None)

    @property
    def values(self) -> np.ndarray:
        """The neuron's state behind each character, (len(text),) float32."""
        return self.states[self.layer, self.neuron]

    def _levels(self):
        return np.rint(self.values * SIGNED.high).astype(int)

    def _above(self):
        follows = f'; it follows {self.follows.property!r}, r = {self.follows.r:.2f}' if self.follows else ''
        return [f'Layer {self.layer}, neuron {self.neuron}: from {self.values.min():.2f} to {self.values.max():.2f}{follows}.']

    def _key(self, bits):
        if not bits:
            return fitting('The sign under a character: the neuron in tenths, 1 to 9 above zero, a to i (-0.1 to -0.9) below; '
                           'none: nearly zero.')
        labels = {-9: '-1', -7: '', -4: '-0.5', -2: '', 0: '0', 2: '', 4: '0.5', 7: '', 9: '1'}
        return 'The neuron: ' + colours.legend(SIGNED, labels, bits)

    def _below(self, encoding):
        return []

    def _titles(self, count):
        return [f'{shown(char)} {value:.2f}' for char, value in zip(self.text[:count], self.values)]

    def _page(self):
        groups = [page.Group(f'layer {l}', SIGNED, states) for l, states in enumerate(self.states)]
        return page.page('Neurons', [self._about], self.text, self._reading, groups, self.found, (self.layer, self.neuron))


class FoundNeurons(list[inside.Found], Paged):
    """Neurons that follow something a person can name, strongest first: a
    list of inside.Found (.property, .layer, .neuron, .r, .chosenby,
    .chance), that the shell shows as a table. .html(path) writes the page
    of Neurons.

    .nothing    what no neuron follows, better than by chance
    .leftout    what the text has too little of to tell
    """

    def __init__(self, neurons: Neurons) -> None:
        """For ModelState.findneurons(), which see."""
        super().__init__(neurons.found)
        self._neurons, self.nothing, self.leftout = neurons, neurons.nothing, neurons.leftout

    def _rest(self):
        lines = ['Nothing stands out.'] * (not self)
        if self.nothing:
            lines.append(f'No better than by chance: {", ".join(self.nothing)}.')
        if self.leftout:
            lines.append(f'Too little in this text to tell: {", ".join(self.leftout)}.')
        return lines

    def __repr__(self) -> str:
        lines = ['layer neuron      r  by chance  follows'] * bool(self)
        lines += [f'{each.layer:5} {each.neuron:6} {each.r:6.2f} {each.chance:10.2f}  {each.property}' for each in self]
        return '\n'.join(lines + [fitting(line) for line in self._rest()] + [
            "r: correlation over the text's second half, of neurons chosen by its first half."] * bool(self) + [
            f'ms.neurons(text, {each.layer}, {each.neuron}) shows the first one in the text.' for each in self[:1]])

    def _repr_html_(self):
        """What a Jupyter notebook shows."""
        rows = [[each.layer, each.neuron, f'{each.r:.2f}', f'{each.chance:.2f}', each.property] for each in self]
        return page.table(['layer', 'neuron', 'r', 'by chance', 'follows'], rows, self._rest())

    def _page(self):
        return self._neurons._page()


class Gates(GateValues, Paged):
    """The gates along a text: .z and .r, update and reset gates, float32
    (layer, unit, character) from 0 to 1, and how often they are
    saturated.

    Shown as a table: shares of characters and units at which a gate is
    below 0.1 (shut) and above 0.9 (open), a histogram from 0 to 1, and
    how many units are so at nine characters of ten. .saturated(),
    .histogram(), and .html(path): each unit's gates along the text.
    """

    def __init__(self, values: GateValues, text: str, about: str) -> None:
        """For ModelState.gates(), which see."""
        super().__init__(values.z, values.r)
        self.text, self._about = text, about

    def _table(self):
        (opened, shut), bars = self.saturated(), self.histogram()
        for l in range(len(self.z)):
            for g, gate in enumerate('zr'):
                yield (l, gate, shut[l, g].mean(), bars[l, g], opened[l, g].mean(), (shut[l, g] > 0.9).sum(), (opened[l, g] > 0.9).sum())

    def __repr__(self) -> str:
        lines = ['layer gate  below 0.1  0 to 1      above 0.9  units nearly always shut, open']
        lines += [f'{l:5} {gate:4} {shut:10.1%}  {_bars(tenths)} {opened:10.1%} {always:11,} {alwaysopen:6,}'
                  for l, gate, shut, tenths, opened, always, alwaysopen in self._table()]
        return encodable('\n'.join([*lines, *map(fitting, self.MEANING)]), getattr(sys.stdout, 'encoding', None) or 'utf-8')

    MEANING = ['z, update gate: near 1 a unit keeps its state, near 0 it takes the new one.',
               'r, reset gate: near 1 the new one is made with the states before, near 0 without.']

    def _repr_html_(self):
        """What a Jupyter notebook shows."""
        rows = [[l, gate, f'{shut:.1%}', _bars(tenths), f'{opened:.1%}', always, alwaysopen]
                for l, gate, shut, tenths, opened, always, alwaysopen in self._table()]
        return page.table(['layer', 'gate', 'below 0.1', '0 to 1', 'above 0.9', 'units nearly always shut', 'open'], rows, self.MEANING)

    def _page(self):
        groups = []
        for l in range(len(self.z)):
            for called, gate in (f'layer {l}, update gate z', self.z[l]), (f'layer {l}, reset gate r', self.r[l]):
                groups += [page.Group(called + ', mean', AMOUNT, gate.mean(0, keepdims=True)), page.Group(called, AMOUNT, gate)]
        return page.page('Gates', [self._about, *self.MEANING], self.text, groups=groups)


def _share(chance: float) -> str:
    """A probability as '61 %', '0.3 %', 'under 0.1 %' or 'over 99.9 %'."""
    if not 0.001 <= chance <= 0.999:
        return 'under 0.1 %' if chance < 0.5 else 'over 99.9 %'
    return f'{100 * chance:.{0 if 0.0095 <= chance <= 0.9905 else 1}f} %'


def _bars(tenths: np.ndarray) -> str:
    """A histogram as a word: a column for each share, the largest full."""
    highest = max(tenths) or 1
    return ''.join('▁▂▃▄▅▆▇█'[min(int(each / highest * 8), 7)] for each in tenths)


# ---- for ModelState

def surprise(ms: 'ModelState', text: str) -> Surprise:
    """The Surprise of `ModelState.surprise`."""
    return Surprise(inside.read(ms, text), _about(ms))


def neurons(ms: 'ModelState', text: str, layer: int | None = None, neuron: int | None = None) -> Neurons:
    """The Neurons of `ModelState.neurons`."""
    checktext('text', text)
    layer = None if layer is None else checkint('layer', layer, 0, ms.hyper.layers - 1)
    neuron = None if neuron is None else checkint('neuron', neuron, 0, ms.hyper.state_size - 1)
    return Neurons(inside.read(ms, text, states=True), _about(ms), layer, neuron)


def findneurons(ms: 'ModelState', text: str) -> FoundNeurons:
    """The FoundNeurons of `ModelState.findneurons`."""
    if len(checktext('text', text)) < inside.SHORTEST:
        raise ValueError(f'findneurons takes a text of {inside.SHORTEST} characters at least, got {len(text)}: some thousands tell more')
    return FoundNeurons(neurons(ms, text))


def gates(ms: 'ModelState', text: str) -> Gates:
    """The Gates of `ModelState.gates`."""
    return Gates(inside.gatevalues(ms, text), text, _about(ms))


def _about(ms: 'ModelState') -> str:
    """One line on the model, for a page."""
    loss = f', loss {ms.checkpoint.loss:.4f}' if ms.checkpoint else ''
    return f'{ms._describe()}{loss}'
