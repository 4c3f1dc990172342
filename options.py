"""Options of a command line made of the library's own functions: names, types, defaults and help are those of signatures, annotations and
the tables in docstrings. The values are the library's to check.
"""

import argparse
import contextlib
import dataclasses
import inspect
import re
import typing
from collections.abc import Callable

from errors import short
from hyperparams import HyperParams

NOOPTION = ('self', 'srcfile', 'workdir', 'text', 'verbose', 'state')   # paths are no options, --quiet is verbose, a state is no text


class Option(typing.NamedTuple):
    """A parameter of the library as an option."""

    name: str           # the parameter's
    types: tuple        # those of bool, int, float and str that it takes
    default: object
    help: str
    choices: tuple = ()
    flag: str = ''      # where the option is called otherwise than the parameter

    @property
    def dashed(self) -> str:
        return (self.flag or self.name).replace('_', '-')


def parameters(function: Callable, **flags: str) -> list[Option]:
    """The Options of a function's parameters; flags: other names for some."""
    table, hints = _described(function), typing.get_type_hints(function)
    return [Option(name, _types(hints.get(name), parameter.default), parameter.default, table.get(name, ''), flag=flags.get(name, ''))
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in NOOPTION and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)]


def hyperparameters() -> list[Option]:
    """The Options of HyperParams' fields."""
    hints = typing.get_type_hints(HyperParams)
    return [Option(field.name, _types(hints[field.name], field.default), field.default, field.metadata['comment'],
                   tuple(field.metadata.get('choices') or ())) for field in dataclasses.fields(HyperParams)]


def _described(function: Callable) -> dict[str, str]:
    """What the table in a function's docstring says of each parameter: lines of `name   text` or `name: text`, and indented ones behind."""
    names, table, current = inspect.signature(function).parameters, {}, None
    for line in (inspect.getdoc(function) or '').splitlines():        # none: `python3 -OO`
        found = re.match(r'(\w+)(?:: *| {2,})(\S.*)', line)
        if found and found[1] in names:
            current = found[1]
            table[current] = found[2]
        elif current and line.startswith(' '):
            table[current] += ' ' + line.strip()
        else:
            current = None
    return table


def _types(hint, default):
    """Those of bool, int, float and str that an annotation admits; without one, the default's own type."""
    if hint is None:
        hint = str if default is None else type(default)
    given = typing.get_args(hint) or (hint,)
    return tuple(each for each in (bool, int, float, str) if each in given) or (str,)


def _reader(option):
    """A function from a word of the command line to a value of one of the option's types; what the value must be, the library knows."""
    def read(word):
        for each in option.types:
            with contextlib.suppress(ValueError):
                return each(word)
        raise argparse.ArgumentTypeError(f'takes a {"" if float in option.types else "whole "}number, got {short(word)}')
    return read


def addoption(group: argparse._ArgumentGroup, option: Option) -> None:
    """Add an option to a parser's group. It has no default there: what isn't given is left to the library."""
    flag, text = '--' + option.dashed, option.help
    text = re.sub(r', or a ModelState\b.*', '', text)             # a word can't be one
    text = re.sub(r'\bNone\b:? ', 'without it: ', text)
    text = re.sub(r'\bFalse: ', f'--no-{option.dashed}: ', re.sub(r'\bTrue: ', f'{flag}: ', text))
    if isinstance(option.default, bool):
        text += f' (default {"yes" if option.default else "no"})'
    elif option.default not in (None, '', inspect.Parameter.empty):
        text += f' (default {option.default})'
    kind: dict = {'dest': option.flag or option.name, 'default': argparse.SUPPRESS, 'help': text.replace('%', '%%')}
    if bool in option.types:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **kind)
    else:
        word = 'N' if option.types == (int,) else 'X' if option.types[-1] is float else option.name.upper()
        if option.choices:
            word = '{' + ','.join(option.choices) + '}'
        group.add_argument(flag, type=_reader(option), metavar=word, **kind)
