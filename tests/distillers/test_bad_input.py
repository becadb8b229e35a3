"""Bad input gets one clear message when the model is built: the key, what was found, what was expected."""

import re

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmsokd.adapters import ConvAdapter
from mmsokd.distillers.build import load_weights
from mmsokd.losses import FitNetLoss
from mmsokd.registry import HOOKS, MODELS
from tests.builders import classifier, distiller, losses_of, raw_batch, retinanet, step, use_scope

FITNET = dict(type='mmsokd.FitNetLoss', tap='neck')


DAM = 'mmsokd.DistinctiveAreaDetector'
STD = r'^teacher\.data_preprocessor: expected a mean and a std > 0 a channel, found mean=\[0\.0\] and std=\[0\.0\]'


def terms(**kwargs):
    return dict(loss_hint={**FITNET, **kwargs})


class OwnLoss(FitNetLoss):
    """Somebody else's loss."""


class OwnPickyLoss(FitNetLoss):
    """Somebody else's, which does not take what the term gives it."""

    def forward(self, student, teacher, weight=None):
        raise RuntimeError('I want vectors')


class OwnAdapter(ConvAdapter):
    """Somebody else's adapter."""


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(terms=terms(tap='backbone.layer5')),
            r"^terms\.loss_hint\.tap in 'student': .*RetinaNet, found 'backbone\.layer5'; nearest: \['backbone\.layer",
        ),
        (dict(student=dict(type='RetinNet')), r"student: RetinNet is not in .*nearest: \['RetinaNet'"),
        (dict(student=retinanet(neck=dict(type='FPM'))), r'student: FPM is not in .*nearest: .*FPN'),
        (dict(teacher=dict(retinanet(), checkpoint='a.pth')), r'teacher\.checkpoint: expected it beside cfg'),
        (
            dict(teacher=dict(cfg=dict(retinanet(), checkpoint='a.pth'))),
            r'teacher\.cfg\.checkpoint: expected it beside cfg, as teacher=dict\(cfg=',
        ),
        (
            dict(teacher=dict(cfg=dict(cfg=retinanet(), checkpoint='a.pth'))),
            r"teacher\.cfg\.checkpoint: expected one of \['cfg'\], found 'checkpoint'",
        ),
        (dict(teacher=None), r"teacher: expected the model that 'terms\.loss_hint' learns from, found none"),
        (dict(teacher=None, teachers=[retinanet()]), 'teachers: expected a dict of name -> teacher'),
        (dict(terms={'loss.hint': FITNET}), r"terms\.loss\.hint: expected a name without '\.'"),
        (dict(terms=terms(type='mmsokd.SoKDAdapter')), r"terms\.loss_hint\.type: expected a loss, found 'mmsokd\.SoKD"),
        (dict(keep_host='no'), "keep_host: expected True or False, found 'no'"),
        (
            dict(keep_host=False, terms=terms(loss_weight=2.0)),
            r'loss_hint\.loss_weight: expected 1.*areas\.area_weight',
        ),
        (dict(keep_host=False, terms=terms(loss_weight=dict(shape='cosine'))), r'loss_hint\.loss_weight: expected 1'),
        (dict(keep_host=False, terms=terms(loss_weight=[(0, 0), (0.1, 1)])), r'loss_hint\.loss_weight: expected 1'),
        (dict(probe_size=0), '^probe_size: expected an integer >= 1, found 0'),
        (dict(probe_size='big'), "^probe_size: expected an integer >= 1, found 'big'"),
        (
            dict(areas=dict(type='mmsokd.DistinctiveAreaDetector', area_weight=float('nan'))),
            r'areas\.area_weight: expected a number >= 0, found nan',
        ),
        (
            dict(areas=dict(type='mmsokd.DistinctiveAreaDetector', area_weight='1')),
            r"areas\.area_weight: expected a number >= 0, found '1'",
        ),
        (
            dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', per_sample='z')),
            r"refine\.per_sample: expected True or False, found 'z'",
        ),
        (
            dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', temperature='x')),
            r"refine\.temperature: expected a number .*found 'x'",
        ),
        (
            dict(
                refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3'),
                terms=terms(tap='backbone.layer2'),
            ),
            r"refine\.at: expected a term that taps the teacher at or behind 'backbone\.layer3'",
        ),
        (dict(trems={}), r"model\.trems: expected one of .*nearest: \['terms'\]"),
        (dict(refine=dict(at='neck')), r"refine: expected a dict with 'type'"),
        (
            dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', temprature=1.0)),
            r"refine\.temprature: .*nearest: \['temperature'\]",
        ),
        (dict(refine=dict(type='mmsokd.FeatureAugmentation')), r"refine\.type: .*nearest: \['FeatureAugmentationNeck'"),
        (
            dict(areas=dict(type='mmsokd.DistinctiveAreaDetector', num_area=8)),
            r"areas\.num_area: .*nearest: \['num_areas'\]",
        ),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.ConvAdapter', resise='nearest'))),
            r"terms\.loss_hint\.adapter\.resise: .*nearest: \['resize'\]",
        ),
        (dict(terms=terms(adapter=dict(type='mmsokd.ConvAdaptor'))), r"adapter\.type: .*nearest: \['ConvAdapter'"),
        (dict(terms=terms(tap='neck[')), r"^terms\.loss_hint\.tap: expected 'path\.of\.module'"),
        (dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='neck[1]')), r"refine\.at: .*found 'neck\[1\]'"),
        (
            dict(
                refine=dict(type='mmsokd.FeatureAugmentationNeck', at='bbox_head.cls_convs.0'),
                terms=terms(tap='bbox_head.retina_cls'),
            ),
            r"refine\.at: expected a layer .* in one call, .*found 'bbox_head",
        ),
        (dict(terms=terms(tap='neck[3]')), r"^student: terms\.loss_hint\.tap: tap 'neck\[3\]': .*found 3 outputs"),
        (dict(terms=terms(tap='bbox_head')), "tap 'bbox_head': expected a feature"),
        (dict(terms=dict(hint=FITNET)), r"terms\.hint: expected a name that contains 'loss'.*found 'hint'"),
        (dict(terms={}), 'terms: expected a dict of at least one term'),
        (dict(terms=None), 'terms: expected'),
        (dict(terms=dict(loss_hint=dict(tap='neck'))), r"terms\.loss_hint: expected a dict with 'type'"),
        (dict(terms=terms(student_tap='neck')), r'terms\.loss_hint: .*found both'),
        (
            dict(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', teacher_tap='neck'))),
            "'student_tap' and 'teacher_tap'",
        ),
        (
            dict(terms=terms(type='mmsokd.FitNetLos')),
            r"terms\.loss_hint\.type: .*found 'mmsokd\.FitNetLos'.*FitNetLoss",
        ),
        (dict(terms=terms(loss_wieght=2)), r"terms\.loss_hint\.loss_wieght: .*nearest: \['loss_weight'\]"),
        (dict(terms=terms(loss_weight='high')), r"terms\.loss_hint\.loss_weight: .*found 'high'"),
        (dict(terms=terms(loss_weight=-1.0)), r'loss_weight: expected a number >= 0.*found -1\.0'),
        (dict(terms=terms(loss_weight=float('nan'))), 'expected a number >= 0.*found nan'),
        (dict(terms=terms(loss_weight=[(0.5, 1.0), (0.1, 0.0)])), 'progress rising'),
        (dict(terms=terms(adapter='conv')), r"terms\.loss_hint\.adapter: .*found 'conv'"),
        (dict(terms=terms(adapter=None)), r'equal channels without an adapter, found 16 and 24'),
        (dict(terms=terms(refine='no')), r"terms\.loss_hint\.refine: .*found 'no'"),
        (dict(student=retinanet(16, levels=4)), r'found strides \[8, 16, 32, 64\] .* and \[8, 16, 32\]'),
        (
            dict(terms=dict(loss_a=dict(type='mmsokd.FitNetLoss', student_tap='neck[0]', teacher_tap='neck[1]'))),
            r"resize='bilinear'",
        ),
        (dict(teacher=dict(cfg='nowhere.py')), r"teacher\.cfg: .*found no file 'nowhere\.py'"),
        (
            dict(teacher=dict(cfg='mmdet::retinanet/retinanet_r181_fpn_1x_coco.py')),
            r'nearest: \[.mmdet::retinanet/retinanet_r',
        ),
        (dict(teacher=dict(cfg='nolib::a.py')), r"expected an installed package before '::', found 'nolib'"),
        (
            dict(teacher=dict(cfg=retinanet(), checkpoint='gone.pth')),
            r"teacher\.checkpoint: .*found no file 'gone\.pth'",
        ),
        (dict(teacher=3), 'teacher: expected a model dict'),
        (dict(teacher=dict(cfg=retinanet(), chekpoint='a.pth')), r"teacher\.chekpoint: .*nearest: \['checkpoint'\]"),
        (dict(student=dict(cfg=retinanet(), checkpoint='a.pth')), r"student\.checkpoint: expected one of \['cfg'\]"),
        (dict(student=dict(backbone=dict())), "student: expected a model dict with 'type'"),
        (dict(teachers=dict(a=retinanet())), "expected 'teacher' or 'teachers', found both"),
        (
            dict(teacher=None, teachers=dict(a=retinanet(24), b=retinanet(24)), terms=terms(teacher='a')),
            'teachers.b: expected a term',
        ),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.FitNetLoss'))),
            r"^terms\.loss_hint\.adapter\.type: expected an adapter, found 'mmsokd\.FitNetLoss'",
        ),
        (
            dict(terms=terms(adapter=dict(type=OwnLoss))),
            r'^terms\.loss_hint\.adapter\.type: expected an adapter, found <class .*OwnLoss',
        ),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.FeatureAugmentationNeck'))),
            r"^terms\.loss_hint\.adapter\.type: expected an adapter, found 'mmsokd\.FeatureA",
        ),
        (
            dict(areas=dict(type='mmsokd.FeatureAugmentationNeck')),
            r"^areas\.type: expected a detector of areas, such as 'mmsokd\.DistinctiveAreaDetector', found 'mmsokd\.F",
        ),
        (
            dict(refine=dict(type='mmsokd.ConvAdapter')),
            r"^refine\.type: expected an augmentation of features, such as 'mmsokd\.FeatureAugm.*found 'mmsokd\.Conv",
        ),
        (
            dict(refine=dict(type='mmsokd.DistinctiveAreaDetector', channels=[4])),
            r"^refine\.type: expected an augmentation of features.*found 'mmsokd\.DistinctiveAreaDetector'",
        ),
        (
            dict(refine=dict(type='mmsokd.ImageAugmenter')),
            r"^refine\.type: expected 'mmsokd\.FeatureAug.*', 'mmsokd\.Know.*' or one derived .*found ImageAugmenter$",
        ),
        (
            dict(terms=terms(type='mmsokd.CRDLoss')),
            r'^terms\.loss_hint\.num_samples: expected a value, found none',
        ),
        (
            dict(terms=terms(type='mmsokd.ATLoss', p=0.5)),
            r'^terms\.loss_hint\.p: expected a number >= 1, found 0\.5',
        ),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.ConvAdapter', resize='bilinaer'))),
            r"^terms\.loss_hint\.adapter\.resize: expected one of .*did you mean 'bilinear'",
        ),
        (
            dict(terms=terms(adapter=dict(type=OwnAdapter, kernel_size=2))),
            r'^terms\.loss_hint\.adapter\.kernel_size: expected an odd number',
        ),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type='SyncBn')))),
            r"^terms\.loss_hint\.adapter\.norm_cfg\.type: expected a registered .*found 'SyncBn'; nearest: .*'SyncBN'",
        ),
        (dict(terms=terms(loss_weight=True)), r'^terms\.loss_hint\.loss_weight: expected a number >= 0.*found True'),
        (
            dict(areas=dict(type='mmsokd.DistinctiveAreaDetector', source='both')),
            "^areas\\.source: expected one of .*found 'both'",
        ),
        (
            dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', estimator='relex')),
            r"^refine\.estimator: expected one of .*'relax'",
        ),
        # what the fuzz of test_config_fuzz.py has found
        (dict(areas=dict(type=DAM, NUM_AREAS=8)), r"^areas\.NUM_AREAS: .*found 'NUM_AREAS'; nearest: \['num_areas'\]"),
        (
            dict(terms=terms(type=[1])),
            r'^terms\.loss_hint\.type: expected the name or the class of a loss, found \[1\]',
        ),
        (
            dict(terms=terms(type=None)),
            r'^terms\.loss_hint\.type: expected the name or the class of a loss, found None',
        ),
        (dict(terms=terms(type=max)), r'^terms\.loss_hint\.type: expected the name or .*found <built-in function max>'),
        (dict(terms=terms(type='.KDLoss')), r'^terms\.loss_hint\.type: '),
        (dict(refine=dict(type=nn.Identity)), r'^refine\.type: expected an augmentation .*found <class .*Identity'),
        (dict(areas=dict(type=nn.Identity)), r'^areas\.type: expected a detector of areas.*found <class .*Identity'),
        (dict(terms={1: FITNET}), r"^terms\.1: expected a name that contains 'loss'.*found 1$"),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.ConvAdapter', act_cfg=[1]))),
            r"^terms\.loss_hint\.adapter\.act_cfg: expected None or a dict with 'type', found \[1\]",
        ),
        (
            dict(terms=terms(adapter=dict(type='mmsokd.ConvAdapter', norm_cfg=dict(type=None)))),
            r"^terms\.loss_hint\.adapter\.norm_cfg: expected None or a dict with 'type', found {'type': None}",
        ),
        (
            dict(teacher=None, terms=terms(teacher='one')),
            r"^teacher: expected the model that 'terms\.loss_hint' learns from, found none, nor 'teachers'",
        ),
        (dict(student=None), '^student: expected a model dict, .*found None'),
        (dict(teacher=dict(model='a.py')), r"^teacher\.model: expected a model dict with 'type', found 'a\.py'"),
        (
            dict(student=retinanet(data_preprocessor=dict(type=dict, mean=0))),
            r'^.?student\.data_preprocessor: .*must contain the key .type., but got \{.*mean',
        ),
        (dict(teacher=dict(type=None)), r'^teacher\.type: expected a registered name or a class, found None'),
        (dict(student=dict(type=dict)), r"^student\.type: expected a model, found <class 'dict'>"),
        (dict(student=retinanet(neck=dict(type='FPN', in_channel=8))), r'^student: .*argument .in_channel'),
        (dict(teacher=dict(cfg=retinanet(backbone=dict(type='ResNet')))), r'^teacher\.cfg: .*missing .*depth'),
        (dict(teacher=dict(cfg='Makefile')), r"^teacher\.cfg: expected a config file, found 'Makefile': "),
        (dict(probe_size=2**31 - 1), '^probe_size: expected a side of at most 8192 pixels, found 2147483647'),
        (dict(areas=dict(type=DAM, num_classes=True)), r'^areas\.num_classes: expected an integer >= 1, found True'),
        (
            dict(areas=dict(type=DAM, feat_channels=2**62)),
            r'^areas\.feat_channels: expected an integer >= 1, found 4611',
        ),
        (
            dict(areas=dict(type=DAM, area_weight=1e300)),
            r'^areas\.area_weight: expected a number >= 0, found 1e\+300, which float32 does not hold',
        ),
        (dict(terms=terms(loss_weight=1e300)), r'^terms\.loss_hint\.loss_weight: expected a number .*found 1e\+300'),
        (
            dict(terms=terms(type='mmsokd.CWDLoss', tau=1e-300)),
            r'^terms\.loss_hint\.tau: expected a number > 0, found 1e-300, which float32 does not hold',
        ),
        (
            dict(terms=terms(type='mmsokd.ATLoss', p=1e9)),
            r'^terms\.loss_hint: expected a loss of one finite number, found nan',
        ),
        (
            dict(
                terms=terms(type=nn.MSELoss, tap='neck[0]', reduction='none', adapter=dict(type='mmsokd.ConvAdapter'))
            ),
            r'^terms\.loss_hint: expected a loss of one finite number, found the shape \(2, 24, 16, 16\)',
        ),
        (dict(terms=terms(type=OwnPickyLoss)), r'^terms\.loss_hint: I want vectors'),
        (
            dict(terms=terms(refine=False, areas=False)),
            r"^refine: expected a term that compares features .*found only \['terms\.loss_hint'\]",
        ),
        (
            dict(terms=terms(areas=False)),
            r"^areas: expected a term that compares features .*found only \['terms\.loss_hint'\]",
        ),
        (
            dict(refine=dict(type='mmsokd.FeatureAugmentationNeck', at='bbox_head.retina_cls')),
            r"^refine\.at: .*found only \{'terms\.loss_hint\.tap': 'neck'\}",
        ),
        (dict(teacher=retinanet(24, data_preprocessor=dict(type='DetDataPreprocessor', mean=[0.0], std=[0.0]))), STD),
    ],
)
def test_message(kwargs, message):
    kinds = (ValueError, KeyError, TypeError, RuntimeError, FileNotFoundError)
    with pytest.raises(kinds, match=re.compile(message, re.DOTALL)):
        distiller(**kwargs)


