"""A text as a page for a browser, one file, and as a snippet for a notebook. The page's own parts are in web/.

What comes of the text is data: in the page it is JSON in which no character can end it, which a script puts in as text; a
Content-Security-Policy lets that script run and no other, and nothing be fetched. Control characters stand there as signs.
"""

import base64
import hashlib
import html
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from colours import AMOUNT, SIGNED, Scale, ink
from terminal import glyph, name

if TYPE_CHECKING:
    from inside import Found, Reading

WEB = pathlib.Path(__file__).parent / 'web'
MOSTBYTES = 100e6           # of a page: browsers bear some hundreds of megabytes, people less,
MOSTCHARS = 500_000         # and so many characters, each an element of its own, in some seconds
EACH = 60                   # bytes that a character takes besides its neurons', about


class Group(NamedTuple):
    """Values along a text that share a name and a colour map: a layer's neurons, say."""

    name: str
    scale: Scale            # SIGNED: -1 to 1, AMOUNT: 0 to 1
    values: np.ndarray      # (units, T)


def page(title: str, about: Sequence[str], text: str, reading: 'Reading | None' = None, groups: Sequence[Group] = (),
         found: 'Sequence[Found]' = (), start: tuple[int, int] | None = None) -> str:
    """The page, a str: a title, lines about what it shows, the text, its inside.Reading, whose surprise is shown, Groups, the inside.Found
    to offer, and (layer, neuron) to begin with.

    Values are stored in 255 steps. ValueError where the page would be too large.
    """
    checksize(len(text), sum(len(group.values) for group in groups))
    chars = dict.fromkeys(text)
    if reading:
        chars.update(dict.fromkeys(reading.chars[i] for i in np.unique(reading.likeliest)))
    where = {char: i for i, char in enumerate(chars)}
    index = '<u2' if len(where) <= 1 << 16 else '<u4'
    data = {'wide': index == '<u4', 'chars': [[glyph(char)[0], name(char)] for char in where], 'newline': where.get('\n', -1),
            'text': _base64([where[char] for char in text], index), 'found': [[*each[:3], each.r] for each in found], 'start': start,
            'groups': [{'name': group.name, 'units': len(group.values), 'signed': group.scale is SIGNED,
                        'values': _base64(np.rint(group.values * 127), 'i1') if group.scale is SIGNED
                        else _base64(np.rint(group.values * 255), 'u1')} for group in groups]}
    if reading:
        tochars = np.array([where.get(char, 0) for char in reading.chars])
        data.update(shares=_base64(reading.shares, '<f4'), likeliest=_base64(tochars[reading.likeliest], index),
                    chances=_base64(np.rint(reading.chances * 65535), '<u2'))
    css = (WEB / 'page.css').read_text(encoding='utf-8') + _levels()
    js = (WEB / 'page.js').read_text(encoding='utf-8')
    parts = {'title': html.escape(title), 'about': '\n'.join(f'<p>{html.escape(_signs(line))}</p>' for line in about), 'css': css, 'js': js,
             'csshash': _hash(css), 'jshash': _hash(js), 'data': _json(data)}
    whole = (WEB / 'page.html').read_text(encoding='utf-8')
    return re.sub(r'\{(\w+)\}', lambda found: parts[found[1]], whole)            # in one pass: nothing is looked for in what is put in


def checksize(numchars: int, units: int) -> None:
    """ValueError for a page of so many characters, with the values of so many units at each, that is too large."""
    size = (EACH + 4 / 3 * units) * numchars
    if size > MOSTBYTES or numchars > MOSTCHARS:
        raise ValueError(f'a page of these {numchars:,} characters, about {size / 1e6:,.0f} MB, is too large for browsers: give at most '
                         f'{min(int(MOSTBYTES / size * numchars), MOSTCHARS):,} of them')


def _json(data):
    """JSON, ASCII, in which nothing can end a <script>: '<', '>' and '&' stand as numbers too."""
    text = json.dumps(data, separators=(',', ':'))
    return text.replace('<', r'\u003c').replace('>', r'\u003e').replace('&', r'\u0026')


def _base64(values, dtype):
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()


def _hash(text):
    """As a Content-Security-Policy names an inline script or style."""
    return f'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'


def _levels():
    """The rules of the levels' colours: classes a1 to a8, p1 to p9 and m1 to m9, for both themes."""
    rules = []
    for theme, isdark in ('', False), (':root[data-theme=dark] ', True):
        for scale, prefix, sign in (AMOUNT, 'a', 1), (SIGNED, 'p', 1), (SIGNED, 'm', -1):
            for level in range(1, scale.high + 1):
                colour = scale.colour(sign * level, isdark)
                rules.append(f'{theme}.{prefix}{level}, {theme}.line .{prefix}{level} {{ background: {_css(colour)}; '
                             f'color: {_css(ink(colour))}; }}')
    return '\n'.join(rules)


def _css(colour):
    return '#' + ''.join(f'{part:02x}' for part in colour)


def _signs(line):
    """A line about a text, with signs for what is no visible character."""
    return ''.join(glyph(char)[0] for char in line)


# ---- for a notebook

def snippet(above: Sequence[str], text: str, levels: Iterable[int], scale: Scale, titles: Sequence[str], below: Sequence[str]) -> str:
    """HTML without scripts or styles of its own, which notebooks would drop: lines, the text in the levels' colours, a character's title
    under the pointer, lines."""
    parts = []
    for char, level, title in zip(text, levels, titles):
        colour = scale.colour(int(level), False)
        style = f' style="padding:2px 0;background:{_css(colour)};color:{_css(ink(colour))}"' if level else ''
        parts.append(f'<span title="{html.escape(_signs(title))}"{style}>{html.escape(glyph(char)[0])}</span>' + '\n' * (char == '\n'))
    return (f'<div style="background:#fff;color:#1b1d22;padding:8px">{_lines(above)}<pre style="background:#fff;color:#1b1d22;font-family:'
            f'monospace;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5">{"".join(parts)}</pre>{_lines(below)}</div>')


def table(heads: Sequence[str], rows: Sequence[Sequence], below: Sequence[str]) -> str:
    """HTML of a table, and lines below it."""
    cells = ''.join('<tr>' + ''.join(f'<td>{html.escape(str(each))}</td>' for each in row) + '</tr>' for row in rows)
    return (f'<table><thead><tr>{"".join(f"<th>{html.escape(head)}</th>" for head in heads)}</tr></thead><tbody>{cells}</tbody></table>'
            f'{_lines(below)}')


def _lines(lines):
    return ''.join(f'<div style="white-space:pre-wrap">{html.escape(_signs(line))}</div>' for line in lines)
