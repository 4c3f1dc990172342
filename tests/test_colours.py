"""Text in a terminal: what it can show, colours that can be told apart, signs, rows."""

import io
import math
import re

import pytest

import colours
from colours import AMOUNT, SIGNED
from terminal import NARROWEST, folded, name as called, shown, width

HOSTILE = ('<b>&amp;</script><!--\x1b[31m\x1b]0;title\x07\x9b31m\x90q\x9c\0\b\r\x7f\u202eabc\u202c\u2066x\u2069\u200f\u2028\u2029'
           '\u200d\ufeff\ufe0f'
           '\ud800\udc00\udfff\U000e0041\U0010ffff\U0001f468\u200d\U0001f680e\u0301\u65e5\u672c\n\t{data}${x}')
SGR = re.compile('\x1b\\[(?:[0-9]+(?:;[0-9]+)*)m')
# What may make a terminal do something, or show other characters in other places.
UNSAFE = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufe00-\ufe0f\ud800-\udfff'
                    '\U000e0000-\U000e0fff]')


class Terminal(io.StringIO):
    def isatty(self):
        super().isatty()                # an error where it is closed
        return True


@pytest.fixture
def terminal(monkeypatch):
    """terminal(**variables): a terminal in whose environment these stand, and no others that tell of colours."""
    def terminal(**variables):
        for name in ('NO_COLOR', 'COLORTERM', 'TERM', 'COLORFGBG', 'COLUMNS'):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Terminal()
    return terminal


@pytest.mark.parametrize('bits, variables', [
    (24, {'TERM': 'xterm-256color', 'COLORTERM': 'truecolor'}), (24, {'TERM': 'xterm', 'COLORTERM': '24bit'}),
    (24, {'TERM': 'xterm-direct'}), (8, {'TERM': 'screen-256color'}), (8, {'TERM': 'xterm-256color', 'COLORTERM': 'yes'}),
    (0, {'TERM': 'xterm'}), (0, {'TERM': 'dumb'}), (0, {}),
    (0, {'TERM': 'dumb', 'COLORTERM': 'truecolor'}), (0, {'TERM': 'xterm-256color', 'COLORTERM': 'truecolor', 'NO_COLOR': '1'}),
    (24, {'TERM': 'xterm', 'COLORTERM': 'truecolor', 'NO_COLOR': ''})])
