"""What a terminal shows of a text: signs for characters that can't be seen, the columns they take, lines that fit into those it has."""

import math
import shutil
import sys
import unicodedata
from functools import lru_cache
from typing import TextIO

LINEEND, TAB, UNSHOWN, BASE = '\u21b5', '\u21e5', '\ufffd', '\u25cc'
INPLAIN = {LINEEND: '$', TAB: '>', BASE: ''}      # where an output's encoding lacks them; '?' for others
CONTROLS = {'\0': 'null', '\t': 'tab', '\n': 'line feed', '\r': 'carriage return', '\x1b': 'escape', '\x7f': 'delete'}
NARROWEST = 20


def isterminal(file: TextIO | None) -> bool:
    """Whether a file is a terminal."""
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError):            # an object of somebody's own, a closed file
        return False


def width() -> int:
    """The terminal's columns, 80 where there is none."""
    return max(shutil.get_terminal_size().columns, NARROWEST)


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


# ---- lines

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
