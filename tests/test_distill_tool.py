"""tools/distill.py as a user meets it: two plain config files, a checkpoint, and what comes of them."""

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as ROOT_MODELS

from mmsokd.distillers import Distiller, SoKDDistiller
from mmsokd.distillers.build import build_model
from mmsokd.export import load_student
from mmsokd.recipes.methods import HOSTS
from tests.builders import (
    classifier,
    raw_batch,
    raw_cls_batch,
    raw_seg_batch,
    retinanet,
    segmentor,
    step,
    use_scope,
)
from tests.distillers.test_families import override, two_stage
from tests.hooks.test_training import config, make_pictures
from tests.test_own_train_scripts import classification, segmentation

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools' / 'distill.py'
LIBRARIES = dict(detection='mmdet', segmentation='mmseg', classification='mmpretrain')
BATCHES = dict(detection=raw_batch, segmentation=raw_seg_batch, classification=lambda: raw_cls_batch(4, classes=3))
TASKS = list(LIBRARIES)


def networks(task):
    """Configs of a student and a wider teacher."""
    if task == 'detection':
        return retinanet(16), retinanet(24)
    if task == 'segmentation':
        return segmentor(8), segmentor(12, channels=20)
    return classifier(8, classes=3), classifier(16, classes=3)


def data_of(task, folder):
    """A whole config, but for the model."""
    if task != 'detection':
        cfg = dict(segmentation=segmentation, classification=classification)[task](folder)
        cfg.pop('custom_imports')
        return cfg
    cfg = config(make_pictures(folder / 'pictures'), folder / 'work', model={}, epochs=1, log_level='INFO')
    for key in ('custom_imports', 'custom_hooks', 'work_dir', 'model'):
        cfg.pop(key)
    return cfg


@pytest.fixture(scope='module')
def projects(tmp_path_factory):
    """task -> a folder with student.py, teacher.py and teacher.pth."""
    folders = {}
    for task in TASKS:
        folder = folders[task] = tmp_path_factory.mktemp(task)
        cfg = data_of(task, folder)
        for name, model in zip(('student', 'teacher'), networks(task), strict=True):
            Config({**cfg.to_dict(), 'model': model}).dump(folder / f'{name}.py')
        use_scope(LIBRARIES[task])
        torch.save(dict(state_dict=build_model('teacher', model).state_dict()), folder / 'teacher.pth')
    return folders


@pytest.fixture
def distill(monkeypatch, tmp_path, capsys):
    """The tool in this process, run from an empty folder; what it prints, or how it ends."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    tool = importlib.import_module('distill')
    monkeypatch.setattr(tool, 'quieten', lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['distill.py', *map(str, args)])
        capsys.readouterr()
        tool.main()
        return capsys.readouterr().out

    return run


def fails(distill, *args):
    with pytest.raises(SystemExit) as error:
        distill(*args)
    assert isinstance(error.value.code, str), 'a message'
    assert '\n  File' not in error.value.code
    return error.value.code


def both(folder):
    return folder / 'student.py', folder / 'teacher.py', '--teacher-checkpoint', folder / 'teacher.pth'


# ---- from two configs to a config that trains ------------------------------------------------------------------------


def build(path):
    """As MMEngine's Runner does."""
    cfg = Config.fromfile(path)
    use_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    return cfg, ROOT_MODELS.build(cfg.model)


@pytest.mark.parametrize('method', ['sokd-fitnet', 'kd', 'sokd-kd'])
@pytest.mark.parametrize('task', TASKS)
def test_dry_run_writes_a_config_that_trains(distill, projects, tmp_path, task, method):
    out = distill(*both(projects[task]), '--method', method, '--dry-run')
    path = tmp_path / f'{method.replace("-", "_")}_student.py'
    assert f'Written: {path.name}' in out
    assert re.search(r'term +student tap +stride +channels +teacher tap +stride +channels +adapter', out)
    cfg, model = build(path)
    assert type(model) is (SoKDDistiller if 'sokd' in method else Distiller)
    assert {hook.type for hook in cfg.custom_hooks} >= {'mmsokd.GuardHook', 'mmsokd.PolicySearchHook'}
    assert 'train_dataloader' in cfg
    assert model.data_preprocessor._enable_normalize
    (name,) = list(model.terms)[:1]
    wrapper = OptimWrapper(torch.optim.SGD(model.train().parameters(), lr=0.01))
    losses = step(model, wrapper, BATCHES[task]())
    assert losses[f'distill.{name}'].isfinite()
    # the teacher is the one of the file
    weights = torch.load(projects[task] / 'teacher.pth')['state_dict']
    assert all(torch.equal(value, weights[key]) for key, value in model.teacher.state_dict().items())


