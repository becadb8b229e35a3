"""The hosts' configs: SoKD adds its plug-ins and their adapter, and configs/HOSTS.md tells what is there.

That each of them builds and makes a step is test_configs' business.
"""

import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from mmsokd.distillers.build import load_config
from mmsokd.registry import MODELS
from tests.builders import without_scope
from tests.test_configs import HOSTS, quick_and_slow, read, terms_of

CONFIGS = Path(__file__).parents[1] / 'configs'
TASKS = {  # of the card: its folder, and the pair whose adapters it tells
    'COCO': ('detection', 'retinanet_r101-r18_fpn_1x_coco', 'gfl_r101-r50_fpn_1x_coco'),
    'Cityscapes': ('segmentation', 'pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024'),
    'ImageNet': ('classification', 'resnet34-resnet18_8xb32_in1k'),
    'CIFAR-100': ('classification', 'resnet32x4-resnet8x4_1xb64_cifar100'),
}
every_host = pytest.mark.parametrize('path', HOSTS, ids=lambda p: f'{p.parents[1].name}/{p.stem}')


def load(path):
    return without_scope(read(path).to_dict())


def pair_of(path):
    return path.stem.removeprefix(f'{path.parent.name}_')


def on_card(path):
    """The task whose row tells of ``path``, or None: FitNet has more pairs than the card."""
    folder = path.parents[1].name
    return next((task for task, (where, *pairs) in TASKS.items() if where == folder and pair_of(path) in pairs), None)


def with_sokd(path):
    """The same host with SoKD: beside it, or, for FitNet, among the SoKD configs."""
    (found,) = [p for p in path.parents[1].glob(f'*/sokd_{path.name}') if p.parent.name in (path.parent.name, 'sokd')]
    return found


@every_host
def test_sokd_adds_its_plug_ins_and_their_adapter(path):
    """As config dicts: all beside the plug-ins and the terms' adapters."""
    alone, sokd = load(path), load(with_sokd(path))
    types = alone['model'].pop('type'), sokd['model'].pop('type')
    assert types == ('mmsokd.Distiller', 'mmsokd.SoKDDistiller')
    assert alone['model'].keys().isdisjoint({'refine', 'areas', 'keep_host'})
    keep_host = sokd['model'].pop('keep_host', True)
    for key in ('refine', 'areas'):
        sokd['model'].pop(key, None)
    for cfg in (alone, sokd):
        for term in cfg['model']['terms'].values():
            term.pop('adapter', None)
            if not keep_host:  # the area loss takes the host's place, whose weight then means nothing
                assert term.pop('loss_weight') == (1.0 if cfg is sokd else 100.0)
    assert sokd == alone


@pytest.mark.parametrize(
    'path',
    # FitNet has more pairs than the card, whose large networks take their time
    quick_and_slow(HOSTS, lambda p: on_card(p) is None and 'cifar' not in p.name),
    ids=lambda p: f'{p.parents[1].name}/{p.stem}',
)
def test_sokd_changes_nothing_of_a_term_but_its_adapter(path):
    """As built: the loss and its arguments, the weight over the training, taps, teacher and levels."""
    alone, sokd = terms_of(path), terms_of(with_sokd(path))
    assert alone.keys() == sokd.keys()
    model = load(with_sokd(path))['model']
    for name in alone:
        ours, theirs = alone[name]['compared'], sokd[name]['compared']
        if not model.get('keep_host', True):
            ours, theirs = [rest for _losses, _weights, *rest in (ours, theirs)]  # the areas take the host's place
        assert ours == theirs
        # Phi_s belongs to SoKD: every feature term has it beside areas, unless the host has an adapter of its own
        losses, *_ = alone[name]['compared']
        own = {losses_name for losses_name, *_ in losses} & {'ReviewKDLoss', 'VIDLoss'}
        phi = model.get('refine', {}).get('at') is None and not own
        assert sokd[name]['adapter'] == ({'SoKDAdapter'} if phi else alone[name]['adapter'])
        assert 'SoKDAdapter' not in alone[name]['adapter']


@pytest.mark.parametrize(
    'path', [p for p in HOSTS if p.parent.name != 'fitnet'], ids=lambda p: f'{p.parents[1].name}/{p.parent.name}'
)
def test_pair_and_schedule_are_those_of_the_sokd_configs(path):
    ours, theirs = load(path), load(path.parents[1] / f'sokd/sokd_fitnet_{pair_of(path)}.py')
    models = ours.pop('model'), theirs.pop('model')
    if path.parent.name == 'crd':  # whose checkpoints are large
        assert ours['default_hooks']['checkpoint'].pop('max_keep_ckpts') == 1
    if path.parent.name == 'studentfriendlykd':  # whose simplifier has a rate of its own
        slow = ours['optim_wrapper'].pop('paramwise_cfg')
        assert slow == dict(custom_keys={'simplifier': dict(lr_mult=1e-3)})
    assert ours == theirs
    assert models[0]['teacher']['checkpoint'] == models[1]['teacher']['checkpoint']
    networks = [[model['student'], model_of(model['teacher']['cfg'])] for model in models]
    assert networks[0] == networks[1]


