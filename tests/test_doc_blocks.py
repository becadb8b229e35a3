"""The code in README and docs: configs and parts of them are built, scripts run, and commands name what is there.

A comment above a block says how it is read:

    <!-- part of: cls -->     keys of a distiller between two small networks of that task; each is built
    <!-- run by: FILE -->     by another test, which may also run a whole page
    <!-- not run: REASON -->  by none

Without one a block that begins with `_base_` is a config, whose model is built: under the name of its first comment
(`# my_student.py`), where it has one, beside the page's other configs. Anything else runs as it is.
"""

import ast
import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, init_default_scope
from mmengine.registry import MODELS as ROOT_MODELS

from mmsokd.distillers.base import Distiller
from mmsokd.distillers.build import load_config
from mmsokd.distillers.face import Face
from mmsokd.registry import MODELS
from tests.builders import classifier, gfl, retinanet, segmentor

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
WHOLE = {'tutorial.md': 'run by: tests/test_tutorial.py'}
BLOCK = re.compile(r'(?:<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$', re.S | re.M)
NOT_RUN = 2  # blocks of Python that nobody runs; think twice before you raise it


def blocks(page, language):
    return [
        (note or WHOLE.get(page.name, ''), code)
        for note, found, code in BLOCK.findall(page.read_text())
        if found == language
    ]


def is_config(code):
    return re.match(r'(#[^\n]*\n)*_base_ = ', code) is not None


ALL = [(page, *block) for page in PAGES for block in blocks(page, 'python')]
CONFIG_PAGES = sorted({page for page, note, code in ALL if not note and is_config(code)})
PARTS = [(page, note.split(': ')[1], code) for page, note, code in ALL if note.startswith('part of: ')]
SCRIPTS = [(page, code) for page, note, code in ALL if not note and not is_config(code)]


def name_of(value):
    return value.name if isinstance(value, Path) else None


def test_every_block_is_accounted_for():
    kinds = [note.split(': ')[0] for _, note, _ in ALL]
    assert set(kinds) <= {'', 'part of', 'run by', 'not run'}
    assert kinds.count('not run') <= NOT_RUN
    for page, note, _ in ALL:
        kind, _, what = note.partition(': ')
        if kind == 'run by':
            assert f'docs/{page.name}' in (ROOT / what).read_text()
        assert kind != 'not run' or len(what) > 5  # the reason


# ---- whole configs --------------------------------------------------------------------------------------------------

# What a page's `_base_` and `cfg` may name: a user's own files.
SMALL = {
    'my_retinanet_r18.py': ('mmdet', lambda: retinanet(16)),
    'my_teacher.py': ('mmpretrain', lambda: classifier(12)),
    'my_student.py': ('mmpretrain', lambda: classifier(8)),
}


def write_small(folder):
    for name, (scope, build) in SMALL.items():
        Config(dict(model=build(), default_scope=scope)).dump(folder / name)
    (folder / 'my_yolox.py').write_text("_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'\n")


def without_weights(model):
    """A distiller's config without files that are not here; its teachers' configs are read all the same."""
    model = ConfigDict(model)
    for teacher in [model.get('teacher'), *(model.get('teachers') or {}).values()]:
        if isinstance(teacher, dict) and teacher.pop('checkpoint', None):
            teacher.pop('trust_checkpoint', None)
            assert load_config('teacher', teacher.cfg)
    return model


# Networks of full size: tens of seconds.
LARGE = ('projects.md', 'mmrazor.md')
MARKED = [pytest.param(page, marks=pytest.mark.slow if page.name in LARGE else ()) for page in CONFIG_PAGES]


@pytest.mark.parametrize('page', MARKED, ids=name_of)
def test_configs_build(page, tmp_path, monkeypatch):
    write_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    built = 0
    for note, code in blocks(page, 'python'):
        if note or not is_config(code):
            continue
        name = re.match(r'# (\w+\.py)', code)
        path = tmp_path / (name[1] if name else f'block_{len(list(tmp_path.iterdir()))}.py')
        path.write_text(code.replace('path/to/configs', str(ROOT / 'configs')))
        cfg = Config.fromfile(path)
        init_default_scope(cfg.default_scope)
        if str(cfg.model.type).startswith('mmsokd.'):
            preprocessor = cfg.get('data_preprocessor')
            model = ROOT_MODELS.build({**without_weights(cfg.model), 'data_preprocessor': preprocessor})
            assert isinstance(model, Face)
            built += 1
        for hook in cfg.get('custom_hooks', []):
            if hook.type.startswith('mmsokd.'):
                HOOKS.build(hook)
                built += 1
    assert built


