"""The model zoo tells one story: metafiles, READMEs, config files, model-index, and what OpenMMLab publishes."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config

from tests.builders import without_scope

ROOT = Path(__file__).resolve().parents[1]
METRICS = {  # folder -> the name of its metric in OpenMMLab's metafiles, and in our README
    'configs/detection/sokd': 'box AP',
    'configs/segmentation/sokd': 'mIoU',
    'configs/classification/sokd_imagenet': 'Top 1 Accuracy',
}
UNMEASURED = 'not yet run'
SCHEDULE = {
    '1x': {'Epochs': 12},
    '2x': {'Epochs': 24},
    '100e': {'Epochs': 100},
    '300e': {'Epochs': 300},
    '80k': {'Iterations': 80000},
}


def metafile(folder):
    return yaml.safe_load((ROOT / folder / 'metafile.yml').read_text())


def readme_rows(folder):
    """The zoo table's rows, header -> cell."""
    lines = [line for line in (ROOT / folder / 'README.md').read_text().splitlines() if line.startswith('|')]
    start = next(i for i, line in enumerate(lines) if line.startswith('| Teacher |'))
    split = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[start:]]
    header, _rule, *body = split
    return [dict(zip(header, row, strict=True)) for row in body]


def link(cell):
    """Target of the cell's one markdown link."""
    (target,) = re.findall(r'\[[^]]+\]\(([^)]+)\)', cell)
    return target


def measured(entry, metric):
    """What the table's cell must say of a metafile's Metrics."""
    return str(entry.get('Metrics', {}).get(metric, UNMEASURED))


MODELS = [model for folder in METRICS for model in metafile(folder)['Models']]
every_model = pytest.mark.parametrize('model', MODELS, ids=lambda m: m['Name'])
every_folder = pytest.mark.parametrize('folder', METRICS)


@cache
def published(library):
    """What a library's own metafiles say: config -> pairs of weights and metrics."""
    configs = Path(pytest.importorskip(library).__file__).parent / '.mim/configs'
    found = {}
    for path in configs.glob('*/metafile.y*ml'):
        content = yaml.safe_load(path.read_text())
        for model in content.get('Models', []) if isinstance(content, dict) else []:
            results = model.get('Results') or []
            for result in [results] if isinstance(results, dict) else results:  # mmseg has but one
                name = f'{library}::{model["Config"].removeprefix("configs/")}'
                found.setdefault(name, []).append((model.get('Weights'), result.get('Metrics', {})))
    assert found, f'{library} is installed without its metafiles'
    return found


@every_folder
def test_readme_and_metafile_list_the_same_configs_as_the_folder(folder):
    files = sorted(path.name for path in (ROOT / folder).glob('*.py'))
    assert files
    assert sorted(Path(m['Config']).name for m in metafile(folder)['Models']) == files
    assert sorted(link(row['Config']) for row in readme_rows(folder)) == files


@every_model
def test_readme_row_equals_metafile(model):
    path = Path(model['Config'])
    folder = str(path.parent)
    metric = METRICS[folder]
    assert path.stem == model['Name']
    (row,) = [row for row in readme_rows(folder) if link(row['Config']) == path.name]
    meta = model['Metadata']
    assert row['Host'] == meta['Host']
    assert SCHEDULE[row['Lr schd']].items() <= meta.items()
    assert link(row['Download']) == meta['Teacher']['Weights']
    assert row['Mem (GB)'] == str(meta.get('Training Memory (GB)', UNMEASURED))
    distilled = model.get('Results', [{}])[0]
    found = row[f'{metric} (teacher / student alone / distilled)'].split(' / ')
    assert found == [measured(entry, metric) for entry in (meta['Teacher'], meta['Student'], distilled)]


@every_model
def test_config_says_what_the_metafile_says(model):
    meta = model['Metadata']
    library = meta['Teacher']['Config'].split('::')[0]
    pytest.importorskip(library, reason="the config's bases are this library's")
    cfg = Config.fromfile(ROOT / model['Config'])
    assert (cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters')) == (
        meta.get('Epochs'),
        meta.get('Iterations'),
    )
    assert cfg.model.teacher.cfg == meta['Teacher']['Config']
    assert cfg.model.teacher.checkpoint == meta['Teacher']['Weights']
    assert {term.type for term in cfg.model.terms.values()} == {f'mmsokd.{meta["Host"]}Loss'}
    # the student is the one the metafile names, whole and unchanged
    name = meta['Student']['Config']
    alone = get_config(name) if '::' in name else Config.fromfile(ROOT / name)
    assert without_scope(cfg.model.student) == without_scope(alone.model)
    assert without_scope(cfg.get('data_preprocessor')) == without_scope(alone.get('data_preprocessor'))


@pytest.mark.parametrize('role', ['Teacher', 'Student'])
@every_model
def test_published_numbers_are_openmmlabs(model, role):
    entry = model['Metadata'][role]
    if '::' not in entry['Config']:
        assert role == 'Student'
        assert set(entry) == {'Config'}, 'a config of ours has no weights or numbers that OpenMMLab published'
        assert (ROOT / entry['Config']).is_file()
        return
    metric = METRICS[str(Path(model['Config']).parent)]
    pairs = published(entry['Config'].split('::')[0])[entry['Config']]
    assert (entry['Weights'], entry['Metrics'][metric]) in [
        (weights, metrics.get(metric)) for weights, metrics in pairs
    ]


def test_model_index_imports_the_metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(index['Import']) == sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('configs/**/metafile.yml'))
    assert {f'{folder}/metafile.yml' for folder in METRICS} <= set(index['Import'])


def test_collections_differ_in_name():
    names = [collection['Name'] for folder in METRICS for collection in metafile(folder)['Collections']]
    assert len(set(names)) == len(names)


@every_folder
def test_collection_names_existing_card(folder):
    content = metafile(folder)
    (collection,) = content['Collections']
    assert collection['README'] == f'{folder}/README.md'
    assert {m['In Collection'] for m in content['Models']} == {collection['Name']}
