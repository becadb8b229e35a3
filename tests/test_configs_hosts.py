"""The hosts' configs: SoKD adds its plug-ins and nothing else, and configs/HOSTS.md tells what is there.

That each SoKD form builds and makes a step is test_configs' business.
"""

import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from mmsokd.distillers.build import load_config
from mmsokd.registry import MODELS
from tests.builders import without_scope
from tests.test_configs import HOSTS, read

CONFIGS = Path(__file__).parents[1] / 'configs'
TASKS = dict(COCO='detection', Cityscapes='segmentation', ImageNet='classification')
every_host = pytest.mark.parametrize('path', HOSTS, ids=lambda p: f'{p.parents[1].name}/{p.parent.name}')


def load(path):
    return without_scope(read(path).to_dict())


def with_sokd(path):
    """The same host with SoKD: beside it, or, for FitNet, among the SoKD configs."""
    (found,) = [p for p in path.parents[1].glob(f'*/sokd_{path.name}') if p.parent.name in (path.parent.name, 'sokd')]
    return found


@every_host
def test_sokd_adds_its_plug_ins_and_nothing_else(path):
    alone, sokd = load(path), load(with_sokd(path))
    types = alone['model'].pop('type'), sokd['model'].pop('type')
    assert types == ('mmsokd.Distiller', 'mmsokd.SoKDDistiller')
    assert alone['model'].keys().isdisjoint({'refine', 'areas'})
    assert sokd['model'].pop('refine') is not None
    sokd['model'].pop('areas')
    assert sokd == alone


@every_host
def test_pair_and_schedule_are_those_of_the_sokd_configs(path):
    pair = path.name.removeprefix(f'{path.parent.name}_')
    (reference,) = path.parents[1].glob(f'sokd*/sokd_fitnet_{pair}')
    ours, theirs = load(path), load(reference)
    models = ours.pop('model'), theirs.pop('model')
    assert ours == theirs
    assert models[0]['teacher']['checkpoint'] == models[1]['teacher']['checkpoint']
    networks = [[model['student'], model_of(model['teacher']['cfg'])] for model in models]
    if path.parent.name == 'reviewkd':  # compares all stages, which a classifier's backbone gives on demand
        for network in (*networks[0], *networks[1]):
            network['backbone'] = {k: v for k, v in network['backbone'].items() if k != 'out_indices'}
    assert networks[0] == networks[1]


def model_of(source):
    return without_scope(read_teacher(source).model.to_dict())


@cache
def read_teacher(source):
    return load_config('teacher', source)


# ---- the card -------------------------------------------------------------------------------------------------------


def rows():
    """The card's table: folder -> header -> cell."""
    lines = [line for line in (CONFIGS / 'HOSTS.md').read_text().splitlines() if line.startswith('|')]
    header, _rule, *body = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    found = [dict(zip(header, row, strict=True)) for row in body]
    folders = [re.fullmatch(r'\[(.+)\]\((.+)\)', row['Folder']) for row in found]
    assert all(link[1] == link[2] for link in folders)
    assert len({link[1] for link in folders}) == len(found)
    return {link[1]: row for link, row in zip(folders, found, strict=True)}


def test_card_lists_the_folders():
    assert set(rows()) == {str(path.parent.relative_to(CONFIGS)) for path in HOSTS}


@every_host
def test_card_says_what_the_config_says(path):
    row = rows()[str(path.parent.relative_to(CONFIGS))]
    sokd = load(with_sokd(path))['model']
    terms = sokd['terms'].values()
    assert {term['type'] for term in terms} == {f'mmsokd.{row["Host"]}Loss'}
    assert path.parent.name == row['Host'].lower()
    assert path.parents[1].name == TASKS[row['Task']]
    assert [f'`{term["tap"]}`' for term in terms] == row['Tap'].split(', ')
    weight = float(eval_fraction(row['Weight']))
    assert [term['loss_weight'] for term in terms] == [pytest.approx(weight, rel=1e-12)] * len(terms)

    in_place = sokd['refine'].get('at') is not None
    assert row['SoKD refines'] == ('in place' if in_place else 'feature')
    assert (sokd['areas'] is None) == in_place
    weighed = not in_place and MODELS.get(f'{row["Host"]}Loss').per_position
    assert row['Areas weigh it'] == ('yes' if weighed else 'no')


def eval_fraction(text):
    """A number, or a quotient of two."""
    numerator, _, denominator = text.partition(' / ')
    return Fraction(numerator) / Fraction(denominator or '1')


def test_card_names_the_papers_that_the_readme_names():
    text = (CONFIGS.parent / 'README.md').read_text()
    papers = dict(re.findall(r'^\| host \| `(\w+)Loss`.*(arXiv [\d.]+\d) \|$', text, re.M))
    assert {row['Host']: row['Paper'] for row in rows().values()} == papers
