"""RKD and SP: how the pictures of a batch lie to each other; channels may differ. RCKA and PCKA: by CKA."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.losses import linear_cka, pcka_loss, rcka_loss, rkd_loss, sp_loss
from tests.losses import common
from tests.losses.cases import build
from tests.reference import relation

RELATIONS = ('RKDLoss', 'SPLoss')


def feats(seed, shape=(5, 3)):
    return common.feats(seed, shape)


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_rkd_ignores_a_move_a_turn_and_the_scale(seed, scale):
    s, t = feats(seed), feats(seed + 1, (5, 4))
    turn = torch.linalg.qr(feats(seed + 2, (3, 3)))[0]
    torch.testing.assert_close(rkd_loss(scale * s @ turn + feats(seed + 3, (1, 3)), t), rkd_loss(s, t))


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_sp_ignores_a_turn_and_the_scale_of_the_batch(seed, scale):
    s, t = feats(seed), feats(seed + 1, (5, 4))
    turn = torch.linalg.qr(feats(seed + 2, (3, 3)))[0]
    torch.testing.assert_close(sp_loss(scale * s @ turn, t), sp_loss(s, t))
    assert abs(sp_loss(s + 1, t) - sp_loss(s, t)) > 1e-6  # but it does see a move


@pytest.mark.parametrize('name', RELATIONS)
def test_order_of_the_pictures_does_not_matter(name):
    s, t, order = feats(1), feats(2, (5, 4)), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(build(name)(s[order], t[order]), build(name)(s, t))


def test_weights_of_rkds_parts():
    s, t = feats(1), feats(2)
    parts = rkd_loss(s, t, 1.0, 0.0), rkd_loss(s, t, 0.0, 1.0)
    torch.testing.assert_close(rkd_loss(s, t), 25 * parts[0] + 50 * parts[1])
    assert min(parts) > 0


@pytest.mark.parametrize('name', RELATIONS)
def test_a_batch_of_one_says_nothing(name):
    s = feats(1, (1, 3, 2, 2)).requires_grad_()
    value = build(name)(s, feats(2, (1, 4, 2, 2)))
    value.backward()
    assert value < 1e-12
    assert s.grad.abs().max() < 1e-12


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e-15, 1.0, 1e6])
@pytest.mark.parametrize('name', RELATIONS)
def test_degenerate_features_stay_finite(name, scale):
    some = feats(1, (4, 3)).float()
    twins = some.clone()
    twins[1] = twins[0]
    for s in (scale * some, scale * twins, scale * torch.ones(4, 3)):
        for t in (torch.zeros(4, 3), twins):
            pair = s.clone().requires_grad_(), t.clone().requires_grad_()
            value = build(name)(*pair)
            value.backward()
            assert value.isfinite()
            assert all(x.grad.isfinite().all() for x in pair)


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r'\(N, C\) or a map \(N, C, H, W\) a picture, found \(2, 7, 3\)'):
        rkd_loss(torch.zeros(2, 7, 3), torch.zeros(2, 7, 3))


# ---- RCKA and PCKA --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(5, 3), (3, 5)])
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_cka_ignores_a_move_a_turn_and_the_scale_but_no_squeeze(shape, seed, scale):
    """Kornblith et al., sec. 2: invariant to orthogonal transforms and isotropic scaling, not to any linear map."""
    x, y = feats(seed, shape), feats(seed + 1, (shape[0], 4))
    turn = torch.linalg.qr(feats(seed + 2, (shape[1], shape[1])))[0]
    moved = scale * x @ turn + feats(seed + 3, (1, shape[1]))
    torch.testing.assert_close(linear_cka(moved, y), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(y, moved), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(x, moved), torch.ones_like(linear_cka(x, y)))
    squeeze = torch.ones(shape[1], dtype=x.dtype)
    squeeze[0] = 5
    assert linear_cka(x * squeeze, x) < 1 - 1e-6


@pytest.mark.parametrize('n', [3, 7, 20])
def test_both_forms_of_cka_are_one(n):
    """From 5 columns and from 20, of which 15 are zero: of 7 rows once the columns' products, once the rows'."""
    x, y = feats(1, (n, 5)), feats(2, (n, 6))
    more = torch.zeros(n, 15, dtype=x.dtype)
    wide = linear_cka(torch.cat([x, more], 1), y)
    torch.testing.assert_close(linear_cka(x, y), wide)
    assert wide.item() == pytest.approx(relation.cka(x.numpy(), y.numpy()), rel=1e-12)


def test_cka_of_single_columns_is_the_squared_correlation():
    x, y = feats(1, (7, 1)), feats(2, (7, 1))
    r = torch.corrcoef(torch.cat([x, y], 1).T)[0, 1]
    torch.testing.assert_close(linear_cka(x, y), r**2)
    by_hand = linear_cka(torch.tensor([[0.0], [1], [2]]), torch.tensor([[0.0], [0], [1]]))
    torch.testing.assert_close(by_hand, torch.tensor(0.75))  # r = 1 / sqrt(2 * 2 / 3)


def test_pcka_of_single_cells_is_pkds_correlation_squared():
    s, t = feats(1, (1, 3, 4, 5)), feats(2, (1, 3, 4, 5))
    r = [torch.corrcoef(torch.stack([s[0, c].flatten(), t[0, c].flatten()]))[0, 1] for c in range(3)]
    torch.testing.assert_close(pcka_loss(s, t, patch_size=1), 1 - torch.stack(r).square().mean())


def test_weights_of_rckas_parts():
    """The first knows no class's bias, the second none of a picture."""
    s, t = feats(1, (6, 5)), feats(2, (6, 5))
    pictures, classes = rcka_loss(s, t, 1.0, 0.0), rcka_loss(s, t, 0.0, 1.0)
    torch.testing.assert_close(rcka_loss(s, t, 2.0, 3.0), 2 * pictures + 3 * classes)
    torch.testing.assert_close(rcka_loss(s.T, t.T, 1.0, 0.0), classes)
    biased, bright = s + feats(3, (1, 5)), s + feats(4, (6, 1))
    torch.testing.assert_close(rcka_loss(biased, t, 1.0, 0.0), pictures)
    torch.testing.assert_close(rcka_loss(bright, t, 0.0, 1.0), classes)
    assert abs(rcka_loss(biased, t, 0.0, 1.0) - classes) > 1e-3
    assert abs(rcka_loss(bright, t, 1.0, 0.0) - pictures) > 1e-3


