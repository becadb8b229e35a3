"""docs/troubleshooting.md has every error and every warning of mmsokd and its tools, and none that is gone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs/troubleshooting.md').read_text()
HOLE = '…'  # in the page too: what differs from case to case
FOREIGN = '## Not ours, and often seen'
NOT_OURS = {'… is not in the … registry'}  # MMEngine's words, to which ours adds the nearest names
LOGGERS = ('print_log', 'warning', 'log', '_warn')


def text_of(node: ast.expr) -> str:
    """What is always the same in a message, with holes between."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.Call) and getattr(node.func, 'attr', None) == 'join' and node.args[0].__class__ is ast.List:
        return ' '.join(map(text_of, node.args[0].elts))
    return HOLE


def messages(tree: ast.AST):
    """Line and text of what is raised or logged as a warning or a note."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.lineno, ' '.join(map(text_of, node.exc.args))
        elif isinstance(node, ast.Call):
            name = getattr(node.func, 'id', None) or getattr(node.func, 'attr', None)
            if name in LOGGERS and node.args:
                yield node.lineno, max(map(text_of, node.args), key=len)


def says_something(text: str) -> bool:
    """Rather than handing on somebody else's message."""
    return re.search('[a-zA-Z]{2}', text) is not None


OURS = {
    f'{path.relative_to(ROOT)}:{line}': text
    for folder in ('mmsokd', 'tools')
    for path in sorted((ROOT / folder).rglob('*.py'))
    for line, text in messages(ast.parse(path.read_text()))
    if says_something(text)
}


def stems(page: str) -> list[str]:
    """The code in the first column of every table."""
    rows = [line for line in page.splitlines() if line.startswith('| `')]
    return [stem for row in rows for stem in re.findall(r'`([^`]+)`', row.split(' | ')[0])]


def test_there_are_messages():
    assert len(OURS) > 200
    assert 'mmsokd/checks.py' in {key.split(':')[0] for key in OURS}
    assert 'tools/train.py' in {key.split(':')[0] for key in OURS}


def test_every_message_is_on_the_page():
    known = stems(PAGE)
    missing = {key: text for key, text in OURS.items() if not any(stem in text for stem in known)}
    assert not missing, 'add rows to docs/troubleshooting.md'


def test_every_row_is_a_message_of_ours():
    ours = PAGE[PAGE.index('\n## ', PAGE.index(FOREIGN) + 1) :]
    gone = [s for s in stems(ours) if s not in NOT_OURS and not any(s in text for text in OURS.values())]
    assert not gone, 'they were reworded or left out; mend docs/troubleshooting.md'


@pytest.mark.parametrize('stem', stems(PAGE))
def test_a_row_is_specific(stem):
    """A stem that fits half of the messages would hold nothing."""
    assert sum(stem in text for text in OURS.values()) <= 6
