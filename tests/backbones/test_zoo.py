"""The networks of the CIFAR benchmark, as their configs build them, against straight-line twins and published sizes.

The twins, which count their own formulas, are the proof; few sizes are published to more than two digits.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from mmsokd.backbones import CIFARVGG, CIFARMobileNetV2, CIFARResNet, CIFARShuffleNetV2, WideResNet
from mmsokd.registry import MODELS
from mmsokd.taps import FeatureTap
from tests.builders import raw_cls_batch
from tests.reference import zoo

FOLDER = Path(__file__).parents[2] / 'configs/classification/cifar_zoo'
X4 = (32, 64, 128, 256)


class Net(NamedTuple):
    params: str  # millions, with the linear layer for 100 classes: rounded, of our own count
    shapes: list[tuple[int, int]]  # of the features: channels, side
    twin: callable


def three_stages(*widths):
    return list(zip(widths, (32, 32, 16, 8), strict=True))


NETS = {
    'resnet20': Net('0.28', three_stages(16, 16, 32, 64), partial(zoo.resnet, depth=20)),
    'resnet32': Net('0.47', three_stages(16, 16, 32, 64), partial(zoo.resnet, depth=32)),
    'resnet56': Net('0.86', three_stages(16, 16, 32, 64), partial(zoo.resnet, depth=56)),
    'resnet110': Net('1.74', three_stages(16, 16, 32, 64), partial(zoo.resnet, depth=110)),
    'resnet8x4': Net('1.23', three_stages(*X4), partial(zoo.resnet, depth=8, widths=X4)),
    'resnet32x4': Net('7.43', three_stages(*X4), partial(zoo.resnet, depth=32, widths=X4)),
    'resnet50': Net('23.71', [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)], zoo.resnet50),
    'wrn-16-2': Net('0.70', [*three_stages(16, 32, 64, 128), (128, 8)], partial(zoo.wrn, depth=16, k=2)),
    'wrn-40-1': Net('0.57', [*three_stages(16, 16, 32, 64), (64, 8)], partial(zoo.wrn, depth=40, k=1)),
    'wrn-40-2': Net('2.26', [*three_stages(16, 32, 64, 128), (128, 8)], partial(zoo.wrn, depth=40, k=2)),
    'vgg8': Net('3.97', [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], partial(zoo.vgg, convs=1)),
    'vgg13': Net('9.46', [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], partial(zoo.vgg, convs=2)),
    'mobilenet-v2': Net('0.81', [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2), (1280, 2)], zoo.mobilenet),
    'shufflenet-v1': Net('0.95', [(24, 32), (240, 16), (480, 8), (960, 4)], zoo.shufflenet_v1),
    'shufflenet-v2': Net('1.36', [(24, 32), (116, 16), (232, 8), (464, 4), (1024, 4)], zoo.shufflenet_v2),
}
# Millions of parameters for 10 classes and with shortcuts that have none (He et al., arXiv:1512.03385, tab. 6)
HE = {'resnet20': '0.27', 'resnet32': '0.46', 'resnet56': '0.85', 'resnet110': '1.7'}
# the same for 10 classes (Zagoruyko & Komodakis, arXiv:1605.07146, tab. 4)
WIDE = {'wrn-40-1': '0.6', 'wrn-40-2': '2.2'}
# what a tap gives is signed where the feature is a sum, a linear bottleneck or a bare convolution
SIGNED = {'wrn': {0, 1, 2, 3}, 'mobilenet': {1, 2, 3, 4}}

each_net = pytest.mark.parametrize('name', NETS)


def build(name):
    cfg = Config.fromfile(FOLDER / f'{name}_1xb64_cifar100.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ROOT_MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})


def layers(model):
    """The paths that the papers' features are tapped at."""
    names = [name for name, _ in model.backbone.named_children() if name.startswith('layer')]
    # mmpretrain's ResNet has no layer of its own for the stem
    return [f'backbone.{name}' for name in (names if 'layer0' in names else ['relu', *names])]


def roughen(model):
    """BatchNorm that does something: a fresh one is the identity in eval mode, and could sit anywhere."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)


def test_there_is_a_config_of_each():
    assert {path.name.removesuffix('_1xb64_cifar100.py') for path in FOLDER.glob('*.py')} == set(NETS)


@each_net
def test_is_the_benchmarks_network(name):
    """Size, shapes, features and logits."""
    net, model = NETS[name], build(name).double().eval()
    roughen(model)
    weights = zoo.Weights(t for key, t in model.state_dict().items() if 'num_batches' not in key)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    paths = layers(model)
    with torch.no_grad(), FeatureTap(model, paths) as tapped:
        logits = model(images, mode='tensor')
    with torch.no_grad():
        feats = net.twin(weights, images)
        torch.testing.assert_close(logits, zoo.classify(weights, feats[-1], 100), rtol=1e-9, atol=1e-9)

    assert not weights.left
    count = sum(p.numel() for p in model.parameters())
    assert count == weights.count
    assert f'{count / 1e6:.2f}' == net.params
    assert f'{count:,}' in (FOLDER / 'README.md').read_text()
    assert [(f.shape[1], f.shape[2]) for f in feats] == net.shapes
    signed = SIGNED.get(name.split('-')[0], set())
    for i, (path, feat) in enumerate(zip(paths, feats, strict=True)):
        (level,) = tapped[path]
        torch.testing.assert_close(level, feat, rtol=1e-9, atol=1e-9)
        assert (level.min() < 0) == (i in signed)


@pytest.mark.parametrize('name', HE)
def test_sizes_are_the_papers(name):
    """The paper's shortcuts have no parameters and its classes are 10; the benchmark has convolutions and 100."""
    model = build(name)
    shortcuts = sum(p.numel() for key, p in model.named_parameters() if '.shortcut.' in key)
    count = sum(p.numel() for p in model.parameters()) - shortcuts - 90 * (64 + 1)
    assert shortcuts == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert f'{count / 1e6:.{len(HE[name]) - 2}f}' == HE[name]


