"""The model zoo tells one story: metafiles, READMEs, config files, model-index, and what OpenMMLab publishes."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config

from mmsokd import __version__
from tests.builders import without_scope

ROOT = Path(__file__).resolve().parents[1]
# the name of a task's metric in OpenMMLab's metafiles, and in our cards
METRICS = {'detection': 'box AP', 'segmentation': 'mIoU', 'classification': 'Top 1 Accuracy'}
# folders of configs that stand for no result of the zoo: parts, plain students, and what runs on two CPU cores
NO_ZOO = {'_base_', 'students', 'demo', 'bccd', 'camvid', 'tin100'}
COMBINED = 'configs/combined'  # in no task's folder, and of more than one method: test_configs_combined
FOLDERS = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / COMBINED, *(ROOT / 'configs').glob('*/*')]
    if path.name not in NO_ZOO and list(path.glob('*.py'))
)
ZOO = 'configs/classification/cifar_zoo'  # no teacher there
SFTN = [folder for folder in FOLDERS if folder.endswith('/sftn')]  # teachers are trained there: test_configs_sftn
# a config's first word -> its distiller, where that is not the plain one
KINDS = {'sokd': 'SoKD', 'tst': 'TST', 'iakd': 'IAKD', 'ekd': 'Online', 'mutual': 'Online'}
UNMEASURED = 'not yet run'
SCHEDULE = {
    '1x': {'Epochs': 12},
    '2x': {'Epochs': 24},
    '100e': {'Epochs': 100},
    '240e': {'Epochs': 240},
    '300e': {'Epochs': 300},
    '80k': {'Iterations': 80000},
}


def metafile(folder):
    return yaml.safe_load((ROOT / folder / 'metafile.yml').read_text())


def readme_rows(folder):
    """The zoo table's rows, header -> cell."""
    text = (ROOT / folder / 'README.md').read_text()
    (table,) = re.findall(r'^\|[^\n]* Config \|.*?(?=\n\n)', text, re.M | re.S)
    header, _rule, *body = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in body]


def link(cell):
    """Target of the cell's one markdown link."""
    (target,) = re.findall(r'\[[^]]+\]\(([^)]+)\)', cell)
    return target


def measured(entry, metric):
    """What the table's cell must say of a metafile's Metrics."""
    return str(entry.get('Metrics', {}).get(metric, UNMEASURED))


def metric_of(folder):
    return METRICS[Path(folder).parts[1]]


MODELS = [
    model
    for folder in FOLDERS
    if (ROOT / folder / 'metafile.yml').exists()  # else test_each_folder_has_its_card fails
    for model in metafile(folder)['Models']
    if folder not in (ZOO, COMBINED, *SFTN)
]
every_model = pytest.mark.parametrize('model', MODELS, ids=lambda m: m['Config'].removeprefix('configs/'))
every_folder = pytest.mark.parametrize('folder', FOLDERS)


@cache
def read(path):
    return Config.fromfile(ROOT / path)


@cache
def alone(name):
    """A student's config, of a library or ours."""
    return get_config(name) if '::' in name else read(name)


@every_folder
def test_each_folder_has_its_card(folder):
    assert (ROOT / folder / 'metafile.yml').is_file()
    card = (ROOT / folder / 'README.md').read_text()
    for part in ('# ', '> [', '```bash', '\n## Results\n', '\n## Citation\n\n```bibtex\n@'):
        assert part in card, part


