"""What stands between the taps and the losses, value by value, in a few lines of plain PyTorch beside it."""

import pytest
import torch
from torch.nn import functional as F

from mmsokd.augment.policy import SUB_POLICIES
from tests.builders import distiller, losses_of, raw_batch, retinanet
from tests.reference import losses as reference

FITNET = dict(type='mmsokd.FitNetLoss', tap='neck')
REFINE = dict(type='mmsokd.FeatureAugmentationNeck')


def always_moves(policy):
    """From now on every draw moves the feature left and up by 0.45 of the map, the end of the table's range."""
    policy.alpha.zero_()
    policy.alpha[SUB_POLICIES.index(('TranslateX', 'TranslateY'))] = 1e4
    policy.beta.fill_(1.0)
    policy.magnitude.fill_(1.0)


def moved(feat):
    """That draw by hand: linear between the two cells that a cell reads; zeros come in."""
    for dim in (2, 3):
        size = feat.shape[dim]
        cells = 0.45 * size
        whole = int(cells)
        padded = torch.cat([feat, torch.zeros_like(feat)], dim)
        near, far = padded.narrow(dim, whole, size), padded.narrow(dim, whole + 1, size)
        feat = (1 - (cells - whole)) * near + (cells - whole) * far
    return feat


def mse(student, teacher):
    return sum(((s - t) ** 2).mean() for s, t in zip(student, teacher, strict=True))


def forward(model, tap='neck'):
    """Both networks' pyramids on the batch of :func:`losses_of`; ``model`` is in eval mode."""
    assert not model.training
    inputs = model.data_preprocessor(raw_batch(), True)['inputs']
    with torch.no_grad():
        student, teacher = model.student.backbone(inputs), model.teacher.backbone(inputs)
        if tap == 'neck':
            return model.student.neck(student), model.teacher.neck(teacher)
    return student, teacher


def adapted(model, name, student):
    """``Phi_s(F_s)`` where the adapter is the inferred 1x1 convolution."""
    convs = [level.conv.conv for level in model.terms[name].adapter]
    return [F.conv2d(s, conv.weight, conv.bias) for s, conv in zip(student, convs, strict=True)]


def spy(module):
    """What ``module`` is given and what it gives, call by call, from now on."""
    calls = []
    module.register_forward_hook(lambda _, given, out: calls.append((given, out)))
    return calls


# ---- the refined feature --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('searching', [False, True])
def test_the_host_compares_with_the_refined_feature(searching):
    model = distiller(terms=dict(loss_hint=FITNET), areas=None).eval()
    neck = model.refine.necks['shared']
    neck.searching = searching
    always_moves(neck.policy)
    student, teacher = forward(model)
    phi, refined = adapted(model, 'loss_hint', student), [moved(t) for t in teacher]
    losses = losses_of(model)
    torch.testing.assert_close(losses['distill.loss_hint'], mse(phi, refined))
    assert not torch.allclose(mse(phi, refined), mse(phi, teacher), rtol=1e-3)
    torch.testing.assert_close(losses['sokd.aug'], mse(phi, refined).detach() / 2 / 3)  # a mean over three levels
    norms = [torch.cat([x.flatten() for x in feats]).norm() for feats in (refined, teacher)]
    torch.testing.assert_close(losses['sokd.norm_ratio'], norms[0] / norms[1])


def test_a_term_that_opts_out_compares_with_the_feature_as_it_is():
    terms = dict(loss_a=FITNET, loss_b=dict(FITNET, refine=False))
    model = distiller(terms=terms, areas=None).eval()
    always_moves(model.refine.necks['shared'].policy)
    student, teacher = forward(model)
    losses = losses_of(model)
    by_hand = mse(adapted(model, 'loss_a', student), [moved(t) for t in teacher])
    torch.testing.assert_close(losses['distill.loss_a'], by_hand)
    torch.testing.assert_close(losses['distill.loss_b'], mse(adapted(model, 'loss_b', student), teacher))


def test_a_policy_a_term():
    terms = dict(loss_a=FITNET, loss_b=FITNET)
    model = distiller(terms=terms, refine=dict(REFINE, per_term=True), areas=None).eval()
    always_moves(model.refine.necks['loss_b'].policy)
    model.refine.necks['loss_a'].policy.beta.zero_()  # nothing fires
    student, teacher = forward(model)
    losses = losses_of(model)
    torch.testing.assert_close(losses['distill.loss_a'], mse(adapted(model, 'loss_a', student), teacher))
    by_hand = mse(adapted(model, 'loss_b', student), [moved(t) for t in teacher])
    torch.testing.assert_close(losses['distill.loss_b'], by_hand)


