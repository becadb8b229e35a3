import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from mmsokd.areas import AreaHead, DistinctiveAreaDetector
from mmsokd.areas.detector import activation_energy, area_loss
from mmsokd.areas.head import mix
from tests.reference import areas as reference


def pyramid(seed=0, channels=8, sizes=((8, 6), (4, 3), (1, 1))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


def detector(**kwargs):
    return DistinctiveAreaDetector(**{'channels': [8, 8, 8], 'num_areas': 4, **kwargs})


def test_head_starts_as_centernet_does():
    maps = AreaHead(8, 8)(pyramid()[0] * 0)
    torch.testing.assert_close(maps.heat.mean().item(), 0.1, rtol=0.5, atol=0)
    torch.testing.assert_close(maps.size.mean().item(), 3.0, rtol=0.01, atol=0)
    torch.testing.assert_close(maps.offset.mean().item(), 0.5, rtol=0.01, atol=0)
    pinned = AreaHead(8, 8, final_relu=True)(pyramid()[0])
    assert pinned.heat.min() >= 0.5


def test_final_relu_does_not_start_closed():
    head = AreaHead(8, 8, final_relu=True)
    maps = head(pyramid()[0])
    assert maps.heat.std() > 1e-3
    maps.heat.sum().backward()
    assert head.heat[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize('once', [False, True])
def test_one_convolution_does_what_three_branches_do(once):
    head, feat = AreaHead(8, 6, num_classes=3).double(), pyramid()[0].double()
    torch.nn.init.normal_(head.size[-1].weight)  # not as small as it starts
    maps = head(feat, head.joined()) if once else head(feat)
    branches = head.heat(feat).sigmoid(), F.softplus(head.size(feat)), head.offset(feat)
    for ours, theirs in zip(maps, branches, strict=True):
        torch.testing.assert_close(ours, theirs.float())
    found, expected = (
        torch.autograd.grad(sum(x.square().sum() for x in side), [*head.parameters()]) for side in (maps, branches)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_result():
    result = detector()(pyramid(1), pyramid(2))
    assert [tuple(w.shape) for w in result.weights] == [(2, 1, 8, 6), (2, 1, 4, 3), (2, 1, 1, 1)]
    assert [b.shape[1] for b in result.boxes] == [4, 4, 1]  # the last level has one cell
    assert set(result.losses) == {'loss_agreement', 'loss_area', 'loss_anchor'}
    assert all(not value.requires_grad and 'loss' not in name for name, value in result.stats.items())
    assert all(0 < value <= 1 for name, value in result.stats.items() if name == 'mask_cover')


def test_losses_by_hand():
    model = detector(channels=[8], feat_channels=8, agreement_weight=2.0, area_weight=3.0, anchor_weight=0.5)
    s, t = pyramid(1)[:1], pyramid(2)[:1]
    result = model(s, t)
    ours, theirs = model.heads[0](s[0]), model.heads[0](t[0])
    difference = torch.cat([a - b for a, b in zip(ours, theirs, strict=True)], 1)
    torch.testing.assert_close(result.losses['loss_agreement'], 2 * (difference**2).mean())
    expected = 3 * reference.area_loss(s[0].numpy(), t[0].numpy(), result.weights[0].numpy(), 'area')
    torch.testing.assert_close(result.losses['loss_area'].item(), expected, rtol=1e-5, atol=1e-6)
    energy = t[0].abs().mean(1)
    low, high = energy.flatten(1).min(1)[0], energy.flatten(1).max(1)[0]
    energy = (energy - low[:, None, None]) / (high - low)[:, None, None]
    torch.testing.assert_close(result.losses['loss_anchor'], 0.5 * F.mse_loss(theirs.heat[:, 0], energy))


@pytest.mark.parametrize('normalization', ['all', 'area', 'teacher'])
@pytest.mark.parametrize('overlap', ['sum', 'union'])
def test_area_loss_against_a_plain_loop(normalization, overlap):
    result = detector(normalization=normalization, overlap=overlap)(pyramid(1), pyramid(2))
    expected = sum(
        reference.area_loss(s.numpy(), t.numpy(), w.numpy(), normalization)
        for s, t, w in zip(pyramid(1), pyramid(2), result.weights, strict=True)
    )
    torch.testing.assert_close(result.losses['loss_area'].item(), expected, rtol=1e-5, atol=1e-6)
    assert overlap == 'sum' or max(w.max() for w in result.weights) == 1


def test_area_loss_gradient():
    s, t = (
        torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
    )
    weight = (torch.rand(2, 1, 4, 4) > 0.5).double()
    for normalization in ('area', 'teacher'):
        assert torch.autograd.gradcheck(lambda x, by=normalization: area_loss(x, t, weight, by), (s,))


def test_an_area_loss_relative_to_the_teacher_knows_no_scale():
    s, t, weight = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
    found = area_loss(50 * s, 50 * t, weight, 'teacher')
    torch.testing.assert_close(found, area_loss(s, t, weight, 'teacher'))
    assert area_loss(s, 0 * t, weight, 'teacher') == area_loss(s, 0 * t, weight, 'area')
    t.requires_grad_()  # as a policy's that is searched through it, which shall not make the teacher louder
    area_loss(s, t, weight, 'teacher').backward()
    torch.testing.assert_close(t.grad, 2 * (t - s).detach() / t.numel() / t.detach().square().mean())


def test_sources():
    head = AreaHead(8, 8)
    ours, theirs = head(pyramid(1)[0]), head(pyramid(2)[0])
    mutual = mix(ours, theirs, 'mutual')
    torch.testing.assert_close(mutual.heat**2, ours.heat * theirs.heat)
    torch.testing.assert_close(mutual.size, (ours.size + theirs.size) / 2)
    assert torch.equal(mix(ours, theirs, 'student').heat, ours.heat)
    assert torch.equal(mix(ours, theirs, 'teacher').offset, theirs.offset)
    assert not mutual.heat.requires_grad


def test_who_learns():
    model = detector()
    s, t = [x.requires_grad_() for x in pyramid(1)], [x.requires_grad_() for x in pyramid(2)]
    sum(model(s, [x.detach() for x in t]).losses.values()).backward()
    assert all(x.grad.abs().sum() > 0 for x in s)
    assert all(x.grad is None for x in t)
    assert all(p.grad is not None for p in model.parameters())


def test_stop_teacher_grad():
    def gradient(stop):
        torch.manual_seed(0)
        model = detector(stop_teacher_grad=stop, anchor_weight=0.0)
        model(pyramid(1), pyramid(2)).losses['loss_agreement'].backward()
        return model.heads[0].heat[0].weight.grad

    assert not torch.allclose(gradient(True), gradient(False))


def test_constant_heads_are_seen():
    model = detector()
    for head in model.heads:
        for branch in (head.heat, head.size, head.offset):
            torch.nn.init.zeros_(branch[-1].weight)
    result = model(pyramid(1), pyramid(2))
    assert result.losses['loss_agreement'] < 1e-12  # the collapsed optimum
    assert result.stats['heat_std'] < 1e-6


def test_levels_share_a_head_where_they_can():
    assert len(detector().heads) == 1
    model = detector(channels=[8, 16])
    assert len(model.heads) == 2
    model([*pyramid(1, 8)[:1], *pyramid(1, 16)[1:2]], [*pyramid(2, 8)[:1], *pyramid(2, 16)[1:2]])


def test_head_is_narrow_on_a_pyramid():
    widths = [
        DistinctiveAreaDetector(channels).heads[0].heat[0].out_channels for channels in ([256] * 5, [256], [16] * 2)
    ]
    assert widths == [64, 256, 16]


def test_energy_of_a_flat_map_is_zero():
    assert not activation_energy(torch.ones(2, 3, 4, 4)).any()
    assert activation_energy(torch.randn(2, 3, 4, 5)).amax((1, 2, 3)).tolist() == [1.0, 1.0]


def test_autocast():
    model = detector()
    with torch.autocast('cpu', torch.bfloat16):
        result = model(pyramid(1), pyramid(2))
    assert all(v.dtype == torch.float32 and v.isfinite() for v in result.losses.values())


def test_heatmap_keeps_its_resolution_under_autocast():
    head, feat = AreaHead(8, 8), torch.randn(2, 8, 16, 16)
    exact = head(feat)
    with torch.autocast('cpu', torch.bfloat16):
        maps = head(feat)
    assert maps.heat.unique().numel() > 0.95 * maps.heat.numel()  # bf16 has some hundred values in the range
    for a, b in zip(maps, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)


def test_no_python_branch_or_number_depends_on_a_tensor():
    with FakeTensorMode():  # fake tensors have no values: reading one raises, as a sync would wait
        student, teacher = ([torch.empty(2, 8, *size) for size in ((8, 6), (4, 3), (1, 1))] for _ in range(2))
        with pytest.raises(DataDependentOutputException):
            student[0].sum().item()
        result = detector()(student, teacher)
        sum(result.losses.values()).backward()
    assert [tuple(w.shape) for w in result.weights] == [(2, 1, 8, 6), (2, 1, 4, 3), (2, 1, 1, 1)]


def test_clamp_is_said_once_a_level(monkeypatch):
    said = []
    monkeypatch.setattr('mmsokd.areas.detector.print_log', lambda text, logger: said.append(text))
    model = detector(num_areas=20)
    for _ in range(2):
        model(pyramid(1), pyramid(2))
    assert [text.split(';')[0] for text in said] == [
        'areas.num_areas: level 1 has 12 cells', 'areas.num_areas: level 2 has 1 cells'
    ]  # fmt: skip


def test_detect_is_what_forward_uses():
    model = detector()
    found, result = model.detect(pyramid(1), pyramid(2)), model(pyramid(1), pyramid(2))
    for level, boxes in zip(found, result.boxes, strict=True):
        assert not level.heat.requires_grad
        torch.testing.assert_close(level.boxes, boxes)
        assert level.scores.shape == boxes.shape[:2]


def test_levels_and_shapes_must_fit():
    with pytest.raises(ValueError, match='expected 3 levels, found 2 of the student and 3 of the teacher'):
        detector()(pyramid(1)[:2], pyramid(2))
    with pytest.raises(ValueError, match=r'equal shapes, found student \(2, 8, 1, 1\), teacher \(2, 8, 8, 6\)'):
        detector()(pyramid(1)[::-1], pyramid(2))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(source='mutal'), "areas.source: .*did you mean 'mutual'"),
        (dict(overlap='max'), 'areas.overlap'),
        (dict(normalization='mean'), 'areas.normalization'),
        (dict(num_areas=0), 'areas.num_areas: expected an integer >= 1, found 0'),
        (dict(anchor_weight=-1.0), 'areas.anchor_weight: expected a number >= 0'),
    ],
)
def test_options_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        detector(**kwargs)