def test_each_line_is_explained_and_has_no_channels(distill, projects, tmp_path):
    distill(*both(projects['detection']), '--dry-run')
    text = (tmp_path / 'sokd_fitnet_student.py').read_text()
    body = text[text.index('model = dict(') :].splitlines()
    assert not re.search(r'channels=\d|(?<!num_areas=)\b(16|24)\b', '\n'.join(body))
    for i, line in enumerate(body):
        if re.match(r'    \w+=', line):  # each key of the distiller, at its line or above
            assert '#' in line or body[i - 1].strip().startswith('#') or line.startswith('    teacher'), line
    assert text.splitlines()[0] == '"""SoKD on FitNet: RetinaNet teaches RetinaNet.'


def test_the_page_shows_what_is_written(distill, projects, tmp_path):
    """The config of docs/distill.md, of pyramids of five levels."""
    page = (ROOT / 'docs' / 'distill.md').read_text()
    shown = next(b for b in re.findall(r'```python\n(.*?)```', page, re.S) if '_base_' in b)
    cfg = Config.fromfile(projects['detection'] / 'student.py')
    for name, width in (('retinanet_r18_cells', 16), ('retinanet_r34_cells', 24)):
        cfg.model = retinanet(width, levels=5)
        cfg.dump(tmp_path / f'{name}.py')
    torch.save(dict(state_dict=build_model('teacher', cfg.model).state_dict()), tmp_path / 'teacher.pth')
    out = distill(*re.search(r'distill\.py ((?:\\\n|.)*--dry-run)', page)[1].replace('\\\n', '').split())
    written = (tmp_path / 'sokd_fitnet_retinanet_r18_cells.py').read_text()
    assert written == shown
    header = re.search(r'^term .*', page, re.M)[0]
    assert header.split() == re.search(r'^term .*', out, re.M)[0].split()


def test_table_shows_what_was_built(distill, projects):
    out = distill(*both(projects['detection']), '--dry-run')
    rows = re.findall(r'neck\[(\d)\] +(\d+) +16 +neck\[(\d)\] +(\d+) +24 +SoKDAdapter', out)
    assert rows == [('0', '8', '0', '8'), ('1', '16', '1', '16'), ('2', '32', '2', '32')]
    student, teacher = (sum(p.numel() for p in build_model('model', m).parameters()) for m in networks('detection'))
    assert re.search(rf'student +RetinaNet +{student / 1e3:.1f} k +parameters', out)
    assert re.search(rf'teacher +RetinaNet +{teacher / 1e3:.1f} k +parameters', out)


METHODS = [(task, host) for task in TASKS for host in HOSTS[task] if host not in ('fitnet', 'kd', 'ld')]


@pytest.mark.slow
@pytest.mark.parametrize(('task', 'host'), METHODS)
def test_every_method_builds_and_makes_a_step(distill, projects, tmp_path, task, host):
    for method in (host, f'sokd-{host}'):
        out = distill(*both(projects[task]), '--method', method, '--dry-run')
        assert ('Note: the loss weight is the one for' in out) == HOSTS[task][host].untried
        _, model = build(tmp_path / f'{method.replace("-", "_")}_student.py')
        wrapper = OptimWrapper(torch.optim.SGD(model.train().parameters(), lr=1e-4))
        losses = step(model, wrapper, BATCHES[task]())
        assert all(losses[f'distill.{name}'].isfinite() for name in model.terms)


