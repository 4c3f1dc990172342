"""Text in a terminal, each character in a colour of its own: colour maps, which colours a terminal has, rows.

The maps are of one hue for amounts and of two, blue and orange, for what has a sign; both are told apart by colour-blind readers (end
colours as in Okabe and Ito 2008, Color Universal Design), and grow steadily stronger against the background.
"""

import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, TextIO

from terminal import BASE, encodable, glyph, isterminal

STACKED = 30            # combining marks on a character, as in Unicode's Stream-Safe Text Format (UAX 15)


class Scale(NamedTuple):
    """A colour map in steps. Level 0 has the ground's colour.

    low, high   its lowest and highest level
    dark, light colours on a dark and on a light background: of the background itself, of `low` and of `high`, (R, G, B) each
    marks       dict of level -> the sign that stands for it where there are no colours
    """

    low: int
    high: int
    dark: tuple
    light: tuple
    marks: dict

    def colour(self, level: int, isdark: bool | None = True) -> tuple:
        """(R, G, B) of a level; isdark None: on a dark ground of its own."""
        ground, low, high = self.light if isdark is False else self.dark
        share = level / (self.high if level > 0 else self.low or 1)
        share = 0.12 + 0.88 * share if level else 0
        return tuple(round(a + (b - a) * share) for a, b in zip(ground, high if level > 0 else low))


AMOUNT = Scale(0, 8, ((24, 26, 31), (24, 26, 31), (255, 180, 20)), ((255, 255, 255), (255, 255, 255), (228, 120, 15)),
               {level: str(level) for level in range(1, 9)})
SIGNED = Scale(-9, 9, ((24, 26, 31), (86, 180, 233), (255, 165, 20)), ((255, 255, 255), (0, 114, 178), (228, 120, 15)),
               {level: str(level) if level > 0 else chr(ord('a') - level - 1) for level in range(-9, 10) if level})


def ink(colour: tuple) -> tuple:
    """(R, G, B) of text on that colour, black or white: whichever has more contrast (WCAG 2, relative luminance)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


# ---- the colours that a terminal has

def depth(file: TextIO | None = None) -> int:
    """Colours that a file shows: 24 (bits) or 8 on a terminal that says so in COLORTERM or TERM, 0 elsewhere and where NO_COLOR is set
    (no-color.org)."""
    file, term = file or sys.stdout, os.environ.get('TERM', '')
    if not isterminal(file) or os.environ.get('NO_COLOR') or term in ('', 'dumb'):
        return 0
    if os.environ.get('COLORTERM', '') in ('truecolor', '24bit') or term.endswith('-direct'):
        return 24
    return 8 if '256color' in term else 0


def isdark() -> bool | None:
    """Whether the terminal's background is dark, as COLORFGBG says where a terminal sets it; None: it doesn't say."""
    ground = os.environ.get('COLORFGBG', '').rpartition(';')[2]
    return ground not in ('7', '15') if ground.isdecimal() else None


def _paint(text: str, colour: tuple, bits: int) -> str:
    """`text` on a background (R, G, B) in so many bits of colour, with an ink that it can be read in."""
    if bits == 24:
        codes = ';'.join(f'{which};2;{r};{g};{b}' for which, (r, g, b) in ((48, colour), (38, ink(colour))))
    else:
        nearest = of256(colour)
        codes = f'48;5;{nearest};38;5;{16 if ink(colour) == (0, 0, 0) else 231}'
    return f'\x1b[{codes}m{text}\x1b[0m'


@lru_cache(None)
def of256(colour: tuple) -> int:
    """The nearest of xterm's 256 colours that all such terminals share: a cube of 6 x 6 x 6 and 24 greys."""
    steps = 0, 95, 135, 175, 215, 255
    table = {16 + 36 * r + 6 * g + b: (steps[r], steps[g], steps[b]) for r in range(6) for g in range(6) for b in range(6)}
    table.update({232 + i: (8 + 10 * i,) * 3 for i in range(24)})
    return min(table, key=lambda i: sum((a - b) ** 2 for a, b in zip(table[i], colour)))


# ---- rows

def rows(text: str, levels: Iterable[int], scale: Scale, columns: int, bits: int, encoding: str = 'utf-8') -> list[str]:
    """The rows of a terminal, a list of str, that show a text with a level, an integer, for each character.

    Line ends are shown, and lines wrapped at so many columns. With colours (bits 8 or 24) each character stands on that of its level;
    without, a row of the scale's marks stands under each row that has any.
    """
    lines, row, used, dark = [], [], 0, isdark()

    def close():
        nonlocal row, used
        lines.extend(_row(row, scale, bits, dark))
        row, used = [], 0

    for char, level in zip(text, levels):
        sign, size = glyph(char)
        if encodable(sign, encoding) != sign:
            sign, size = encodable(sign, encoding), 1
        if size == 0 and (not row or len(row[-1][0]) > STACKED):            # nothing that it could stand on
            sign, size = BASE + sign, 1
        if used + size > columns:
            close()
        if size == 0:
            row[-1] = row[-1][0] + sign, *row[-1][1:]
        else:
            row.append((sign, int(level), size))
        used += size
        if char == '\n':
            close()
    if row:
        close()
    return lines


def _row(row, scale, bits, dark):
    if not bits:
        marks = ''.join(scale.marks.get(level, ' ').ljust(size) for _, level, size in row).rstrip()
        return [''.join(sign for sign, _, _ in row)] + [marks] * bool(marks)
    parts, start = [], 0
    for i in range(1, len(row) + 1):
        if i == len(row) or row[i][1] != row[start][1]:
            run = ''.join(sign for sign, _, _ in row[start:i])
            parts.append(_onground(run, scale, row[start][1], bits, dark))
            start = i
    return [''.join(parts)]


def _onground(text, scale, level, bits, dark):
    """`text` in its level's colour. Level 0 is the terminal's own ground, but where nobody knows whether that is dark, a dark one: on a
    light terminal the faintest shades of a dark map would stand out most."""
    return _paint(text, scale.colour(level, dark), bits) if level or dark is None else text


def legend(scale: Scale, labels: dict[int, str], bits: int) -> str:
    """One line of a dict of level -> label, each label in its level's colour, of so many bits, 8 or 24."""
    dark = isdark()
    return ''.join(_onground(f' {label} ', scale, level, bits, dark) for level, label in labels.items())
