"""What README and docs say is so: the links lead somewhere, the ten lines build, and the tables name what is there."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS

import mmsokd.hooks
import mmsokd.losses
from mmsokd.distillers import SoKDDistiller
from mmsokd.registry import MODELS
from tests.builders import retinanet

ROOT = Path(__file__).resolve().parents[1]
OTHERS = {'TSTHook', 'MetaRefineHook', 'TeacherCacheHook'}  # other methods', and for static views alone
SOKD_HOOKS = {f'mmsokd.{name}' for name in mmsokd.hooks.__all__ if name not in OTHERS}
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r'\]\(([^)#\s]+)', page.read_text())
    missing = [link for link in links if '://' not in link and not (page.parent / link).exists()]
    assert not missing


def ten_lines(page):
    return next(b for b in re.findall(r'```python\n(.*?)```', page.read_text(), re.S) if b.startswith('_base_'))


def test_ten_lines_are_ten_and_the_same_everywhere():
    code = ten_lines(ROOT / 'README.md')
    assert len(code.strip().splitlines()) == 10
    assert ten_lines(ROOT / 'docs/get_started.md') == code


def test_ten_lines_build(tmp_path):
    """With a small student and a small teacher in place of the names in it."""
    Config(dict(model=retinanet(16), default_scope='mmdet')).dump(tmp_path / 'my_retinanet_r18.py')
    Config(dict(model=retinanet(24), default_scope='mmdet')).dump(tmp_path / 'teacher.py')
    code = ten_lines(ROOT / 'README.md')
    for old, new in {
        'path/to/configs': str(ROOT / 'configs'),
        "'mmdet::retinanet/retinanet_r101_fpn_2x_coco.py', checkpoint='r101.pth'": repr(str(tmp_path / 'teacher.py')),
    }.items():
        assert old in code
        code = code.replace(old, new)
    (tmp_path / 'my_sokd.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'my_sokd.py')
    model = ROOT_MODELS.build(cfg.model)
    assert isinstance(model, SoKDDistiller)
    assert model.refine is not None
    assert model.areas is not None
    assert {hook.type for hook in cfg.custom_hooks} == SOKD_HOOKS


@pytest.mark.parametrize('base', ['yolox/yolox_s_8xb8-300e_coco.py', 'rtmdet/rtmdet_s_8xb32-300e_coco.py'])
def test_lines_beside_hooks_of_the_users_own(tmp_path, base):
    (tmp_path / 'my_yolox.py').write_text(f"_base_ = 'mmdet::{base}'\n")
    (tmp_path / 'my_sokd.py').write_text(ten_lines(ROOT / 'docs/config.md'))
    theirs = Config.fromfile(tmp_path / 'my_yolox.py').custom_hooks
    hooks = Config.fromfile(tmp_path / 'my_sokd.py').custom_hooks
    assert len(theirs) > 1
    assert hooks[: len(theirs)] == theirs
    assert {hook.type for hook in hooks[len(theirs) :]} == SOKD_HOOKS


def test_readme_lists_the_losses():
    text = (ROOT / 'README.md').read_text()
    losses = {name for name in mmsokd.losses.__all__ if name.endswith('Loss') and name in MODELS.module_dict}
    assert set(re.findall(r'^\| host \| `(\w+)`', text, re.M)) == losses
    assert f'any of {len(losses)} host losses' in ' '.join(text.split())


def test_config_page_lists_the_hooks():
    text = (ROOT / 'docs/config.md').read_text()
    assert set(re.findall(r'^\| `(\w+Hook)` \|', text, re.M)) == set(mmsokd.hooks.__all__)


def test_results_of_the_readme_are_those_of_the_cards():
    table = (ROOT / 'README.md').read_text().split('## Results')[1].split('\n## ')[0]
    rows = [line for line in table.splitlines() if line.startswith('| [') or line.startswith('| the same')]
    card = None
    for row in rows:
        link = re.search(r'\]\((configs/[^)]+)\)', row)
        card = (ROOT / link[1]).read_text() if link else card
        numbers = re.findall(r'\d+\.\d+(?: ± \d+\.\d+)?', row.split('|', 2)[2])
        assert len(numbers) == 4
        assert [number for number in numbers if number not in card] == []
    assert len(rows) == 4


def cells(text):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]


def test_the_smaller_pairs_results_are_those_of_its_card():
    readme = cells((ROOT / 'README.md').read_text().split('The other methods, on a smaller pair')[1].split('\n\n')[1])
    card = (ROOT / 'configs/classification/tin100/README.md').read_text().split('## A smaller pair')[1]
    measured = {(mean, over) for _, _, _, mean, over in cells(card)}
    assert [row for row in readme[3:] if (row[1], row[3]) not in measured] == []
    assert len(readme) == 11
    assert all(f'| {number} (one run) |' in card for number in readme[2][1].split(' (')[0].split('; '))


def test_citation_names_this_version():
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert cited['version'] == mmsokd.__version__
    assert cited['license'] == 'Apache-2.0'
    assert cited['preferred-citation']['title'] in (ROOT / 'README.md').read_text()
