"""The combined configs: each is what its parts are alone, and the CIFAR-100 ones make a step.

Those on tin100 make theirs in test_configs.
"""

from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

from tests.builders import without_scope
from tests.test_configs import build_training, read
from tests.test_configs_classification import build_small, step
from tests.test_metafile import COMBINED, METRICS, ROOT, SCHEDULE, link, measured, metafile, readme_rows

CLASSIFICATION = ROOT / 'configs/classification'
PAIR = 'resnet32x4-resnet8x4'
# the folder of the combinations, the ending of the names, and a part's config
SETS = {
    'cifar100': (ROOT / COMBINED, f'{PAIR}_1xb64_cifar100.py', lambda part, name: CLASSIFICATION / part / name),
    'tin100': (CLASSIFICATION / 'tin100', f'{PAIR}_4e_tin100.py', lambda part, name: CLASSIFICATION / 'tin100' / name),
}
METHODS = {'sftn': 'SFTN', 'tst': 'TST', 'sokd': 'SoKD', 'studentfriendlykd': 'SKD'}
PATHS = sorted((ROOT / COMBINED).glob('*.py'))
every_set = pytest.mark.parametrize('data', SETS)


def load(path):
    return without_scope(read(path).to_dict())


def parts_of(data, name, *parts):
    """The combination, and each part's own config; paths to a teacher's config are told apart by the file alone."""
    folder, ending, where = SETS[data]
    paths = [folder / f'{name}_{ending}', *(where(part, f'{stem}_{ending}') for part, stem in parts)]
    cfgs = [load(path) for path in paths]
    for cfg in cfgs:
        cfg['model']['teacher']['cfg'] = Path(cfg['model']['teacher']['cfg']).name
    return cfgs


@every_set
def test_sftn_gives_sokd_another_teacher_and_nothing_else(data):
    ours, sokd = parts_of(data, 'sokd_fitnet_sftn', ('sokd', 'sokd_fitnet'))
    checkpoint = ours['model']['teacher'].pop('checkpoint')
    assert checkpoint != sokd['model']['teacher'].pop('checkpoint')
    assert ours == sokd
    if data == 'cifar100':  # in tin100 the user puts it there
        sftn = CLASSIFICATION / f'sftn/sftn_{PAIR}_1xb64_cifar100.py'
        assert checkpoint == f'work_dirs/{sftn.stem}/teacher_epoch_{read(sftn).train_cfg.max_epochs}.pth'
        teacher = CLASSIFICATION / 'cifar_zoo' / ours['model']['teacher']['cfg']
        assert without_scope(read(sftn).model.teacher.to_dict()) == load(teacher)['model']


@every_set
def test_tst_sokd_and_skd_are_put_together(data):
    tst_path, skd_path = ('tst', 'tst_kd'), ('studentfriendlykd', 'studentfriendlykd')
    ours, sokd, tst, skd = parts_of(data, 'tst_sokd_studentfriendlykd', ('sokd', 'sokd_fitnet'), tst_path, skd_path)
    (burst,) = [hook for hook in tst['custom_hooks'] if hook['type'] == 'mmsokd.TSTHook']
    sokd['custom_hooks'].append(burst)
    sokd['model'].update(
        type='mmsokd.TSTDistiller',
        augmenter=tst['model']['augmenter'],
        refine=dict(type='mmsokd.FeatureAugmentationNeck'),  # SoKDDistiller's default
        terms={**sokd['model']['terms'], **skd['model']['terms']},
    )
    sokd['optim_wrapper'] = skd['optim_wrapper']
    assert ours == sokd


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.stem)
def test_makes_a_step(path):
    cfg, model = build_small(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        build_training(cfg, model)
    log = step(model)
    assert {'student.loss', 'sokd.loss_agreement', 'sokd.loss_area', 'sokd.aug'} <= set(log)
    assert ('distill.loss_skd' in log) == ('studentfriendlykd' in path.name)


@pytest.mark.parametrize('model', metafile(COMBINED)['Models'], ids=lambda m: m['Name'])
def test_metafile_and_card_name_the_methods_and_the_teacher(model):
    meta, path = model['Metadata'], ROOT / model['Config']
    assert path.stem == model['Name']
    assert set(meta['Methods']) == {METHODS[part] for part in path.stem.split('_') if part in METHODS}
    assert read(path).train_cfg.max_epochs == meta['Epochs']
    assert Path(meta['Teacher']['Config']).stem == Path(read(path).model.teacher.checkpoint).parent.name
    assert without_scope(read(path).model.student.to_dict()) == load(ROOT / meta['Student']['Config'])['model']
    (row,) = [row for row in readme_rows(COMBINED) if link(row['Config']) == path.name]
    assert row['Methods'].split(', ') == meta['Methods']
    assert SCHEDULE[row['Lr schd']].items() <= meta.items()
    assert (ROOT / COMBINED / link(row['Download'])).resolve() == ROOT / meta['Teacher']['Config']
    found = row[f'{METRICS["classification"]} (teacher / student alone / distilled)'].split(' / ')
    assert found == [measured(entry, METRICS['classification']) for entry in (meta['Teacher'], meta['Student'], {})]