@pytest.mark.parametrize('card', sorted((ROOT / 'configs').rglob('*.md')), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_the_cards_lead_to_files(card):
    prose = re.sub(r'```.*?```', '', card.read_text(), flags=re.S)
    links = re.findall(r'\]\(([^)#\s]+)', prose)
    assert not [link for link in links if '://' not in link and not (card.parent / link).exists()]
    commands = re.findall(r'(?:train|test)\.(?:py|sh) (configs/\S+)', card.read_text())
    assert not [path for path in commands if not (ROOT / path).is_file()]


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
                weights = str(model.get('Weights')).replace(
                    'https://mmassets.onedl.ai/', 'https://download.openmmlab.com/'
                )
                found.setdefault(name, []).append((weights, result.get('Metrics', {})))
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
    metric = metric_of(folder)
    assert path.stem == model['Name']
    (row,) = [row for row in readme_rows(folder) if link(row['Config']) == path.name]
    meta = model['Metadata']
    assert row['Host'] == meta['Host']
    assert SCHEDULE[row['Lr schd']].items() <= meta.items()
    assert row.get('SoKD', 'yes') == ('yes' if path.name.startswith('sokd_') else 'no')
    if 'Weights' in meta['Teacher']:
        assert link(row['Download']) == meta['Teacher']['Weights']
    else:  # to be trained first
        assert (ROOT / folder / link(row['Download'])).resolve() == ROOT / meta['Teacher']['Config']
    assert row['Mem (GB)'] == str(meta.get('Training Memory (GB)', UNMEASURED))
    distilled = model.get('Results', [{}])[0]
    found = row[f'{metric} (teacher / student alone / distilled)'].split(' / ')
    assert found == [measured(entry, metric) for entry in (meta['Teacher'], meta['Student'], distilled)]


@every_model
def test_config_says_what_the_metafile_says(model):
    meta = model['Metadata']
    source = meta['Teacher']['Config']
    library = source.split('::')[0] if '::' in source else 'mmpretrain'
    pytest.importorskip(library, reason="the config's bases are this library's")
    cfg = read(model['Config'])
    assert (cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters')) == (
        meta.get('Epochs'),
        meta.get('Iterations'),
    )
    kind = model['Name'].split('_')[0]
    assert cfg.model.type == f'mmsokd.{KINDS.get(kind, "")}Distiller'
    teacher = cfg.model.get('teacher')
    if teacher is None:  # trained beside the student
        online = cfg.model.online_teacher
        assert online == source if '::' in source else Path(online).resolve() == ROOT / source
    elif '::' not in source:
        assert Path(teacher.cfg).resolve() == ROOT / source
        assert teacher.checkpoint == f'work_dirs/{Path(source).stem}/epoch_240.pth'
    else:
        assert teacher.checkpoint == meta['Teacher']['Weights']
        if '/reviewkd/' not in model['Config'] or library != 'mmpretrain':  # there with all stages (test_configs_hosts)
            assert teacher.cfg == source
    hosts = {term.type for term in cfg.model.get('terms', {}).values()}
    assert hosts == (set() if meta['Host'] == 'none' else {f'mmsokd.{host}Loss' for host in meta['Host'].split(', ')})
    # the student is the one the metafile names, whole and unchanged
    student = alone(meta['Student']['Config'])
    ours, theirs = without_scope(cfg.model.student), without_scope(student.model)
    if '/reviewkd/' in model['Config'] and library == 'mmpretrain':
        ours['backbone'].pop('out_indices'), theirs['backbone'].pop('out_indices')
    assert ours == theirs
    assert without_scope(cfg.get('data_preprocessor')) == without_scope(student.get('data_preprocessor'))


@pytest.mark.parametrize('role', ['Teacher', 'Student'])
@every_model
def test_published_numbers_are_openmmlabs(model, role):
    entry = model['Metadata'][role]
    if '::' not in entry['Config']:
        assert set(entry) == {'Config'}, 'a config of ours has no weights or numbers that OpenMMLab published'
        assert (ROOT / entry['Config']).is_file()
        return
    metric = metric_of(model['Config'])
    pairs = published(entry['Config'].split('::')[0])[entry['Config']]
    assert (entry['Weights'], entry['Metrics'][metric]) in [
        (weights, metrics.get(metric)) for weights, metrics in pairs
    ]


def test_model_index_imports_the_metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(index['Import']) == sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('configs/**/metafile.yml'))
    assert sorted(index['Import']) == [f'{folder}/metafile.yml' for folder in FOLDERS]


def test_collections_differ_in_name():
    names = [collection['Name'] for folder in FOLDERS for collection in metafile(folder)['Collections']]
    assert len(set(names)) == len(names)


@every_folder
def test_collection_names_existing_card(folder):
    content = metafile(folder)
    (collection,) = content['Collections']
    assert collection['README'] == f'{folder}/README.md'
    code = collection['Code']['URL'].removeprefix('https://github.com/mmsokd/mmsokd/blob/main/')
    assert (ROOT / code).exists(), 'code is that of this repository'
    assert collection['Code']['Version'] == f'v{__version__}'
    assert {m['In Collection'] for m in content['Models']} == {collection['Name']}