def test_config_holds_where_it_lies(distill, projects, tmp_path, monkeypatch):
    """Its paths are its own: neither the folder it was written from nor the one it is read from matters."""
    monkeypatch.chdir(projects['detection'])
    place = tmp_path / 'a' / 'b' / 'mine.py'
    distill('student.py', 'teacher.py', '--teacher-checkpoint', 'teacher.pth', '--out', place, '--dry-run')
    monkeypatch.chdir('/')
    assert isinstance(build(place)[1], SoKDDistiller)
    assert not [path for path in place.parent.iterdir() if path != place and path.suffix == '.py']


def test_hooks_and_imports_of_the_students_own_stay(distill, projects, tmp_path):
    folder = projects['detection']
    (tmp_path / 'own.py').write_text(
        f'_base_ = {str(folder / "student.py")!r}\n'
        "custom_hooks = [dict(type='EMAHook'), dict(type='mmsokd.GuardHook')]\n"
        "custom_imports = dict(imports=['json'], allow_failed_imports=False)\n"
        "work_dir = 'mine'\n"
    )
    distill('own.py', *both(folder)[1:], '--dry-run')
    cfg = Config.fromfile(tmp_path / 'sokd_fitnet_own.py')
    ours = [hook.type for hook in Config.fromfile(ROOT / 'configs/_base_/sokd.py').custom_hooks]
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', *ours]
    assert cfg.custom_imports.imports == ['json', 'mmsokd']
    assert cfg.work_dir == 'work_dirs/sokd_fitnet_own'  # not into the student's run
    assert isinstance(build(tmp_path / 'sokd_fitnet_own.py')[1], SoKDDistiller)
    (tmp_path / 'none.py').write_text(f'_base_ = {str(folder / "student.py")!r}\ncustom_hooks = []\n')
    distill('none.py', *both(folder)[1:], '--dry-run')
    assert [hook.type for hook in Config.fromfile(tmp_path / 'sokd_fitnet_none.py').custom_hooks] == ours


def test_sync_bn_of_the_student_is_the_adapters_too(distill, projects, tmp_path):
    folder = projects['segmentation']
    model = segmentor(8)
    model['decode_head']['norm_cfg'] = dict(type='SyncBN', requires_grad=True)
    (tmp_path / 'sync.py').write_text(f'_base_ = {str(folder / "student.py")!r}\nmodel = {model!r}\n')
    distill('sync.py', *both(folder)[1:], '--dry-run')
    assert Config.fromfile(tmp_path / 'sokd_fitnet_sync.py').sync_bn == 'torch'
    distill(*both(folder), '--dry-run')
    assert 'sync_bn' not in Config.fromfile(tmp_path / 'sokd_fitnet_student.py')


# ---- taps ------------------------------------------------------------------------------------------------------------


def variant(projects, tmp_path, name, task='detection', **model):
    """A config file like the student's with another model."""
    lines = [f'_base_ = {str(projects[task] / "student.py")!r}', f'model = dict(_delete_=True, **{model!r})']
    (tmp_path / f'{name}.py').write_text('\n'.join(lines))
    return tmp_path / f'{name}.py'


def fpn(first, levels, channels=16):
    """A RetinaNet whose pyramid begins at stage ``first``."""
    model = retinanet(channels, levels=levels)
    model['neck']['start_level'] = first
    model['bbox_head']['anchor_generator']['strides'] = [4 * 2 ** (first + i) for i in range(levels)]
    return model


def test_levels_are_paired_by_stride_and_the_lonely_left_out(distill, projects, tmp_path):
    student = variant(projects, tmp_path, 'wide', **fpn(0, 4))  # 4, 8, 16, 32
    out = distill(student, projects['detection'] / 'teacher.py', '--dry-run')  # 8, 16, 32
    assert re.findall(r'neck\[(\d)\] +(\d+) +16 +neck\[(\d)\] +(\d+)', out) == [
        ('1', '8', '0', '8'),
        ('2', '16', '1', '16'),
        ('3', '32', '2', '32'),
    ]
    assert "Note: The student's levels of stride 4 at 'neck' have no partner in the teacher, and are left out." in out