def test_levels_of_one_tap_are_refined_apart():
    level = dict(type='mmsokd.FitNetLoss', teacher_tap='neck')  # of whose levels the strides choose one
    terms = dict(loss_fine=dict(level, student_tap='neck[0]'), loss_coarse=dict(level, student_tap='neck[2]'))
    model = distiller(terms=terms, areas=None).eval()
    always_moves(model.refine.necks['shared'].policy)
    refinements = spy(model.refine.necks['shared'])
    student, teacher = forward(model)
    losses = losses_of(model)
    for name, i in (('loss_fine', 0), ('loss_coarse', 2)):
        by_hand = mse(adapted(model, name, student[i : i + 1]), [moved(teacher[i])])
        torch.testing.assert_close(losses[f'distill.{name}'], by_hand)
    assert len(refinements) == 2


def test_terms_on_the_same_levels_share_their_refinement():
    model = distiller(terms=dict(loss_a=FITNET, loss_b=FITNET), areas=None).eval()
    always_moves(model.refine.necks['shared'].policy)
    refinements = spy(model.refine.necks['shared'])
    student, teacher = forward(model)
    losses = losses_of(model)
    for name in ('loss_a', 'loss_b'):
        by_hand = mse(adapted(model, name, student), [moved(t) for t in teacher])
        torch.testing.assert_close(losses[f'distill.{name}'], by_hand)
    assert len(refinements) == 1


# ---- the areas ------------------------------------------------------------------------------------------------------


def standardized(x):
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, unbiased=False)


def attention(x):
    energy = (x**2).mean(1, keepdim=True)
    return energy / energy.flatten(1).norm(dim=1)[:, None, None, None]


HOSTS = {  # the squared difference of what each host compares, before the mean over the positions that count
    'FitNetLoss': (lambda s, t: (s - t) ** 2, reference.fitnet),
    'ATLoss': (lambda s, t: (attention(s) - attention(t)) ** 2, reference.at),
    'PKDLoss': (lambda s, t: (standardized(s) - standardized(t)) ** 2 / 2, reference.pkd),
}


@pytest.mark.parametrize('loss', HOSTS)
@pytest.mark.parametrize('keep_host', [True, False])
def test_hosts_compare_inside_the_areas(loss, keep_host):
    areas = dict(type='mmsokd.DistinctiveAreaDetector', num_areas=2)
    term = dict(type=f'mmsokd.{loss}', tap='neck')
    model = distiller(terms=dict(loss_host=term), areas=areas, keep_host=keep_host).eval()
    always_moves(model.refine.necks['shared'].policy)
    detections = spy(model.areas.detectors['loss_host'])
    _, teacher = forward(model)
    losses = losses_of(model)
    (((phi, refined), found),) = detections
    for given, t in zip(refined, teacher, strict=True):
        torch.testing.assert_close(given, moved(t))
    assert 0 < found.weights[0].mean() < 1  # the areas do select

    compare, whole = HOSTS[loss]
    masked = {'host': 0.0, 'area': 0.0}
    for s, t, w in zip(phi, refined, found.weights, strict=True):
        for name, difference in (('host', compare(s, t)), ('area', (s - t) ** 2)):
            masked[name] += (difference * w).sum() / (w.sum() * difference.shape[1])
        if s.shape[-1] > 2:  # the hosts by hand are the hosts of the reference, where all counts
            unmasked = whole(s.detach().double().numpy(), t.double().numpy())
            assert compare(s.double(), t.double()).mean().item() == pytest.approx(unmasked, rel=1e-5)
    torch.testing.assert_close(losses['sokd.loss_area'], masked['area'])
    if keep_host:
        torch.testing.assert_close(losses['distill.loss_host'], masked['host'], rtol=1e-4, atol=1e-6)
    else:
        assert 'distill.loss_host' not in losses


# ---- refinement in the teacher's forward ----------------------------------------------------------------------------


@pytest.mark.parametrize('at', ['backbone.layer3', 'neck'])
def test_logits_follow_the_refined_layer(at):
    term = dict(type='mmsokd.FitNetLoss', tap='bbox_head.retina_cls')
    refine = dict(REFINE, at=at)
    model = distiller(teacher=retinanet(16, base=16), terms=dict(loss_cls=term), refine=refine, areas=None).eval()
    always_moves(model.refine.necks['shared'].policy)
    inputs = model.data_preprocessor(raw_batch(), True)['inputs']
    with torch.no_grad():
        student = model.student(inputs)[0]
        net = model.teacher.backbone
        x = net.maxpool(net.relu(net.norm1(net.conv1(inputs))))
        levels = []
        for i in (1, 2, 3, 4):
            x = getattr(net, f'layer{i}')(x)
            if at == f'backbone.layer{i}':
                x = moved(x)
            levels.append(x)
        pyramid = model.teacher.neck(levels)
        if at == 'neck':
            pyramid = [moved(level) for level in pyramid]
        refined, plain = model.teacher.bbox_head(pyramid)[0], model.teacher(inputs)[0]
    found = losses_of(model)['distill.loss_cls']
    torch.testing.assert_close(found, mse(student, refined))
    # A random head says little of its picture: how far the logits moved is measured by how far they spread.
    spread = sum(level.var() for level in plain)
    assert mse(refined, plain) > 0.1 * spread
