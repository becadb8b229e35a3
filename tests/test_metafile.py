"""The model zoo tells one story: metafile, README, config files, model-index, and what mmdet publishes."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'configs/detection/sokd'
UNMEASURED = 'not yet run'
SCHEDULE = {'1x': 12, '2x': 24}


def models():
    return yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']


def readme_rows():
    """The zoo table's rows, header -> cell."""
    lines = [line for line in (FOLDER / 'README.md').read_text().splitlines() if line.startswith('|')]
    start = next(i for i, line in enumerate(lines) if line.startswith('| Teacher |'))
    split = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[start:]]
    header, _rule, *body = split
    return [dict(zip(header, row, strict=True)) for row in body]


def link(cell):
    """Target of the cell's one markdown link."""
    (target,) = re.findall(r'\[[^]]+\]\(([^)]+)\)', cell)
    return target


def measured(entry):
    """What the table's cell must say of a metafile's Metrics."""
    return str(entry.get('Metrics', {}).get('box AP', UNMEASURED))


@pytest.fixture(scope='module')
def published():
    """mmdet's own metafiles: config -> (weights, box AP)."""
    spec = importlib.util.find_spec('mmdet')
    if spec is None:
        pytest.skip('mmdet is not installed: nothing to compare its metafiles with')
    found = {}
    for path in (Path(spec.origin).parent / '.mim/configs').glob('*/metafile.yml'):
        content = yaml.safe_load(path.read_text())
        for model in content.get('Models', []) if isinstance(content, dict) else []:
            for result in model.get('Results') or []:
                if 'box AP' in result.get('Metrics', {}):
                    found[f'mmdet::{model["Config"].removeprefix("configs/")}'] = (
                        model.get('Weights'),
                        result['Metrics']['box AP'],
                    )
    assert found, 'mmdet is installed without its metafiles'
    return found


def test_readme_and_metafile_list_the_same_configs_as_the_folder():
    files = sorted(path.name for path in FOLDER.glob('*.py'))
    assert files
    assert sorted(Path(m['Config']).name for m in models()) == files
    assert sorted(link(row['Config']) for row in readme_rows()) == files


@pytest.mark.parametrize('model', models(), ids=lambda m: m['Name'])
def test_readme_row_equals_metafile(model):
    path = ROOT / model['Config']
    assert path.parent == FOLDER
    assert path.stem == model['Name']
    (row,) = [row for row in readme_rows() if link(row['Config']) == path.name]
    meta = model['Metadata']
    assert row['Host'] == meta['Host']
    assert SCHEDULE[row['Lr schd']] == meta['Epochs']
    assert link(row['Download']) == meta['Teacher']['Weights']
    assert row['Mem (GB)'] == str(meta.get('Training Memory (GB)', UNMEASURED))
    distilled = model.get('Results', [{}])[0]
    ap = row['box AP (teacher / student alone / distilled)'].split(' / ')
    assert ap == [measured(meta['Teacher']), measured(meta['Student']), measured(distilled)]


@pytest.mark.parametrize('model', models(), ids=lambda m: m['Name'])
def test_config_says_what_the_metafile_says(model):
    pytest.importorskip('mmdet', reason="the configs' bases are mmdet's")
    cfg = Config.fromfile(ROOT / model['Config'])
    meta = model['Metadata']
    assert cfg.train_cfg.max_epochs == meta['Epochs']
    assert cfg.model.teacher.cfg == meta['Teacher']['Config']
    assert cfg.model.teacher.checkpoint == meta['Teacher']['Weights']
    assert [term.type for term in cfg.model.terms.values()] == [f'mmsokd.{meta["Host"]}Loss']
    # the student is the one the metafile names, whole and unchanged
    name = meta['Student']['Config']
    if name.startswith('mmdet::'):
        from mmengine.hub import get_config

        alone = get_config(name).model
    else:
        alone = Config.fromfile(ROOT / name).model
    assert without_scope(cfg.model.student) == without_scope(alone)


def without_scope(node):
    """Plain dicts and lists without the ``_scope_`` marks that MMEngine leaves on inherited parts."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [without_scope(value) for value in node]
    return node


@pytest.mark.parametrize('role', ['Teacher', 'Student'])
@pytest.mark.parametrize('model', models(), ids=lambda m: m['Name'])
def test_published_numbers_are_mmdets(model, role, published):
    entry = model['Metadata'][role]
    if not entry['Config'].startswith('mmdet::'):
        assert role == 'Student'
        assert set(entry) == {'Config'}, 'a config of ours has no weights or AP that mmdet published'
        assert (ROOT / entry['Config']).is_file()
        return
    assert (entry['Weights'], entry['Metrics']['box AP']) == published[entry['Config']]


def test_model_index_imports_the_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert 'configs/detection/sokd/metafile.yml' in index['Import']
    for path in index['Import']:
        assert (ROOT / path).is_file(), path


def test_collection_names_existing_card():
    content = yaml.safe_load((FOLDER / 'metafile.yml').read_text())
    (collection,) = content['Collections']
    assert (ROOT / collection['README']).is_file()
    assert {m['In Collection'] for m in content['Models']} == {collection['Name']}