def test_logits_are_paired_by_stride_too(distill, projects, tmp_path):
    student = variant(projects, tmp_path, 'wide', **fpn(0, 4))
    out = distill(student, projects['detection'] / 'teacher.py', '--method', 'mtkdssr', '--dry-run')
    strides = re.findall(r'(?:neck|retina_cls)\[\d\] +(\d+) +\d+ +(?:neck|bbox_head\.retina_cls)\[\d\] +(\d+)', out)
    assert strides == [('8', '8'), ('16', '16'), ('32', '32')] * 2


def test_stages_of_another_stride_are_resized(distill, projects, tmp_path):
    """A segmentor of stride 32 learns from one of stride 8."""
    model = segmentor(8)
    model['backbone'].update(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), contract_dilation=False)
    student = variant(projects, tmp_path, 'coarse', 'segmentation', **model)
    out = distill(student, *both(projects['segmentation'])[1:], '--dry-run')
    assert "'backbone.layer4' of the student has stride 32 and 'backbone.layer4' of the teacher 8" in out
    cfg, distiller = build(tmp_path / 'sokd_fitnet_coarse.py')
    assert 'nobody has tried' not in out
    assert cfg.model.terms.loss_hint.adapter == dict(type='mmsokd.SoKDAdapter', resize='bilinear')
    assert step(distiller.train(), OptimWrapper(torch.optim.SGD(distiller.parameters(), lr=0.01)), raw_seg_batch())
    out = distill(student, *both(projects['segmentation'])[1:], '--method', 'kd', '--dry-run')
    assert re.search(r'decode_head\.conv_seg +32 +4 +decode_head\.conv_seg +8 +4 +ResizeAdapter', out)


def test_taps_of_the_users_own(distill, projects, tmp_path):
    args = ('--student-tap', 'backbone.layer2', '--teacher-tap', 'backbone.layer2', '--method', 'fitnet', '--dry-run')
    distill(*both(projects['segmentation']), *args)
    terms = Config.fromfile(tmp_path / 'fitnet_student.py').model.terms
    assert {name: term.tap for name, term in terms.items()} == {'loss_hint': 'backbone.layer2'}  # one term of two
    out = distill(*both(projects['classification']), '--method', 'reviewkd', '--student-tap',
                  'backbone.layer2, backbone.layer3', '--dry-run')  # fmt: skip
    assert re.findall(r'(backbone\.layer\d) +\d+ +\d+ +(backbone\.layer\d)', out) == [
        ('backbone.layer2', 'backbone.layer2'),
        ('backbone.layer3', 'backbone.layer3'),
    ]


def test_the_size_of_a_network_that_takes_one_only(distill, projects, tmp_path):
    """A mixer is made for pictures of one size, which is found, and written down."""
    arch = dict(embed_dims=16, num_layers=2, tokens_mlp_dims=8, channels_mlp_dims=8)
    model = classifier(8, backbone=dict(type='MlpMixer', arch=arch, img_size=64, patch_size=16))
    model['neck']['dim'] = 1
    model['head']['in_channels'] = 16
    student = variant(projects, tmp_path, 'mixer', 'classification', **model)
    out = distill(student, *both(projects['classification'])[1:], '--dry-run')
    assert 'shapes of a picture of 64 x 64 pixels' in out
    assert Config.fromfile(tmp_path / 'sokd_fitnet_mixer.py').model.probe_size == 64
    assert 'does not run' not in out
    told = fails(distill, student, *both(projects['classification'])[1:], '--dry-run', '--probe-size', 96)
    assert 'expected a model that runs on a picture of 96 x 96 pixels, found that ImageClassifier does not' in told


# ---- what cannot be --------------------------------------------------------------------------------------------------