@pytest.mark.parametrize(
    ('hook', 'key', 'value'),
    [
        *(('PolicySearchHook', key, bad) for key in ('lr', 'weight_decay', 'virtual_lr') for bad in ('x', -1, None)),
        *(('PolicySearchHook', key, bad) for key in ('betas', 'ratio_range') for bad in (0.5, [1], (0, 'x'), (0, -1))),
        *(('PolicySearchHook', key, bad) for key in ('search_epochs', 'search_iters') for bad in (True, -1, 1.0)),
        *(('PolicySearchHook', 'betas', (0.5, 1)), ('PolicySearchHook', 'log_interval', 'often')),
        *(('DAMHook', 'draw_interval', 0), ('DAMHook', 'num_images', None), ('DAMHook', 'min_heat_std', 'x')),
        *(('DAMHook', 'max_cover', float('nan')), ('DAMHook', 'log_interval', 0.5)),
        *(('StudentCheckpointHook', 'prefix', bad) for bad in ('', 'a/', '../a', 3)),
    ],
)
def test_an_option_of_a_hook(hook, key, value):
    with pytest.raises(ValueError, match=rf'^{hook}\.{key}: expected .*, found '):
        HOOKS.build(dict(type=f'mmsokd.{hook}', **{key: value}))


@pytest.mark.parametrize('kind', [OwnLoss, nn.MSELoss])
def test_a_loss_of_somebody_elses(kind):
    adapter = dict(type=OwnAdapter, kernel_size=3)
    model = distiller('Distiller', terms=terms(type=kind, adapter=adapter))
    assert type(model.terms['loss_hint'].losses[0]) is kind
    assert {type(m) for m in model.terms['loss_hint'].adapter} == {OwnAdapter}