# ---- parts of a config ----------------------------------------------------------------------------------------------

DETECTION = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck'))
PAIRS = {
    'det': lambda: dict(student=retinanet(16), teacher=retinanet(24), terms=DETECTION),
    'gfl': lambda: dict(student=gfl(16), teacher=gfl(16), terms=DETECTION),
    'seg': lambda: dict(
        student=segmentor(8),
        teacher=segmentor(12),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer4')),
    ),
    'cls': lambda: dict(
        student=classifier(8), teacher=classifier(12), terms=dict(loss_kd=dict(type='mmsokd.KDLoss', tap='head.fc'))
    ),
}
OTHERS = {'optim_wrapper', 'custom_hooks', 'stages', 'online', 'guide'}  # beside a model, or what it is made of


def statements(code):
    """Name and value of each assignment, in order; one name may have several, which are then alternatives."""
    scope = {}
    for statement in ast.parse(code).body:
        exec(compile(ast.Module([statement], []), 'block', 'exec'), scope)
        if isinstance(statement, ast.Assign):
            yield statement.targets[0].id, scope[statement.targets[0].id]


def substituted(teacher, pair):
    """A small teacher in the place of the one that the page names, whose config must be there."""
    if '::' in teacher['cfg']:
        assert load_config('teacher', teacher['cfg'])
    return dict(cfg=PAIRS[pair]()['teacher'])


def model_with(pair, keys):
    """The config of a distiller between two small networks, with a page's keys in it."""
    model = dict(type='mmsokd.Distiller', **PAIRS[pair]())
    keys = {**keys.pop('model', {}), **keys}
    (name,) = model['terms']
    for key in {'loss_weight', 'adapter'} & set(keys):  # of a term
        keys['terms'] = {name: {key: keys.pop(key)}}
    if any('type' in term for term in keys.get('terms', {}).values()):  # terms of its own
        model['terms'] = {}
    if 'teacher' in keys:
        model['teacher'] = substituted(keys.pop('teacher'), pair)
    if keys.keys() & {'teachers', 'online_teacher'}:
        del model['teacher']
    if 'teachers' in keys:
        keys['teachers'] = {name: substituted(teacher, pair) for name, teacher in keys['teachers'].items()}
    cfg = Config(dict(model=model))
    cfg.merge_from_dict(dict(model=keys))
    return cfg.model


@pytest.mark.parametrize(('page', 'pair', 'code'), PARTS, ids=lambda value: name_of(value) or '')
def test_parts_build(page, pair, code):
    versions = [{}]
    for name, value in statements(code):
        if name == 'custom_hooks':
            for hook in value:
                HOOKS.build(hook)
        elif name not in OTHERS:
            if name in versions[-1]:  # an alternative
                versions.append({})
            versions[-1][name] = value
    for keys in versions:
        assert isinstance(MODELS.build(model_with(pair, keys)), Distiller)


# ---- scripts and commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('page', 'code'), SCRIPTS, ids=lambda value: name_of(value) or '')
def test_scripts_run(page, code, tmp_path, monkeypatch):
    write_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f'{page.name}', 'exec'), {'__name__': page.stem})


COMMANDS = [(page, note, code) for page in PAGES for note, code in blocks(page, 'bash')]
FLAGS_OF_ALL = (ROOT / 'tools/_cli.py').read_text()


@pytest.mark.parametrize(('page', 'note', 'code'), COMMANDS, ids=lambda value: name_of(value) or '')
def test_commands_name_what_is_there(page, note, code):
    if note.startswith('not run: '):
        return
    lines = re.sub(r'\\\n\s*', ' ', code).splitlines()
    for line in (line.split(' #')[0] for line in lines):
        for path in re.findall(r'(?<![\w/.])(?:tools|configs|docs|tests|requirements)/[\w./*-]*\w', line):
            assert list(ROOT.glob(path)), path
        for target in re.findall(r'\bmake ([a-z]+)', line):
            assert re.search(f'^{target}:', (ROOT / 'Makefile').read_text(), re.M), target
        tool = re.search(r'tools/[\w/]+\.(?:py|sh)', line)
        if tool:
            source = (
                (ROOT / tool[0]).read_text()
                + FLAGS_OF_ALL
                + (ROOT / 'tools/train.py').read_text() * ('train' in tool[0])
            )
            for flag in re.findall(r'(?<=\s)--[a-z][\w-]*', line.split(tool[0])[1]):
                assert flag in source, f'{flag} of {tool[0]}'