@given(st.integers(0, 999), st.floats(0.1, 10), st.floats(-5, 5))
def test_pcka_ignores_scale_and_shift_of_a_channel(seed, scale, shift):
    s, t = feats(seed, (2, 3, 4, 6)), feats(seed + 1, (2, 3, 4, 6))
    moved = s.clone()
    moved[:, 1] = -scale * s[:, 1] + shift
    torch.testing.assert_close(pcka_loss(moved, t, 2), pcka_loss(s, t, 2))


@pytest.mark.parametrize('scale', [1e-3, 0.1, 10.0])
def test_rckas_gradient_goes_with_one_over_the_scale_of_the_logits(scale):
    """Why its weight begins at 0: the first logits are small. Along the logits there is none, so that they grow."""
    s, t = feats(3, (6, 5)), feats(4, (6, 5))
    small = s.detach() * scale
    grads = [torch.autograd.grad(rcka_loss(x, t), x)[0] for x in (s.requires_grad_(), small.requires_grad_())]
    torch.testing.assert_close(grads[1] * scale, grads[0])
    torch.testing.assert_close((grads[0] * s).sum(), torch.zeros_like(s[0, 0]))


def test_pcka_compares_places_and_not_what_a_patch_looks_like():
    """To turn all patches, or to exchange the pictures, is an orthogonal transform; to move patches is none."""
    s, t = feats(1, (2, 3, 6, 8)), feats(2, (2, 3, 6, 8))
    turned = s.reshape(2, 3, 3, 2, 4, 2).flip(3, 5).reshape(s.shape)
    for other in (turned, s.flip(0)):
        torch.testing.assert_close(pcka_loss(other, t, 2), pcka_loss(s, t, 2))
    assert abs(pcka_loss(s.roll(2, 3), t, 2) - pcka_loss(s, t, 2)) > 1e-3


@pytest.mark.parametrize('side', ['student', 'teacher'])
@pytest.mark.parametrize('constant', [0.0, 1000.3])
def test_pcka_leaves_a_dead_channel_alone(constant, side):
    pair = [feats(i, (2, 3, 5, 6)).float() for i in (1, 2)]
    pair[side == 'teacher'][:, 0] = constant
    s, t = (x.requires_grad_() for x in pair)
    value = pcka_loss(s, t, 2)
    value.backward()
    live = pcka_loss(s[:, 1:], t[:, 1:], 2)
    torch.testing.assert_close(value, (2 * live + 1) / 3)
    for x in (s, t):
        assert not x.grad[:, 0].any()
        assert x.grad[:, 1:].isfinite().all()
        assert x.grad[:, 1:].abs().sum() > 0


@pytest.mark.parametrize(('size', 'expected'), [((2, 2), 1.0), ((1, 2), 1.0), ((4, 2), 0.0), ((2, 3), 0.0)])
def test_pcka_of_one_or_two_patches_says_nothing(size, expected):
    s = feats(1, (2, 3, *size)).requires_grad_()
    value = pcka_loss(s, feats(2, (2, 3, *size)), 2)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert s.grad.abs().max() < 1e-12


@pytest.mark.parametrize(('n', 'k'), [(1, 5), (2, 5), (5, 2)])
def test_rcka_needs_three_pictures_or_classes(n, k):
    """With fewer, the other part teaches alone."""
    s, t = feats(1, (n, k)).requires_grad_(), feats(2, (n, k))
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        (grad,) = torch.autograd.grad(rcka_loss(s, t, *weights), s)
        rows = n if weights[0] else k
        assert (grad.abs().max() < 1e-12) == (rows < 3)
