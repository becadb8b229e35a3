"""Imports run one way; the order is printed (``pytest -s``), a cycle or a step upwards fails."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'mmsokd'
ORDER = [
    {'version', 'stack', 'registry', 'checks', 'taps', 'relax', 'scale', 'unpickle', 'checkpoint'},
    {'losses', 'adapters', 'augment', 'areas', 'backbones'},
    {'distillers'},
    {'visualization', 'export', 'recipes'},
    {'hooks'},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imported_rooms(path):
    """The rooms of mmsokd that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ''] if node.module != 'mmsokd' else [f'mmsokd.{a.name}' for a in node.names]
            assert node.level == 0, f'{path}: relative import'
        else:
            continue
        yield from (name.split('.')[1] for name in names if name.startswith('mmsokd.'))


def test_imports_run_one_way():
    print('\n' + ' <- '.join(', '.join(sorted(rooms)) for rooms in ORDER))
    wrong = []
    for path in sorted(PACKAGE.rglob('*.py')):
        if '.mim' in path.parts or path == PACKAGE / '__init__.py':
            continue
        room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        assert room in LEVEL, f'give {room} a place in the order'
        for other in imported_rooms(path):
            same_file_level = LEVEL[room] == 0 and LEVEL[other] == 0
            if other != room and not (LEVEL[other] < LEVEL[room] or same_file_level):
                wrong.append(f'{path.relative_to(PACKAGE)} imports {other}')
    assert not wrong, wrong
