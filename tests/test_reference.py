"""docs/reference.rst has all that is registered, and each argument's meaning."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from latex2mathml.converter import convert

import mmsokd.losses
from mmsokd.registry import HOOKS, MODELS

DOCS = Path(__file__).resolve().parents[1] / 'docs'


def load():
    spec = importlib.util.spec_from_file_location('_reference', DOCS / '_reference.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load()
PARTS = {name: cls for room in reference.ROOMS for name, cls in reference.parts(room).items()}


def test_nothing_registered_is_left_out():
    found = {**MODELS.module_dict, **HOOKS.module_dict}
    assert set(PARTS) == {name for name, cls in found.items() if cls.__module__.startswith('mmsokd.')}
    assert len(PARTS) > 40


@pytest.mark.parametrize('name', PARTS)
def test_every_argument_is_explained(name):
    arguments = reference.arguments(PARTS[name])
    silent = [key for key, (_, text) in arguments.items() if not text]
    assert not silent, f'add them to the Args of {name}'
    assert reference.about(PARTS[name])


def test_a_distiller_that_hands_on_has_the_keys_of_both():
    arguments = reference.arguments(PARTS['TSTDistiller'])
    assert {'augmenter', 'share', 'terms', 'refine', 'probe_size'} <= set(arguments)
    assert reference.arguments(PARTS['SoKDDistiller'])['refine'][0] == dict(type='mmsokd.FeatureAugmentationNeck')


def test_the_page_is_filled():
    source = [(DOCS / 'reference.rst').read_text()]
    reference.fill(None, 'reference', source)
    for name, cls in PARTS.items():
        assert f"``type='mmsokd.{name}'``" in source[0]
        for key in reference.arguments(cls):
            assert f'* - ``{key}``' in source[0]
    assert '{parts}' not in source[0]


def test_a_loss_has_its_equation_and_its_paper():
    text = reference.render('losses')
    assert text.count('.. math::') >= 20
    assert '1 - r' in text  # PKD's
    losses = [cls for name, cls in reference.parts('losses').items() if name.endswith('Loss')]
    assert [cls.__name__ for cls in losses if not reference.equations(cls)] == []


def equations():
    """All that Sphinx turns into MathML: of the pages, and of the docstrings."""
    for page in sorted(DOCS.glob('*.md')):
        text = re.sub(r'```.*?```|`[^`\n]*`', '', page.read_text(), flags=re.S)
        yield from re.findall(r'\$\$(.*?)\$\$', text, re.S)
        yield from re.findall(r'\$([^$\n]+)\$', re.sub(r'\$\$.*?\$\$', '', text, flags=re.S))
    for part in [*PARTS.values(), *vars(mmsokd.losses).values()]:
        text = inspect.getdoc(part) or ''
        yield from re.findall(r':math:`([^`]+)`', text)
        yield from re.findall(r'\.\. math:: ?(.*\n(?:(?:    .*)?\n)*)', text + '\n')


def test_equations_are_shown_as_they_are_meant():
    found = list(equations())
    assert len(found) > 60
    strange = [latex for latex in found if '\\' in convert(latex)]
    assert not strange, 'latex2mathml does not know a macro in them'