def model_of(source):
    return without_scope(read_teacher(source).model.to_dict())


@cache
def read_teacher(source):
    return load_config('teacher', source)


# ---- the card -------------------------------------------------------------------------------------------------------


def rows():
    """The card's table: folder and task -> header -> cell."""
    lines = [line for line in (CONFIGS / 'HOSTS.md').read_text().splitlines() if line.startswith('|')]
    header, _rule, *body = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    found = [dict(zip(header, row, strict=True)) for row in body]
    links = [re.fullmatch(r'\[(.+)\]\((.+)/README\.md\)', row['Folder']) for row in found]
    assert all(link[1] == link[2] for link in links)
    table = {(link[1], row['Task']): row for link, row in zip(links, found, strict=True)}
    assert len(table) == len(found)
    return table


CARD = [p for p in HOSTS if on_card(p) and not (p.parent.name == 'fitnet' and 'gfl' in p.name)]


def test_card_lists_the_folders():
    assert set(rows()) == {(str(path.parent.relative_to(CONFIGS)), on_card(path)) for path in CARD}
    assert {path.parent for path in CARD} == {path.parent for path in HOSTS}


@pytest.mark.parametrize('path', CARD, ids=lambda p: f'{p.parents[1].name}/{p.stem}')
def test_card_says_what_the_config_says(path):
    row = rows()[str(path.parent.relative_to(CONFIGS)), on_card(path)]
    alone, sokd = load(path)['model'], load(with_sokd(path))['model']
    terms = alone['terms'].values()
    assert {term['type'] for term in terms} == {f'mmsokd.{row["Host"]}Loss'}
    assert path.parent.name == row['Host'].lower()
    taps = [tap for term in terms for tap in ([term['tap']] if isinstance(term['tap'], str) else term['tap'])]
    assert [f'`{tap}`' for tap in taps] == row['Tap'].split(', ')
    for term in terms:
        assert ends_of(term['loss_weight']) == pytest.approx([eval_fraction(x) for x in row['Weight'].split(' to ')])

    in_place = sokd.get('refine', {}).get('at') is not None
    assert row['SoKD refines'] == ('in place' if in_place else 'feature')
    assert 'areas' not in sokd or not in_place  # without them it has none
    weighed = not in_place and MODELS.get(f'{row["Host"]}Loss').per_position
    assert row['Areas weigh it'] == ('yes' if weighed else 'no')
    assert row['Adapter alone'] == adapters(path)
    assert row['Adapter with SoKD'] == adapters(with_sokd(path))


def adapters(path):
    """As the card tells them: class and trainable parameters of each term's."""
    told = [f'`{"`, `".join(term["adapter"])}` {term["parameters"]:,}' for term in terms_of(path).values()]
    return ', '.join(told).replace('`Identity` 0', 'none')


def test_recipes_in_the_cards_are_those_of_the_configs():
    """Where logits are compared, the cards refine the layer that the configs refine."""
    refined = {(load(with_sokd(path))['model'].get('refine') or {}).get('at') for path in HOSTS} - {None}
    folders = {path.parent for path in HOSTS} | {with_sokd(path).parent for path in HOSTS}
    cards = [CONFIGS / 'HOSTS.md', *(folder / 'README.md' for folder in folders)]
    told = {layer for card in cards for layer in re.findall(r"at='([^']+)'", card.read_text())}
    assert told == refined


def ends_of(weight):
    """The weight; of a schedule, its first and its last."""
    return [weight[0][1], weight[-1][1]] if isinstance(weight, list) else [weight]


def eval_fraction(text):
    """A number, or a quotient of two."""
    numerator, _, denominator = text.partition(' / ')
    return float(Fraction(numerator) / Fraction(denominator or '1'))


def test_card_names_the_papers_that_the_readme_names():
    text = (CONFIGS.parent / 'README.md').read_text()
    papers = dict(re.findall(r'^\| host \| `(\w+)Loss`.*(arXiv [\d.]+\d|doi \S+) \|$', text, re.M))
    assert {row['Host']: row['Paper'] for row in rows().values()} == papers
