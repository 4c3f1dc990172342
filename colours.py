"""Text in a terminal, each character in a colour of its own: colour maps, what a terminal can show, signs for what can't be shown, rows.

The maps are of one hue for amounts and of two, blue and orange, for what has a sign; both are told apart by colour-blind readers (end
colours as in Okabe and Ito 2008, Color Universal Design), and grow steadily stronger against the background.
"""

import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, TextIO

LINEEND, TAB, UNSHOWN, BASE = '\u21b5', '\u21e5', '\ufffd', '\u25cc'
INPLAIN = {LINEEND: '$', TAB: '>', BASE: ''}      # where an output's encoding lacks them; '?' for others
NARROWEST = 20
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


# ---- what a terminal can show

def isterminal(file: TextIO | None) -> bool:
    """Whether a file is a terminal."""
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError):            # an object of somebody's own, a closed file
        return False


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


def width() -> int:
    """The terminal's columns, 80 where there is none."""
    return max(shutil.get_terminal_size().columns, NARROWEST)


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


# ---- characters

@lru_cache(1 << 16)
def glyph(char: str) -> tuple[str, int]:
    """(what to show for a character, its columns).

    Control characters get their control picture; what is no character, and what would change how others are shown (directions, joiners,
    selectors, ends of paragraphs), U+FFFD. Neither reaches a terminal or a page as it is.
    """
    code, category = ord(char), unicodedata.category(char)
    if char == '\n':
        return LINEEND, 1
    if char == '\t':
        return TAB, 1
    if code < 0x20:
        return chr(0x2400 + code), 1
    if code == 0x7f:
        return '\u2421', 1
    if category in ('Cc', 'Cf', 'Cs', 'Cn', 'Zl', 'Zp') or 0xfe00 <= code <= 0xfe0f or 0xe0100 <= code <= 0xe01ef:
        return UNSHOWN, 1
    if category in ('Mn', 'Me') or 0x1160 <= code <= 0x11ff:
        return char, 0
    return char, 2 if unicodedata.east_asian_width(char) in 'WF' else 1


def name(char: str) -> str:
    """'U+000A line feed', say: what a character is called."""
    called = unicodedata.name(char, '') or CONTROLS.get(char) or {'Cc': 'control character', 'Cs': 'surrogate', 'Co': 'private use'}.get(
        unicodedata.category(char), 'unassigned')
    return f'U+{ord(char):04X} {called.lower()}'


CONTROLS = {'\0': 'null', '\t': 'tab', '\n': 'line feed', '\r': 'carriage return', '\x1b': 'escape', '\x7f': 'delete'}


def shown(char: str, encoding: str = 'utf-8') -> str:
    """A character as it stands within a sentence: 'a', '\u21b5', or with its number where it can't be seen."""
    sign, columns = glyph(char)
    if sign == UNSHOWN and char != UNSHOWN or char.isspace() and char not in ' \n\t':
        return f'U+{ord(char):04X}'
    sign = encodable(BASE + sign if columns == 0 else sign, encoding)
    return f"'{sign}'"


def encodable(text: str, encoding: str) -> str:
    """`text` with other signs in place of those that the encoding lacks."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return ''.join(_encodable(char, encoding) for char in text)


def _encodable(char, encoding):
    try:
        char.encode(encoding)
        return char
    except UnicodeEncodeError:
        return INPLAIN.get(char, '?')


# ---- rows

def span(text: str) -> int:
    """The columns that a text of one line takes."""
    return sum(glyph(char)[1] for char in text)


def fitting(text: str | list[str]) -> str:
    """Words, a str or a list of parts that stay whole, as standard output takes them: `folded` where that is a terminal."""
    columns = width() if isterminal(sys.stdout) else math.inf
    return folded(text, columns) if isinstance(text, str) else '\n'.join(_fitted(text, columns, 4 * ' '))


def folded(text: str, columns: float) -> str:
    """`text` with each line of more than so many columns broken at blanks, its rest indented by two more; a longer word stays whole."""
    rows = []
    for line in text.split('\n'):
        first, *words = line.lstrip(' ').split(' ')
        indent = line[:len(line) - len(line.lstrip(' '))]
        rows += _fitted([indent + first, *words], columns, indent + '  ')
    return '\n'.join(rows)


def _fitted(parts, columns, indent):
    """Rows, a list of str, of as many of the parts each as so many columns hold, a blank between them; `indent`: of all but the first."""
    rows = parts[:1]
    for part in parts[1:]:
        if span(rows[-1]) + 1 + span(part) > columns:
            rows.append(indent + part)
        else:
            rows[-1] += ' ' + part
    return rows


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