def test_sizes_differ_but_a_resize_policy_is_given():
    term = dict(
        type='mmsokd.FitNetLoss',
        student_tap='neck[0]',
        teacher_tap='neck[1]',
        adapter=dict(type='mmsokd.ConvAdapter', resize='bilinear'),
    )
    assert losses_of(distiller(terms=dict(loss_a=term)))['distill.loss_a'] > 0


def save(path, state):
    torch.save(dict(state_dict=state), path)
    return str(path)


def test_checkpoint_of_another_architecture_says_how_many_keys_fit(tmp_path):
    other = save(tmp_path / 'other.pth', MODELS.build(retinanet(32)).state_dict())
    with pytest.raises(
        ValueError, match=r"teacher\.checkpoint: .*found that \d+ of \d+ keys of .*other\.pth' fit; .*has the shape"
    ):
        distiller(teacher=dict(cfg=retinanet(24), checkpoint=other))


@pytest.mark.parametrize(
    ('key', 'value', 'found'),
    [
        (
            '1.num_batches_tracked',
            torch.zeros(2, 2, dtype=torch.long),
            r"'1\.num_batches_tracked' has the shape \(2, 2\)",
        ),
        ('1.num_batches_tracked', 3, r"'1\.num_batches_tracked' is no tensor but of the type int"),
        ('1.num_batches_tracked', torch.zeros(0, dtype=torch.long), r"'1\.num_batches_tracked' has the shape \(0,\)"),
        ('1.weight', torch.ones(3, dtype=torch.complex64), r"'1\.weight' .*complex64"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, key, value, found):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    with pytest.raises(ValueError, match=rf'teacher\.checkpoint: expected weights of Sequential, .*{found}'):
        load_weights('teacher.checkpoint', model, save(tmp_path / 'other.pth', {**other, key: value}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    del other['1.num_batches_tracked']  # files of old PyTorch have none
    load_weights('teacher.checkpoint', model, save(tmp_path / 'old.pth', other))
    assert torch.equal(model[1].weight, torch.ones(3))


def test_truncated_checkpoint(tmp_path):
    whole = save(tmp_path / 'whole.pth', MODELS.build(retinanet(24)).state_dict())
    data = open(whole, 'rb').read()
    for cut in (0, 10, len(data) // 2, len(data) - 50):
        path = tmp_path / f'cut{cut}.pth'
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r'teacher\.checkpoint: .*cannot be read'):
            distiller(teacher=dict(cfg=retinanet(24), checkpoint=str(path)))


def test_distiller_checkpoint_as_a_teacher_is_told(tmp_path):
    path = save(tmp_path / 'd.pth', distiller(student=retinanet(24)).state_dict())
    with pytest.raises(ValueError, match='export_student'):
        distiller(teacher=dict(cfg=retinanet(24), checkpoint=path))


def test_checkpoint_is_loaded(tmp_path):
    source = MODELS.build(retinanet(24))
    path = save(tmp_path / 'teacher.pth', {f'module.{k}': v for k, v in source.state_dict().items()})
    model = distiller(teacher=dict(cfg=retinanet(24), checkpoint=path))
    for name, value in source.state_dict().items():
        assert torch.equal(model.teacher.state_dict()[name], value)


@pytest.mark.parametrize('poison', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number_is_named_and_nothing_is_stepped(poison):
    model = distiller().train()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    step(model, wrapper)
    before = {k: v.clone() for k, v in model.student.named_parameters()}
    with torch.no_grad():
        model.teacher.neck.fpn_convs[0].conv.bias.fill_(poison)
    with pytest.raises(FloatingPointError, match=r'distill\.loss_hint.*expected a finite loss'):
        step(model, wrapper, raw_batch(seed=1))
    assert all(torch.equal(v, before[k]) for k, v in model.student.named_parameters())


def test_a_teacher_that_is_the_student():
    student = MODELS.build(retinanet(16))
    with pytest.raises(ValueError, match='teacher: expected a model of its own, found the student'):
        distiller(student=student, teacher=student)


def test_a_loss_needs_no_scope():
    assert type(distiller(terms=terms(type='FitNetLoss')).terms['loss_hint'].losses[0]).__name__ == 'FitNetLoss'


@pytest.mark.parametrize('weight', [1, 0.0, dict(stop=8), [(0.0, 1.0), (1.0, 1.0)]])
def test_weights_that_only_switch_go_with_the_area_loss_in_the_hosts_place(weight):
    assert distiller(keep_host=False, terms=terms(loss_weight=weight)).keep_host is False


def test_the_teacher_of_several():
    model = distiller(
        'Distiller',
        teacher=None,
        teachers=dict(a=retinanet(24), b=retinanet(24)),
        terms=dict(loss_a=dict(FITNET, teacher='a'), loss_b=dict(FITNET, teacher='b')),
    )
    with pytest.raises(ValueError, match=r"teacher: expected a distiller with one, found \['a', 'b'\]; see \.teachers"):
        model.teacher  # noqa: B018


def test_a_model_of_another_library_says_how_it_is_built():
    teacher = dict(classifier(16), type='mmpretrain.ImageClassifier')
    use_scope('mmdet')
    with pytest.raises(ValueError, match=r"teacher: .* is not in .*_scope_='mmpretrain'"):
        distiller('Distiller', student=retinanet(16), teacher=teacher, terms=terms(tap='backbone.layer3'))
    teacher['_scope_'] = 'mmpretrain'
    distiller('Distiller', student=retinanet(16), teacher=teacher, terms=terms(tap='backbone.layer3'))
