"""What is shown side by side: one colour is one feature, and the teacher is refined by the draw."""

import copy

import numpy as np
import pytest
import torch

from mmsokd.distillers.base import Compared
from mmsokd.visualization.features import Projection, features_figure
from tests.builders import classifier, distiller, raw_batch, raw_cls_batch, retinanet


def test_a_projection_is_of_principal_components():
    """Against the eigenvectors of the covariance, by another way."""
    feat = torch.randn(6, 5, 7)
    cells = feat.numpy().reshape(6, -1).T.astype(float)
    values, vectors = np.linalg.eigh(np.cov(cells.T))
    seen = (cells - cells.mean(0)) @ vectors[:, np.argsort(values)[::-1][:3]]
    low, high = np.quantile(seen, 0.01, axis=0), np.quantile(seen, 0.99, axis=0)
    expected = np.clip((seen - low) / (high - low), 0, 1).reshape(5, 7, 3)
    found = Projection(feat)(feat)
    for i in range(3):  # a component's sign is free
        assert min(np.abs(found[..., i] - x).max() for x in (expected[..., i], 1 - expected[..., i])) < 1e-5


@pytest.mark.parametrize('channels', [1, 2, 8])
def test_few_channels_and_flat_features(channels):
    flat = torch.ones(channels, 4, 4)
    assert Projection(flat)(flat).shape == (4, 4, 3)
    one = Projection(torch.randn(channels, 1, 1))
    assert np.isfinite(one(torch.randn(channels, 1, 1))).all()


def test_a_row_a_level_without_padding():
    picture = np.zeros((40, 56, 3), np.uint8)
    levels = [(8, 8), (4, 4)]

    def feats(channels):
        return [torch.randn(2, channels, *size) for size in levels]

    teacher = feats(6)
    compared = Compared(feats(4), feats(6), teacher, [2 * x for x in teacher])
    figure = features_figure(picture, compared, [(8, 8), (16, 16)], 1, 'loss_hint')
    axes = [axis for axis in figure.axes if axis.get_title()]
    assert len(axes) == 12
    shapes = [tuple(axis.images[0].get_array().shape[:2]) for axis in axes]
    assert shapes == [(40, 56), *[(5, 7)] * 5, (40, 56), *[(3, 4)] * 5]
    distance = axes[5].images[0].get_array()
    a, r = compared.adapted[0][1, :, :5, :7], compared.refined[0][1, :, :5, :7]
    np.testing.assert_allclose(distance, ((r - a) ** 2).mean(0).sqrt(), rtol=1e-5)


def compared_of(model, batch, refine=True):
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    step = model.refine.begin(data['inputs']) if refine else None
    return model.compared_features(data['inputs'], data['data_samples'], step=step), step, data


def with_firing(model):
    """Every drawn operation fires."""
    for neck in model.refine.necks.values():
        neck.policy.beta.fill_(0.99)
        neck.policy.magnitude.fill_(0.9)
    return model


def test_the_teacher_is_refined_by_the_draw_and_the_levels_fit():
    model = with_firing(distiller())
    found, step, data = compared_of(model, raw_batch())
    (name,) = found
    neck = model.refine.necks['shared']
    expected = neck(found[name].teacher, step.draws['shared'])
    for level, (adapted, teacher, refined) in enumerate(zip(*found[name][1:], strict=True)):
        assert adapted.shape == teacher.shape == refined.shape
        torch.testing.assert_close(refined, expected[level])
    assert any(not torch.equal(t, r) for t, r in zip(found[name].teacher, found[name].refined, strict=True))
    plain = model.compared_features(data['inputs'], data['data_samples'])[name]
    assert all(torch.equal(t, r) for t, r in zip(plain.teacher, plain.refined, strict=True))
    assert not any(x.requires_grad for part in plain for x in part)


def test_a_teacher_that_is_refined_in_place_is_run_with_and_without():
    model = with_firing(
        distiller(
            terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck')),
            refine=dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer2'),
        )
    )
    found, _, _ = compared_of(model, raw_batch())
    pairs = list(zip(found['loss_hint'].teacher, found['loss_hint'].refined, strict=True))
    assert all(not torch.equal(t, r) for t, r in pairs)


def test_several_teachers_and_terms_that_rest_or_compare_logits():
    model = distiller(
        student=classifier(8),
        teacher=None,
        teachers=dict(a=classifier(12), b=classifier(16)),
        terms=dict(
            loss_a=dict(type='mmsokd.FitNetLoss', tap='backbone.layer4', teacher='a'),
            loss_b=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3', teacher='b', refine=False),
            loss_c=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3', teacher='b', loss_weight=0.0),
            loss_kd=dict(type='mmsokd.KDLoss', tap='head', teacher='a'),
        ),
    )
    found, _, _ = compared_of(with_firing(model), raw_cls_batch())
    assert set(found) == {'loss_a', 'loss_b'}
    assert [x.shape[1] for x in found['loss_a'].teacher] == [12 * 8]
    assert torch.equal(found['loss_b'].teacher[0], found['loss_b'].refined[0])


def test_areas_have_both_heatmaps():
    model = distiller(teacher=retinanet(24))
    data = model.data_preprocessor(raw_batch(), True)
    (levels,) = model.detect_areas(data['inputs'], data['data_samples']).values()
    for level in levels:
        torch.testing.assert_close(level.heat, (level.student * level.teacher).sqrt())
        assert not torch.equal(level.student, level.teacher)
    assert model.training
