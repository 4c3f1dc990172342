"""What a person can name in a text, character by character: whether it is in quotes or in a comment, how deep in brackets, and so on.

Each property is what holds once the character has been read, as a network's states are: an opening quotation mark is within the quotes
already, a closing one no longer. They are read off the text by rules that suit prose, Python and C, and are right where those are.
"""

import bisect
import re

import numpy as np

OPENING, CLOSING = '([{', ')]}'
PAIRS = {'\u201c': '\u201d', '\u2018': '\u2019', '\u201e': '\u201c\u201d', '\xab': '\xbb', '\u2039': '\u203a', '\u300c': '\u300d',
         '\u300e': '\u300f'}                # typographic quotation marks, and what closes each
_PREFIX = re.compile(r'(?i)(?<!\w)(?:[rbfu]|rb|br|rf|fr)\Z')            # of Python's strings
# Of each there is one way to match only: possessive repeats, which would say so, are wrong in Python 3.11.2, Debian 12's.
_SINGLE = re.compile(r"(?:\\.|[^'\\]|(?<=\w)'(?=\w))*(?=')(?!(?<=\w)'\w)")       # not an apostrophe's
_DOUBLE = re.compile(r'(?:\\.|[^"\\])*(?=")', re.DOTALL)
_OF_INTEREST = re.compile('["\'#/' + re.escape(OPENING + CLOSING) + ''.join(PAIRS) + r']|\n(?=[ \t]*\n)')


def properties(text: str) -> dict[str, np.ndarray]:
    """A dict of name -> (T,) float64, of what varies in a text and is there at all, T its characters.

    in quotes             1 or 0. "..." and typographic marks to the closing one, in prose at most to the next empty line, in a program (see
                          comments) in one line; three in a row to the next three; '...' in one line and not within a word
    in a comment          1 or 0. # behind a blank, and // or /* */, to the end; which of the two kinds, the text's lines decide
    depth of brackets     of ( [ {, outside quotes and comments; an empty line sets it back to 0
    indentation           blanks at the line's beginning, as far as they are read; at line ends and in empty lines the last one's
    position in the line  characters of it that are read, 0 behind its end
    upper case            1 or 0
    word ends             1 or 0: the last letter, digit or _ of a word, which a network can only foretell
    """
    quoted, comment, depth = _marked(text)
    position, indentation = _places(text)
    upper = {char for char in set(text) if char.isupper()}
    word = np.array([bool(match) for match in map(re.compile(r'\w').match, text)] + [False])
    return {'in quotes': quoted, 'in a comment': comment, 'depth of brackets': depth, 'indentation': indentation,
            'position in the line': position, 'upper case': np.array([char in upper for char in text], float),
            'word ends': (word[:-1] & ~word[1:]).astype(float)}


def _places(text):
    """(position in the line, indentation), (T,) float64 each."""
    position, indentation = np.zeros(len(text)), np.zeros(len(text))
    at, last = 0, 0
    for line in re.findall(r'[^\n]*\n|[^\n]+', text):
        length, lead = len(line), len(line) - len(line.lstrip(' \t'))
        position[at:at + length] = np.arange(1, length + 1)
        if line[-1] == '\n':
            position[at + length - 1] = 0
        if line.strip():
            indentation[at:at + length] = np.minimum(position[at:at + length], lead)
            last = lead
        else:
            indentation[at:at + length] = last
        if line[-1] == '\n':
            indentation[at + length - 1] = last
        at += length
    return position, indentation


def _comments(text):
    """Which comments the text has: '#', '/' for C's, or '' where it has hardly any."""
    hashes = len(re.findall(r'(?m)^[ \t]*#[ \t!]|[^\s#][ \t]+# ', text))
    slashes = len(re.findall(r'(?m)^[ \t]*//|[;{}][ \t]*//|/\*', text))
    return '' if max(hashes, slashes) < 2 else '#' if hashes > slashes else '/'


def _marked(text):
    """(in quotes, in a comment, depth of brackets), (T,) float64 each."""
    quoted, comment, change = (np.zeros(len(text)) for _ in range(3))
    kind, at = _comments(text), 0
    opened, counts = [], dict.fromkeys(OPENING, 0)
    unclosed = {"'": 0, '"': 0}                     # before which place nothing closes these marks any more
    paragraphs = [found.start() for found in re.finditer(r'\n(?=[ \t]*\n)', text)] + [len(text)]
    while found := _OF_INTEREST.search(text, at):
        i, char = found.start(), found[0]
        at, depth = i + 1, len(opened)
        if char in OPENING:
            opened.append(char)
            counts[char] += 1
        elif char in CLOSING:
            pair = OPENING[CLOSING.index(char)]
            if counts[pair]:                        # what was left open within it is closed too
                while (last := opened.pop()) != pair:
                    counts[last] -= 1
                counts[pair] -= 1
        elif char == '\n':
            opened, counts = [], dict.fromkeys(OPENING, 0)
        elif char in '#/':
            at = _commentend(text, i, kind)
            comment[i:at] = 1
            at = max(at, i + 1)
        else:
            end = _quoteend(text, i, kind, paragraphs[bisect.bisect(paragraphs, i)], unclosed)
            quoted[i:end] = 1
            at = end + 1
        change[i] = len(opened) - depth
    return quoted, comment, np.cumsum(change)


def _commentend(text, i, kind):
    """Where the comment that begins at i ends: its line's end, or the last character of its */; i where there is none."""
    before = text[i - 1:i]
    if kind == '#' and text[i] == '#' and not before.strip() or kind == '/' and text.startswith('//', i) and before != ':':
        end = text.find('\n', i)
    elif kind == '/' and text.startswith('/*', i):
        end = text.find('*/', i + 2)
        end += end >= 0
    else:
        return i
    return len(text) if end < 0 else end


def _quoteend(text, i, kind, paragraph, unclosed):
    """Where the closing mark of what is quoted from i on stands; i where the mark there opens nothing. paragraph: where it ends.

    unclosed: a dict, kept from mark to mark, so that a line is looked through once. Where nothing closes a mark, nothing closes a later
    one in its place, whose characters are read in the same way.
    """
    char, before = text[i], text[i - 1:i]
    if text.startswith((3 * '"', 3 * "'"), i):
        end = text.find(3 * char, i + 3)
        return i if end < 0 else end + 2
    line = text.find('\n', i)
    line = len(text) if line < 0 else line
    if char == "'":
        if before.isalnum() and not _PREFIX.search(text[max(i - 3, 0):i]):
            return i
        return _closing(_SINGLE, text, i, line, unclosed) or i
    if char == '"':
        if end := _closing(_DOUBLE, text, i, line if kind else paragraph, unclosed):
            return end
        opens = not kind and not before.isalnum() and not text[i + 1:i + 2].isspace()
        return paragraph if opens else i            # speech that goes on in the next paragraph has no closing mark
    closing = r'\u2019(?!\w)' if char == '\u2018' else f'[{PAIRS[char]}]'
    found = re.compile(closing).search(text, i + 1, paragraph)
    return found.start() if found else paragraph


def _closing(pattern, text, i, limit, unclosed):
    """Where what closes the mark at i stands, before a limit; 0: nowhere."""
    if i < unclosed[text[i]]:
        return 0
    found = pattern.match(text, i + 1, limit)
    if not found:
        unclosed[text[i]] = limit
    return found.end() if found else 0