def test_no_level_of_one_stride(distill, projects, tmp_path):
    fine = fpn(0, 1)
    fine['neck']['end_level'] = 0
    student = variant(projects, tmp_path, 'fine', **fine)
    teacher = variant(projects, tmp_path, 'coarse', **fpn(2, 2))
    told = fails(distill, student, teacher, '--dry-run')
    assert 'sokd-fitnet from' in told
    assert (
        "expected levels of one stride on both sides, found strides [4] at 'neck' of the student and [16, 32]" in told
    )
    assert '--list-taps' in told
    assert not list(tmp_path.glob('sokd_*'))


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['--method', 'fitnt'], "--method: expected a method for detection, found 'fitnt'; nearest: 'fitnet'"),
        (['--method', 'dkd'], "found 'dkd', which is made for classification and segmentation"),
        (['--method', 'ld'], "expected a head that predicts distributions of the sides of a box, such as GFLHead"),
        (['--student-tap', 'nek'], "--student-tap: expected the path of a submodule of RetinaNet, found 'nek'"),
        (['--student-tap', 'neck[7]'], '--student-tap: expected an index into the output, found 3 outputs'),
        (['--student-tap', 'bbox_head'], '--student-tap: expected a feature (a tensor, or a tuple of tensors)'),
        (['--student-tap', 'backbone.layer1,neck', '--teacher-tap', 'backbone.layer1'], 'expected each student level'),
        (['--out', 'work/x.py', '--work-dir', 'work'], '--out: expected a place outside of the work dir'),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(distill, projects, args, told):
    assert told in fails(distill, *both(projects['detection']), *args, '--dry-run')


def test_files_that_are_not_there(distill, projects):
    student, teacher, flag, checkpoint = both(projects['detection'])
    told = fails(distill, student.with_name('studnt.py'), teacher, flag, checkpoint)
    assert 'student: expected a config file' in told
    assert 'student.py' in told
    told = fails(distill, student, 'mmdet::retinanet/retinanet_r19_fpn_1x_coco.py', flag, checkpoint)
    assert "nearest: ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'" in told
    told = fails(distill, student, teacher, flag, checkpoint.with_name('techer.pth'))
    assert told.startswith('distill: --teacher-checkpoint: expected a file or URL, found no file')
    assert told.endswith(': teacher.pth')
    assert '--teacher-checkpoint: expected the weights of the teacher' in fails(distill, student, teacher)


def test_a_look_without_weights_writes_nothing(distill, projects, tmp_path):
    out = distill(*both(projects['detection'])[:2], '--dry-run')
    assert 'Nothing is written without --teacher-checkpoint' in out
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_another_model(distill, projects, tmp_path):
    torch.save(dict(state_dict=build_model('student', retinanet(16)).state_dict()), tmp_path / 'student.pth')
    told = fails(distill, *both(projects['detection'])[:3], 'student.pth', '--dry-run')
    assert re.search(r'--teacher-checkpoint: expected weights of RetinaNet, found that \d+ of \d+ keys', told)
    assert not list(tmp_path.glob('*.py'))


def test_tasks_that_differ(distill, projects):
    told = fails(distill, projects['detection'] / 'student.py', *both(projects['segmentation'])[1:])
    assert 'found RetinaNet for detection as student and EncoderDecoder for segmentation as teacher' in told


def test_two_stage_detectors_have_features_but_no_logits(distill, tmp_path):
    path, changes = two_stage(16)
    cfg = get_config(f'mmdet::{path}')
    override(cfg.model, changes)
    cfg.dump(tmp_path / 'two_stage.py')
    args = (tmp_path / 'two_stage.py', tmp_path / 'two_stage.py', '--dry-run')
    told = fails(distill, *args, '--method', 'kd')
    assert 'expected a one-stage detector with a dense head' in told
    assert 'found FasterRCNN' in told
    assert distill(*args, '--method', 'sokd-pkd').count('SoKDAdapter') == 5