def test_colours_are_those_that_the_environment_says_and_none_elsewhere(terminal, bits, variables):
    file = terminal(**variables)
    assert colours.depth(file) == bits
    assert colours.depth(io.StringIO()) == 0 and colours.depth(object()) == 0
    file.close()
    assert colours.depth(file) == 0


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    light, dark = sorted([luminance(one), luminance(two)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize('isdark', [True, False])
@pytest.mark.parametrize('scale', [AMOUNT, SIGNED])
def test_each_level_stands_out_more_than_the_one_before_and_its_text_can_be_read(scale, isdark):
    ground = scale.colour(0, isdark)
    for sign, most in ((1, scale.high), (-1, -scale.low)):
        steps = [contrast(scale.colour(sign * level, isdark), ground) for level in range(most + 1)]
        assert steps == sorted(set(steps))
    for level in range(scale.low, scale.high + 1):
        assert contrast(colours.ink(scale.colour(level, isdark)), scale.colour(level, isdark)) >= 4.5
        assert level == 0 or scale.marks[level].isalnum() and len(scale.marks[level]) == 1
    assert len(set(scale.marks.values())) == scale.high - scale.low


def deuteranopic(colour):
    """What a deuteranope sees: Vienot, Brettel and Mollon 1999, in linear RGB."""
    r, g, b = ((c / 255) ** 2.2 for c in colour)
    L, M, S = 17.8824 * r + 43.5161 * g + 4.11935 * b, 0, 0.0299566 * r + 0.184309 * g + 1.46709 * b
    M = 0.494207 * L + 1.24827 * S
    return (0.0809444479 * L - 0.130504409 * M + 0.116721066 * S, -0.0102485335 * L + 0.0540193266 * M - 0.113614708 * S,
            -0.000365296938 * L - 0.00412161469 * M + 0.693511405 * S)


@pytest.mark.parametrize('isdark', [True, False])
def test_above_and_below_zero_differ_for_who_sees_no_green(isdark):
    for level in (3, 6, 9):
        above, below = (deuteranopic(SIGNED.colour(sign * level, isdark)) for sign in (1, -1))
        # Yellowish, more green than blue, against bluish.
        assert above[1] > above[2] and below[1] < below[2]


@pytest.mark.parametrize('colour, index', [((0, 0, 0), 16), ((255, 255, 255), 231), ((255, 0, 0), 196), ((96, 134, 176), 67),
                                           ((9, 9, 9), 232)])
def test_of_256_colours_the_nearest_is_taken(colour, index):
    assert colours.of256(colour) == index


@pytest.mark.parametrize('bits', [0, 8, 24])
def test_nothing_of_a_text_reaches_the_terminal_but_what_it_can_show(bits):
    rows = colours.rows(HOSTILE, [3] * len(HOSTILE), AMOUNT, 40, bits)
    whole = '\n'.join(rows)
    assert bool(SGR.search(whole)) == bool(bits) and not UNSAFE.search(SGR.sub('', whole))
    shown = ''.join(SGR.sub('', row) for row in rows[::1 if bits else 2])
    assert '<b>&amp;</script><!--\u241b[31m\u241b]0;title\u2407\ufffd31m' in shown and '\u2400\u2408\u240d\u2421\ufffdabc\ufffd' in shown
    assert shown.count('\u241b') == HOSTILE.count('\x1b') and '\u65e5\u672c\u21b5' in shown and shown.endswith('\u21e5{data}${x}')


@pytest.mark.parametrize('text, columns, expected', [
    ('ab\ncd', 20, ['ab\u21b5', 'cd']), ('a' * 45, 20, ['a' * 20, 'a' * 20, 'a' * 5]), ('', 20, []), ('\n\n', 20, ['\u21b5', '\u21b5']),
    ('a' * 20 + '\n', 20, ['a' * 20, '\u21b5']), ('\u65e5' * 21, 20, ['\u65e5' * 10] * 2 + ['\u65e5']),
    ('a' + '\u65e5' * 10, 20, ['a' + '\u65e5' * 9, '\u65e5']), ('e\u0301' * 25, 20, ['e\u0301' * 20, 'e\u0301' * 5]),
    ('\u0301a\n\u0301', 20, ['\u25cc\u0301a\u21b5', '\u25cc\u0301']), ('\uff21\u1100\u1161b', 20, ['\uff21\u1100\u1161b']),
    ('e' + '\u0301' * 100, 20, ['e' + '\u0301' * 30 + ('\u25cc' + '\u0301' * 30) * 2 + '\u25cc' + '\u0301' * 10])])
def test_rows_are_as_wide_as_the_terminal_whatever_the_characters_widths(text, columns, expected):
    assert colours.rows(text, [0] * len(text), AMOUNT, columns, 0) == expected
    assert [SGR.sub('', row) for row in colours.rows(text, [0] * len(text), AMOUNT, columns, 24)] == expected


def test_without_colours_a_row_of_marks_stands_under_the_characters():
    assert colours.rows('ab \u65e5c\nxy', [0, 2, 0, 8, 1, 3, 0, 0], AMOUNT, 20, 0) == ['ab \u65e5c\u21b5', ' 2 8 13', 'xy']
    assert colours.rows('abcd', [-9, 9, -1, 1], SIGNED, 20, 0) == ['abcd', 'i9a1']


def test_with_colours_characters_of_a_level_share_one_and_ends_with_it(terminal):
    terminal(TERM='xterm', COLORFGBG='15;0')            # a dark background
    a, b = AMOUNT.colour(2), AMOUNT.colour(8)
    row, = colours.rows('abcd', [0, 2, 2, 8], AMOUNT, 20, 24)
    assert row == (f'a\x1b[48;2;{a[0]};{a[1]};{a[2]};38;2;255;255;255mbc\x1b[0m'
                   f'\x1b[48;2;{b[0]};{b[1]};{b[2]};38;2;0;0;0md\x1b[0m')
    row, = colours.rows('abcd', [0, 2, 2, 8], AMOUNT, 20, 8)
    assert re.fullmatch('a\x1b\\[48;5;\\d+;38;5;231mbc\x1b\\[0m\x1b\\[48;5;\\d+;38;5;16md\x1b\\[0m', row)
    terminal(TERM='xterm', COLORFGBG='0;15')            # a light background
    light = AMOUNT.colour(2, isdark=False)
    assert f'48;2;{light[0]};{light[1]};{light[2]};38;2;0;0;0' in colours.rows('abcd', [0, 2, 2, 8], AMOUNT, 20, 24)[0]
    assert light != a


@pytest.mark.parametrize('bits', [8, 24])
def test_where_no_terminal_says_what_its_background_is_the_text_has_a_dark_one(terminal, bits):
    for variables in ({}, {'COLORFGBG': 'default;default'}):
        terminal(**variables)
        row, = colours.rows('abc', [0, 2, 0], AMOUNT, 20, bits)
        ground = AMOUNT.dark[0] if bits == 24 else colours.of256(AMOUNT.dark[0])
        code = '48;2;{};{};{}'.format(*ground) if bits == 24 else f'48;5;{ground}'
        assert row.count(code) == 2 and SGR.sub('', row) == 'abc' and len(SGR.findall(row)) == 6
        assert code in colours.legend(AMOUNT, {0: 'none', 8: 'all'}, bits)
    terminal(COLORFGBG='0;15')
    assert colours.rows('abc', [0, 0, 0], AMOUNT, 20, bits) == ['abc'] and '\x1b' not in colours.legend(AMOUNT, {0: 'none'}, bits)


@pytest.mark.parametrize('text, expected', [
    ('aaa bbb ccc ddd', 'aaa bbb\n  ccc ddd'), ('  aaa bbb ccc', '  aaa bbb\n    ccc'), ('', ''), ('\n\n', '\n\n'), ('a  b', 'a  b'),
    ('abcdefghijklmno p', 'abcdefghijklmno\n  p'), ('p abcdefghijklmno', 'p\n  abcdefghijklmno'), ('aaa bbb cc', 'aaa bbb cc'),
    ('\u65e5\u672c\u65e5 \u672c\u65e5', '\u65e5\u672c\u65e5\n  \u672c\u65e5'), ('e\u0301' * 5 + ' abcd', 'e\u0301' * 5 + ' abcd')])
def test_lines_are_folded_at_blanks_by_what_they_take_on_the_screen(text, expected):
    assert folded(text, 10) == expected and folded(text, math.inf) == text


def test_an_output_without_the_signs_gets_others_of_the_same_width():
    assert colours.rows('a\u65e5\tb\xe9e\u0301\n\u0301', [1] * 9, AMOUNT, 20, 0, 'ascii') == ['a?>b?e?$', '11111111', '?', '1']


def test_characters_are_called_by_name():
    assert [called(char) for char in 'a\n\x1b\x85\ud800\ue000\u0378'] == [
        'U+0061 latin small letter a', 'U+000A line feed', 'U+001B escape', 'U+0085 control character', 'U+D800 surrogate',
        'U+E000 private use', 'U+0378 unassigned']
    assert [shown(char) for char in ("a \n\t\x1b\u202e\xa0\u0301\ufffd")] == [
        "'a'", "' '", "'\u21b5'", "'\u21e5'", "'\u241b'", 'U+202E', 'U+00A0', "'\u25cc\u0301'", "'\ufffd'"]


def test_a_width_is_the_terminals_but_never_nothing(terminal):
    terminal(COLUMNS='120')
    assert width() == 120
    terminal(COLUMNS='3')
    assert width() == NARROWEST
