"""What is named in a text, character by character, against marks set by hand."""

import numpy as np
import pytest

from properties import properties

# Under each character of the texts below: its property, a blank for 0. Line ends are written as $.

def given(marks, length):
    return [0 if mark == ' ' else 1 if mark == '#' else int(mark) for mark in marks.ljust(length)]


@pytest.mark.parametrize('name, text, marks', [
    ('in quotes', 'a "b c" d "e',
                  '  ####    ##'),                  # speech without an end, to the paragraph's
    ('in quotes', "don't 'go' o'er 'tis",
                  "      ###          "),           # apostrophes quote nothing
    ('in quotes', "'tis the o'er $ 'so'",
                  '                ###'),            # no mark closes it, an apostrophe doesn't
    ('in quotes', r"'a\'b 'c' \'d 'e",
                  '######     ###'),
    ('in quotes', '“So ‘it’s’ so” «oui».',
                  '#############' '  ####'),
    ('in quotes', '"one$two" x$$"three$$four "x',
                  '########     ' '######       ##'),
    ('in quotes', '# p$# p$x = "a\\"b" + r\'c"\' # it\'s',
                  '            #####     ###'),
    ('in quotes', '# p$# p$f("x)$g(\'\'\'y$$"z\'\'\')',
                  '                ' '##########'),
    ('in a comment', '# one$x = "# no"  # two$y #3$a#b',
                     '##### ' '            ' '##### ' '  ##'),
    ('in a comment', 'a; // b$/* c$d */ e; // f "g$h = "http://i"',
                     '   #### ' '########     ' '#######'),
    ('in a comment', 'no #1 here, or http://x', ''),
    ('depth of brackets', 'a(b[c]d)e)',
                          ' 112211   '),
    ('depth of brackets', '([)a] (b$$c) "(" {',
                          '12    11         1'),
    ('indentation', '  a$$    b $c$',
                    '12222123444400'),
    ('position in the line', 'ab$$cde$f',
                             '12  123 1'),
    ('upper case', 'aBc É1ß',
                   ' #  #  '),
    ('word ends', 'a bc_1 d-ee, é',
                  '#    # #  #  #')])
def test_each_character_has_the_property_that_a_reader_sees(name, text, marks):
    text = text.replace('$', '\n')
    assert properties(text)[name].tolist() == given(marks, len(text))


def test_every_property_has_a_number_for_each_character_of_any_text():
    rng = np.random.RandomState(0)
    for _ in range(200):
        text = ''.join(rng.choice(list('ab \n\n\t"\'\\#/*()[]{}:;“”‘’„«»_A1日\ud800\0'), rng.randint(1, 80)))
        found = properties(text)
        assert len(found) == 7 and all(values.shape == (len(text),) and np.isfinite(values).all() for values in found.values())
        assert all(set(found[name]) <= {0, 1} for name in ('in quotes', 'in a comment', 'upper case', 'word ends'))
        assert min(min(values) for values in found.values()) >= 0


@pytest.mark.anyengine
def test_long_texts_take_no_longer_than_they_are():
    """Quotation marks and brackets that nothing closes, and no empty line: each looked for to the end would be 10^10 steps."""
    for text in ("'\\" * 50_000, '# p\n# p\n' + '"\\' * 50_000, '"\\" ' * 30_000, "x'\\'" * 30_000,
                 'x = "a\n' * 30_000, "'" * 100_000, 'say "so, ' * 20_001, '(' * 100_000 + ']' * 1000, '/* a' * 30_000, '“a‘' * 30_000):
        assert len(properties(text)['in quotes']) == len(text)