def test_classes_that_differ(distill, projects, tmp_path):
    folder = projects['detection']
    (tmp_path / 'other.py').write_text(
        f'_base_ = {str(folder / "teacher.py")!r}\n'
        "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'c', 'b'))))\n"
    )
    told = fails(distill, folder / 'student.py', 'other.py', '--method', 'kd', '--dry-run')
    assert '--method kd: expected a student and a teacher of the same classes in the same order' in told
    assert "found 3 and 3 (class 1 is 'b' and 'c')" in told
    distill(folder / 'student.py', 'other.py', '--method', 'fitnet', '--dry-run')  # which does not look at them


def test_number_of_classes_that_differs(distill, projects, tmp_path):
    model = classifier(16, classes=4)
    teacher = variant(projects, tmp_path, 'four', 'classification', **model)
    told = fails(distill, projects['classification'] / 'student.py', teacher, '--method', 'kd', '--dry-run')
    assert 'are both models made for the same classes' in told


def test_a_distiller_is_no_plain_model(distill, projects, tmp_path):
    distill(*both(projects['detection']), '--dry-run')
    told = fails(distill, projects['detection'] / 'student.py', 'sokd_fitnet_student.py', '--dry-run')
    assert "teacher: expected a plain model's config, found a SoKDDistiller's in 'sokd_fitnet_student.py'" in told
    assert "whose student is a 'RetinaNet'" in told
    assert 'tools/export_student.py CHECKPOINT OUT --part student' in told


def test_parts_of_configs(distill, projects, tmp_path):
    (tmp_path / 'data.py').write_text("default_scope = 'mmdet'\n")
    assert "student: expected a config with a model, found none in 'data.py'" in fails(
        distill, 'data.py', projects['detection'] / 'teacher.py', '--dry-run'
    )
    (tmp_path / 'plain.py').write_text("model = dict(type='mmengine.ToyModel')\n")
    assert 'student: ' in fails(distill, 'plain.py', projects['detection'] / 'teacher.py', '--dry-run')


def new_style(text):
    """A config's text in MMEngine's new style: classes in the place of some names."""
    names = ('RetinaNet', 'RetinaHead', 'ResNet', 'FPN', 'DetDataPreprocessor')
    for name in names:
        text = text.replace(f"type='{name}'", f'type={name}')
    return f'from mmdet.models import {", ".join(names)}\n\n{text}'


def test_new_style_configs(distill, projects, tmp_path):
    """A text takes no such base: it gets a copy in the text style, and the student is the same."""
    folder = projects['detection']
    for name in ('student', 'teacher'):
        (tmp_path / f'{name}.py').write_text(new_style((folder / f'{name}.py').read_text()))
        assert Config._is_lazy_import(str(tmp_path / f'{name}.py'))
    args = ('student.py', 'teacher.py', '--teacher-checkpoint', folder / 'teacher.pth', '--dry-run')
    out = distill(*args)
    assert 'Written: student_text.py, its base' in out
    cfg, model = build(tmp_path / 'sokd_fitnet_student.py')
    assert not Config._is_lazy_import('sokd_fitnet_student.py')
    assert isinstance(model, SoKDDistiller)
    assert cfg.train_dataloader == Config.fromfile('student_text.py').train_dataloader
    plain = build(folder / 'student.py')[1]
    model.student.load_state_dict(plain.state_dict())
    distill(*args)  # the same again
    (tmp_path / 'student.py').write_text(
        (tmp_path / 'student.py').read_text() + '\nauto_scale_lr = dict(enable=True)\n'
    )
    assert "found 'student_text.py' with another text" in fails(distill, *args)
    distill(*args, '--force')
    assert Config.fromfile('sokd_fitnet_student.py').auto_scale_lr.enable


def test_a_config_of_no_scope_is_built_as_the_runner_does(distill, projects, tmp_path):
    """MMEngine's scope is its own where a config names none; names of mmdet are unknown there."""
    text = (projects['detection'] / 'student.py').read_text()
    (tmp_path / 'student.py').write_text(re.sub("default_scope ?= ?'mmdet'", '', text))
    told = fails(distill, 'student.py', *both(projects['detection'])[1:], '--dry-run')
    assert 'student: ' in told
    assert not (tmp_path / 'sokd_fitnet_student.py').exists()


