"""docs/methods.md says what the tests do: which method works on which task, each with a test that is there."""

import ast
import importlib
import itertools
import re
from pathlib import Path

import pytest

from mmsokd.distillers import Distiller
from mmsokd.registry import MODELS
from tests.builders import classifier, distiller
from tests.distillers import (
    test_combined,
    test_host_table,
    test_iakd,
    test_kcd,
    test_metakd,
    test_online,
    test_sftn,
    test_tst,
)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/methods.md').read_text()
# what the tests call a task
WORDS = {
    'Classification': {'Classification', 'classifier', 'cls'},
    'Segmentation': {'Segmentation', 'segmentor', 'seg'},
    'Detection': {'Detection', 'detector', 'det'},
}
TASK = {word: task for task, words in WORDS.items() for word in words}
HOSTS = {'StudentFriendlyKD': 'SKD', 'MTKDSSR': 'MTKD-SSR', 'DRKD': 'DR-KD', 'FMKT': 'FM-KT', 'FitNet': 'SoKD'}
HOSTS |= {'DPD': 'DPD', 'ITAL': 'ITAL', 'ACKD': 'ACKD', 'RCKA': 'RCKA', 'PCKA': 'PCKA'}
TOGETHER = 'TST + SoKD + SKD + MTKD-SSR'
OTHERS = ('SoKD', 'SFTN', TOGETHER)  # with pages of their own
# what a card on the page has, and what one beside the configs has, itself or by a link to classification's
PARTS = ('\n> ', '\n**Idea.**', '\n$$\n', '\n```python\n', '\n**Cost.**', '\n**Ours.**', 'onfigs: ')
SHORT_PARTS = (r'\$\$.+?\$\$', r'^## Cost$|\bCost: ')


def rows():
    """Method -> task -> cell."""
    table = next(block for block in re.findall(r'(?:^\|.*\n)+', PAGE, re.M) if block.startswith('| Method |'))
    header, _rule, *body = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    return {row[0]: dict(zip(header[2:], row[2:], strict=True)) for row in body}


def ids(function):
    """Those that pytest gives to a function whose parameters are strings."""
    marks = [mark.args[1] for mark in function.pytestmark if mark.name == 'parametrize']
    names = [['-'.join([value] if isinstance(value, str) else value) for value in values] for values in marks]
    return {'-'.join(parts) for parts in itertools.product(*names)}


CELLS = [(method, task, cell) for method, row in rows().items() for task, cell in row.items()]


@pytest.mark.parametrize(('method', 'task', 'cell'), CELLS)
def test_each_cell_names_a_test_of_that_task_or_what_is_missing(method, task, cell):
    if cell == 'missing' or cell.startswith('not applicable: '):
        return
    module, function, chosen = re.fullmatch(r'works: `(test_\w+)\.py::(test_\w+)\[(.+)\]`', cell).groups()
    found = ids(getattr(importlib.import_module(f'tests.distillers.{module}'), function))
    assert chosen in found, f'no such test; there are {sorted(found)}'
    words = set(chosen.split('-'))
    assert words & WORDS[task]
    if module == 'test_host_table':
        assert HOSTS[(words & set(HOSTS)).pop()] == method


def folders(method):
    """Of its configs."""
    words = method.replace('-', '').lower().split(', ')
    return ['studentfriendlykd' if word == 'skd' else word for word in words]


def cards():
    """The page's sections by the methods that their headings name."""
    sections = re.split(r'^## ', PAGE, flags=re.M)[1:]
    return [(set(re.split(', | and ', text.partition('\n')[0])), text) for text in sections]


@pytest.mark.parametrize(
    'method', [m for m, row in rows().items() if m not in OTHERS and set(row.values()) != {'missing'}]
)
def test_each_method_has_a_whole_card(method):
    (card,) = [text for names, text in cards() if names & set(method.split(', '))]
    assert not [part for part in PARTS if part not in card]


@pytest.mark.parametrize(('method', 'task', 'cell'), [row for row in CELLS if row[0] not in OTHERS])
def test_what_works_has_configs_whose_card_is_whole_and_linked(method, task, cell):
    found = [path for name in folders(method) for path in (ROOT / 'configs' / task.lower() / name).glob('README.md')]
    assert bool(found) == cell.startswith('works')
    for path in found:
        assert str(path.relative_to(ROOT)) in PAGE
        text = path.read_text()
        plain = path.parents[2] / 'classification' / path.parent.name / 'README.md'
        if f'../../classification/{path.parent.name}/README.md' in text:
            text += plain.read_text()
        assert not [part for part in SHORT_PARTS if not re.search(part, text, re.M | re.S)], path


def test_those_that_exclude_each_other_are_distillers_of_their_own():
    """And no others are; SoKD's is the plain one with its plug-ins on."""
    own = dict(TSTDistiller='TST', OnlineDistiller='EKD', IAKDDistiller='IAKD')
    found = {name for name, cls in MODELS.module_dict.items() if isinstance(cls, type) and issubclass(cls, Distiller)}
    assert found == {'Distiller', 'SoKDDistiller', *own}
    assert f'{", ".join([*own.values()][:-1])} and IAKD, and a model has one `type`: they exclude each other' in PAGE


def test_what_works_is_what_the_tests_train():
    trained = {(HOSTS[host], task) for task, host in test_host_table.ROWS if host in HOSTS}
    trained.remove(('PCKA', 'Classification'))  # as a host alone: it is made for dense tasks
    tables = dict(TST=test_tst.TASKS, SFTN=test_sftn.TASKS, KCD=test_kcd.HINTS)
    tables |= dict(IAKD=test_iakd.TASKS, EKD=test_online.TASKS) | {'Meta-KD': test_metakd.TASKS}
    tables[TOGETHER] = test_combined.EVERYWHERE
    for method, tasks in tables.items():
        trained |= {(method, TASK[word]) for word in tasks if word in TASK}
    assert {(method, task) for method, task, cell in CELLS if cell.startswith('works')} == trained


def test_every_method_works_somewhere():
    assert not [method for method, row in rows().items() if set(row.values()) == {'missing'}]


def blocks():
    return re.findall(r'```python\n(.*?)```', PAGE, re.S)


@pytest.mark.parametrize('code', blocks(), ids=lambda code: re.search(r'mmsokd\.(\w+)', code)[1])
def test_the_configs_on_the_page_build(code):
    values = {}
    exec(compile(ast.parse(code), 'methods.md', 'exec'), values)
    model = values['model']
    kind = model.pop('type', 'mmsokd.Distiller').removeprefix('mmsokd.')
    teacher = {} if 'online_teacher' in model else dict(teacher=classifier(12))
    built = distiller(kind, student=classifier(8), **dict(teacher=None) | teacher, **model, probe_size=64)
    assert type(built).__name__ == kind


def test_numbers_of_the_costs_are_those_of_the_cards():
    """Time and memory that nobody has written into a card are not told here either."""
    told = ' '.join(path.read_text() for path in (ROOT / 'configs').rglob('README.md'))
    costs = re.findall(r'\*\*Cost\.\*\*(.*?)\n\n', PAGE, re.S)
    numbers = {number for cost in costs for number in re.findall(r'\d+,\d{3}(?:,\d{3})?|\d+\.\d+|\d+ MB', cost)}
    assert len(costs) == len([text for names, text in cards() if '**Idea.**' in text])
    assert len(numbers) >= 11
    assert not [number for number in numbers if number not in told]
