"""Meta-KD's refiner alone: what it computes, that it starts as the identity, and who gets a gradient."""

import re

import pytest
import torch

from mmsokd.augment import KnowledgeRefiner, refine_knowledge
from tests.losses.common import arrays, feats, relative_error
from tests.reference import knowledge as reference


def weights(channels, hidden=3, seed=5):
    shapes = (hidden, 2 * channels + 1), (hidden,), (channels, hidden), (channels,)
    return [feats(seed + i, shape) for i, shape in enumerate(shapes)]


def trained(channels, **kwargs):
    refiner = KnowledgeRefiner(**kwargs)
    refiner.connect(channels)
    refiner.is_trained = True
    return refiner


def test_against_the_slow_twin():
    feat, student, own = feats(1), feats(2), weights(3)
    expected = reference.refine(*arrays(feat, student, *own))
    assert relative_error(refine_knowledge(feat, student, *own), expected) < 1e-13


def test_gradient_against_finite_differences():
    inputs = [x.requires_grad_() for x in (feats(1), feats(2), *weights(3))]
    assert torch.autograd.gradcheck(refine_knowledge, inputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_starts_as_the_identity(dtype):
    refiner = trained([3, 5])
    levels = [feats(1).to(dtype), feats(2, (2, 5, 3, 3)).to(dtype)]
    if dtype == torch.float64:
        refiner.double()
    with torch.autocast('cpu', torch.bfloat16):
        found = refiner.refine(levels, [-x for x in levels], refiner.sample(2))
    for ours, theirs in zip(found, levels, strict=True):
        assert ours.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(ours, theirs.to(ours.dtype))
        assert not ours.requires_grad


def test_it_has_no_parameters_and_its_weights_are_saved():
    refiner = trained([3, 5], hidden=4)
    assert not list(refiner.parameters())
    shapes = {name: tuple(value.shape) for name, value in refiner.state_dict().items()}
    assert shapes == {
        **dict(reduce_0=(4, 7), reduce_bias_0=(4,), expand_0=(3, 4), expand_bias_0=(3,)),
        **dict(reduce_1=(4, 11), reduce_bias_1=(4,), expand_1=(5, 4), expand_bias_1=(5,)),
    }
    assert refiner.searched_tensors().keys() == shapes.keys()


def test_within_exposed_the_student_is_held_and_the_leaves_have_a_gradient():
    refiner = trained([3], hidden=4).double()
    for value in refiner.buffers():
        value.copy_(torch.randn_like(value))
    feat, first, later = (feats(i).requires_grad_() for i in (1, 2, 3))
    plain = refiner.refine([feat], [first], None)[0]
    with refiner.exposed() as leaves:
        found = refiner.refine([feat], [first], None)[0]
        assert torch.equal(found, plain)
        assert torch.equal(refiner.refine([feat], [later], None)[0], plain)
        slopes = torch.autograd.grad(found.square().sum(), [*leaves.values(), feat, first], allow_unused=True)
        assert all(slope.any() for slope in slopes[:4])
        assert slopes[4:] == (None, None)
    assert not refiner.is_exposed
    assert not torch.equal(refiner.refine([feat], [later], None)[0], plain)


def test_without_its_hook_it_warns_once(monkeypatch):
    told = []
    monkeypatch.setattr('mmsokd.augment.knowledge.print_log', lambda message, *_: told.append(message))
    refiner = KnowledgeRefiner()
    refiner.connect([3])
    for _ in range(2):
        refiner.refine([feats(1).float()], [feats(2).float()], None)
    assert len(told) == 1
    assert told[0].startswith('refine: a KnowledgeRefiner that nobody trains')


@pytest.mark.parametrize('found', [0, 1.5, 'many', True, None])
def test_wrong_arguments_are_refused(found):
    with pytest.raises(ValueError, match=re.escape(f'refine.hidden: expected an integer >= 1, found {found!r}')):
        KnowledgeRefiner(hidden=found)