def test_what_a_user_has_changed_stays(distill, projects, tmp_path):
    args = (*both(projects['detection']), '--dry-run')
    distill(*args)
    distill(*args)  # the same again is no loss
    path = tmp_path / 'sokd_fitnet_student.py'
    path.write_text(path.read_text() + '# mine\n')
    told = fails(distill, *args)
    assert "--out: expected a new file, found 'sokd_fitnet_student.py', which you may have changed" in told
    assert path.read_text().endswith('# mine\n')
    distill(*args, '--force')
    assert not path.read_text().endswith('# mine\n')


def test_smaller_teacher_is_noticed(distill, projects):
    folder = projects['detection']
    out = distill(folder / 'teacher.py', folder / 'student.py', '--dry-run')
    assert 'the teacher has fewer parameters than the student' in out


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['student.py', 'teacher.py', '--ampp'], 'unrecognized arguments: --ampp'),
        (['student.py', 'teacher.py', '--resume', 'a.pth', 'b.pth'], 'unrecognized arguments: b.pth'),
        (['student.py', 'teacher.py', '--dryrun'], 'unrecognized arguments: --dryrun; nearest: --dry-run'),
        (['student.py'], 'expected STUDENT_CONFIG and TEACHER_CONFIG'),
    ],
)
def test_flags_are_looked_at_first(distill, args, told, capsys):
    """Before models are built: a typing error in a flag of train.py, or too few configs."""
    with pytest.raises(SystemExit) as error:
        distill(*args)
    assert error.value.code == 2
    assert told in capsys.readouterr().err


# ---- the tree --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('task', 'lines'),
    [
        (
            'detection',
            [
                r'neck +FPN +3 levels',
                r'  neck\[1\] +16 +\(N, 16, 16, 16\)',
                r'  backbone\.layer3 +ResLayer +16 +\(N, 32, 16, 16\)',
                r'  bbox_head\.retina_cls +Conv2d +8 \.\. 32 +\(N, 3, 32, 32\) \.\. \(N, 3, 8, 8\), 3 levels',
                r'  bbox_head\[0\] +8 \.\. 32',
                r'  bbox_head\.loss_cls +\w+Loss +\[no tap: it does not run here\]',
            ],
        ),
        (
            'segmentation',
            [
                r'  backbone\.layer4 +ResLayer +8 +\(N, 64, 32, 32\)',
                r'  decode_head\.bottleneck +ConvModule +8 +\(N, 12, 32, 32\)',
                r'  decode_head\.conv_seg +Conv2d +8 +\(N, 4, 32, 32\)',
            ],
        ),
        ('classification', [r'  head\.fc +Linear +\(N, 3\)', r'neck +GlobalAveragePooling +\(N, 64\)']),
    ],
)
def test_list_taps(distill, projects, task, lines):
    out = distill('--list-taps', projects[task] / 'student.py')
    for line in lines:
        assert re.search(f'^{line}', out, re.M), (line, out)
    assert 'backbone.layer1.0' not in out
    assert 'backbone.layer1.0' in distill('--list-taps', projects[task] / 'student.py', '--depth', 3)


def test_every_listed_tap_is_one(distill, projects):
    """What the tree shows with a shape is accepted as a tap, and what it shows with a reason is not."""
    from mmsokd.taps import probe

    out = distill('--list-taps', projects['detection'] / 'student.py')
    model = build_model('student', retinanet(16))
    rows = [line for line in out.splitlines()[4:] if line.strip()]
    assert len(rows) > 20
    for row in rows:
        tap = row.split()[0]
        if '[no tap' in row or '[several' in row:
            with pytest.raises((KeyError, TypeError, ValueError)):
                probe(model, [tap], 256)
        else:
            assert probe(model, [tap], 256).specs[tap]


