"""The configuration reference: what is registered, with its arguments, out of signatures and docstrings.

conf.py puts it into reference.rst while Sphinx reads that page; tests/test_reference.py holds it complete.
"""

import functools
import inspect
import re

import mmsokd.losses
from mmsokd.registry import HOOKS, MODELS

# room of mmsokd -> what stands above its parts
ROOMS = {
    'distillers': 'Distillers: ``model``',
    'augment': 'Augmentations: ``model.refine`` and ``model.augmenter``',
    'areas': 'Areas: ``model.areas``',
    'losses': 'Losses: ``model.terms.<name>``',
    'adapters': "Adapters: a term's ``adapter``",
    'hooks': 'Hooks: ``custom_hooks``',
    'backbones': 'Backbones',
}
FOUND = {'in_channels', 'out_channels', 'stride_ratio', 'signed', 'student_channels', 'teacher_channels', 'channels'}
HIDDEN = {'init_cfg', 'data_preprocessor'}  # MMEngine's, and the Runner's to fill in
SECTION = re.compile(r'^(Args|Raises|Returns|Attributes|Note|Example|Yields):', re.M)
ENTRY = re.compile(r'^ {4}(\w[\w, ]*)(?: \([^\n]*?\))?: (.*(?:\n {5,}.*|\n(?=\n* {5,}))*)', re.M)


def parts(room: str) -> dict[str, type]:
    """What ``room`` has registered."""
    found = {**MODELS.module_dict, **HOOKS.module_dict}
    return {name: cls for name, cls in found.items() if cls.__module__.split('.')[:2] == ['mmsokd', room]}


def arguments(cls: type) -> dict[str, tuple[object, str]]:
    """Name of an argument -> its default (``inspect.Parameter.empty`` without) and what the docstring says of it.

    A class that hands on ``**kwargs`` has those of the next one in line, too.
    """
    out: dict[str, tuple[object, str]] = {}
    told = [_told(base) for base in cls.__mro__]
    for base in cls.__mro__:
        if '__init__' not in vars(base) or not base.__module__.startswith('mmsokd.'):
            continue
        parameters = inspect.signature(base).parameters.values()
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in HIDDEN:
                text = next((words[p.name] for words in told if p.name in words), '')
                out.setdefault(p.name, (p.default, text))
        if not any(p.kind is p.VAR_KEYWORD and p.name == 'kwargs' for p in parameters):
            break
    return out


def about(cls: type) -> str:
    """The docstring up to its first section."""
    text = inspect.cleandoc(cls.__doc__ or '')
    found = SECTION.search(text)
    return text[: found.start()].strip() if found else text


def equations(cls: type) -> list[str]:
    """What the functions say that a loss is made of, with their equations."""
    words = (cls.__doc__ or '') + (cls.forward.__doc__ or '')
    names = re.findall(r':func:`(?:~[\w.]+\.)?(\w+)`', words)
    functions = [vars(mmsokd.losses).get(name) for name in dict.fromkeys(names)]
    return [about(function) for function in functions if function is not None]


def _told(cls: type) -> dict[str, str]:
    """What the ``Args:`` of a docstring say."""
    text = inspect.cleandoc(vars(cls).get('__doc__') or '')
    found = re.search(r'^Args:\n((?:[ \t]+.*\n?|\n)+)', text, re.M)
    entries = ENTRY.findall(found[1]) if found else []
    return {name: inspect.cleandoc(words) for names, words in entries for name in names.split(', ')}


def render(room: str) -> str:
    """The reStructuredText of one room."""
    title = ROOMS[room]
    out = [title, '=' * len(title), '', f'.. currentmodule:: mmsokd.{room}', '']
    for name, cls in parts(room).items():
        out += [name, '-' * len(name), '', f"``type='mmsokd.{name}'``", '', about(cls), '']
        if room == 'losses':
            out += [line for text in equations(cls) for line in (text, '')]
        rows = [
            f'   * - ``{key}``\n     - {_default(key, default)}\n     - {_cell(text)}'
            for key, (default, text) in arguments(cls).items()
        ]
        head = ['.. list-table::', '   :widths: 22 18 60', '   :header-rows: 1', '']
        head += ['   * - key', '     - default', '     - what']
        out += [*head, *rows, ''] if rows else ['No keys of its own.', '']
    return '\n'.join(out)


def _default(key: str, default: object) -> str:
    if key in FOUND:
        return '*from the dry run*'
    return '*required*' if default is inspect.Parameter.empty else f'``{default!r}``'


def _cell(text: str) -> str:
    return text.replace('\n', '\n       ')


@functools.cache
def page() -> str:
    """All rooms. Made before autodoc runs, which puts the names of defaults in the place of their values."""
    return '\n\n'.join(map(render, ROOMS))


def fill(app: object, docname: str, source: list[str]) -> None:
    """Sphinx's ``source-read``: put the rooms into the page."""
    if docname == 'reference':
        source[0] = source[0].replace('{parts}', page())