@pytest.mark.parametrize('name', WIDE)
def test_sizes_of_wide_ones_are_the_papers(name):
    model = build(name)
    count = sum(p.numel() for p in model.parameters()) - 90 * (model.head.fc.in_features + 1)
    assert f'{count / 1e6:.1f}' == WIDE[name]


@each_net
def test_trains(name):
    model = build(name)
    model.init_weights()
    data = model.data_preprocessor(raw_cls_batch(4, 32, 100), True)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(p.grad.abs().sum() for p in model.backbone.layer1.parameters()) > 0


@pytest.mark.parametrize('name', ['resnet8x4', 'wrn-16-2', 'vgg8', 'mobilenet-v2', 'resnet50'])
def test_starts_by_fan_out(name):
    """RepDistiller's start: He et al.'s by fan-out, and biases of zero."""
    model = build(name)
    model.init_weights()
    convs = [m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    large = [m for m in convs if m.weight.numel() > 8000]
    assert large
    for conv in large:
        assert conv.weight.std().item() == pytest.approx(zoo.he_std(conv.weight), rel=0.05)
    assert all((conv.bias == 0).all() for conv in convs if conv.bias is not None)
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize('name', ['shufflenet-v1', 'shufflenet-v2'])
def test_shufflenets_start_as_pytorchs_layers(name):
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('name', 'std', 'bias'),
    [
        ('resnet20', 64**-0.5 / 3**0.5, True),
        ('shufflenet-v2', 1024**-0.5 / 3**0.5, True),
        ('wrn-40-1', 64**-0.5 / 3**0.5, False),
        ('vgg8', 0.01, False),
        ('mobilenet-v2', 0.01, False),
    ],
)
def test_classifier_starts_as_repdistillers(name, std, bias):
    """PyTorch's linear layer is uniform within 1 / sqrt(C_in)."""
    model = build(name)
    model.init_weights()
    assert model.head.fc.weight.std().item() == pytest.approx(std, rel=0.05)
    assert bool(model.head.fc.bias.any()) == bias


@pytest.mark.parametrize(
    ('backbone', 'preact', 'path'),
    [
        (CIFARVGG(8), 'layer1.1.1', 'layer1'),
        (CIFARVGG(8), 'layer4.0.1', 'layer4'),
        (CIFARVGG(13), 'layer2.2.1', 'layer2'),
        (WideResNet(10, 1), 'layer4.0', 'layer4'),
    ],
    ids=['vgg8', 'vgg8 last', 'vgg13', 'wrn'],
)
def test_preact_is_what_the_relu_gets(backbone, preact, path):
    with torch.no_grad(), FeatureTap(backbone, [preact, path]) as tapped:
        backbone(torch.randn(2, 3, 32, 32))
    assert tapped[preact][0].min() < 0
    assert torch.equal(tapped[preact][0].clamp(min=0), tapped[path][0])


def test_chosen_outputs():
    net = CIFARResNet(8, out_indices=(2, 0, -1))
    assert [tuple(f.shape[1:]) for f in net(torch.randn(1, 3, 32, 32))] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_mobilenet_at_full_width():
    assert [f.shape[1] for f in CIFARMobileNetV2(1.0, out_indices=range(6))(torch.randn(1, 3, 32, 32))] == [
        *(32, 24, 32, 96, 320),
        1280,
    ]


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: CIFARResNet(21), r'CIFARResNet.depth: expected 6 n \+ 2 with n >= 1, found 21; nearest: 20'),
        (lambda: CIFARResNet(2), r'CIFARResNet.depth: .* found 2; nearest: 8'),
        (lambda: CIFARResNet(20, widths=(16, 32, 64)), r'CIFARResNet.widths: expected .*found \(16, 32, 64\)'),
        (lambda: WideResNet(20, 2), r'WideResNet.depth: expected 6 n \+ 4 .* found 20; nearest: 22'),
        (lambda: CIFARVGG(16), r'CIFARVGG.depth: expected one of \[8, 13\], found 16'),
        (lambda: CIFARShuffleNetV2(out_indices=(5,)), r'CIFARShuffleNetV2.out_indices: .*\[-5, 4\], found \(5,\)'),
        (lambda: CIFARShuffleNetV2(out_indices=()), r'out_indices: expected integers in \[-5, 4\], found \(\)'),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_depth_in_a_config_is_refused_by_name():
    with pytest.raises(ValueError, match=r'CIFARResNet.depth: .*nearest: 20'):
        MODELS.build(dict(type='mmsokd.CIFARResNet', depth=21))


def test_no_name_is_taken_elsewhere():
    """Under a default scope a bare name must not lead to another library's network."""
    import mmdet.models
    import mmpretrain.models
    import mmseg.models

    import mmsokd.backbones

    for library in (mmdet, mmpretrain, mmseg):
        taken = library.registry.MODELS.module_dict
        assert len(taken) > 50
        assert not set(mmsokd.backbones.__all__) & set(taken)