def test_auxiliary_heads_are_listed(distill, projects, tmp_path):
    head = dict(segmentor(8)['decode_head'], type='FCNHead', in_channels=32, in_index=2, num_convs=1)
    head.pop('pool_scales')
    student = variant(projects, tmp_path, 'two', 'segmentation', **segmentor(8, auxiliary_head=head))
    out = distill('--list-taps', student)
    assert re.search(r'auxiliary_head\.conv_seg +Conv2d +8 +\(N, 4, 32, 32\)', out)
    assert re.search(r'decode_head\.conv_seg +Conv2d +8 +\(N, 4, 32, 32\)', out)


# ---- stock configs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('student', 'teacher', 'pairs'),
    [
        (
            'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
            'mmdet::retinanet/retinanet_r18_fpn_8xb8-amp-lsj-200e_coco.py', 5,
        ),
        pytest.param(
            'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 'mmdet::yolox/yolox_s_8xb8-300e_coco.py', 3,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
            'mmseg::segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py', 2, marks=pytest.mark.slow,
        ),
        pytest.param(
            'mmpretrain::resnet/resnet18_8xb32_in1k.py', 'mmpretrain::deit/deit-tiny_4xb256_in1k.py', 1,
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: str(value).rpartition('/')[2],
)  # fmt: skip
def test_stock_configs(distill, tmp_path, student, teacher, pairs):
    """By their names alone; YOLOX has hooks of its own."""
    torch.save(dict(state_dict=build_model('teacher', teacher).state_dict()), tmp_path / 'teacher.pth')
    out = distill(student, teacher, '--teacher-checkpoint', 'teacher.pth', '--dry-run')
    assert out.count('SoKDAdapter') == pairs
    (path,) = tmp_path.glob('sokd_fitnet_*.py')
    cfg = Config.fromfile(path)
    assert cfg.model.teacher.cfg == teacher
    assert {hook.type for hook in cfg.custom_hooks} >= {'mmsokd.GuardHook', 'mmsokd.StudentCheckpointHook'}


# ---- to the end ------------------------------------------------------------------------------------------------------


def shell(script, *args, cwd):
    command = [sys.executable, '-W', 'ignore', str(script), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
def test_trains_to_a_student(projects, tmp_path):
    """In one command, and what it says at the end works."""
    out = shell(TOOL, *both(projects['detection']), '--cfg-options', 'optim_wrapper.optimizer.lr=0.002', cwd=tmp_path)
    assert re.search(r'distill\.loss_hint: \d', out)
    assert 'lr: 2.0000e-03' in out
    work = tmp_path / 'work_dirs' / 'sokd_fitnet_student'
    assert (work / 'epoch_1.pth').is_file()
    load_student(build_model('student', retinanet(16)), work / 'student_epoch_1.pth')
    tests = re.findall(r'^  python (\S+) (\S+) (\S+)$', out, re.M)
    assert [args[1:] for args in tests[-2:]] == [
        ('sokd_fitnet_student.py', 'work_dirs/sokd_fitnet_student/epoch_1.pth'),
        (str(projects['detection'] / 'student.py'), 'work_dirs/sokd_fitnet_student/student_epoch_1.pth'),
    ]
    scores = [re.findall(r'coco/bbox_mAP: ([\d.-]+)', text)[-1] for text in (out, shell(*tests[-1], cwd=tmp_path))]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_the_librarys_own_script_trains_it(projects, tmp_path, task):
    shell(TOOL, *both(projects[task]), '--method', 'sokd-kd', '--dry-run', cwd=tmp_path)
    script = Path(find_spec(LIBRARIES[task]).origin).parent / '.mim' / 'tools' / 'train.py'
    out = shell(script, 'sokd_kd_student.py', '--work-dir', 'work', cwd=tmp_path)
    assert re.search(r'distill\.loss_kd: \d', out)
    assert list((tmp_path / 'work').glob('student_*.pth'))


@pytest.mark.slow
def test_a_training_that_fails_is_no_success(projects, tmp_path):
    args = map(str, [*both(projects['detection']), '--cfg-options', 'train_dataloader.dataset.ann_file=none.json'])
    done = subprocess.run([sys.executable, str(TOOL), *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert 'Training: ' in done.stdout
    assert 'none.json' in done.stderr
    assert 'Student alone' not in done.stdout
