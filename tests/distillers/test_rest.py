"""What a step leaves out, says of itself, and complains of."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import nn

from mmsokd.distillers import Distiller
from mmsokd.hooks import PolicySearchHook
from mmsokd.registry import MODELS
from tests.builders import distiller, losses_of, retinanet

FITNET = dict(type='mmsokd.FitNetLoss', tap='neck')
STOPS = dict(stop=10, by_epoch=False)
AT = dict(type='mmsokd.FeatureAugmentationNeck', at='backbone.layer3')


def at_iteration(iteration, of=20):
    MessageHub.get_current_instance().update_info('max_iters', of)
    MessageHub.get_current_instance().update_info('iter', iteration)


def runs(model, *names):
    """The names of the teacher's layers, as they are called from now on."""
    ran = []
    for name in names:
        module = model.teacher.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    return ran


def test_the_teacher_runs_to_the_deepest_tap_that_is_alive():
    terms = dict(
        loss_deep=dict(FITNET, tap='bbox_head.retina_cls', adapter=None, loss_weight=STOPS),
        loss_early=dict(FITNET, tap='backbone.layer1'),
    )
    model = distiller('Distiller', terms=terms).train()
    ran = runs(model, 'backbone.layer1', 'backbone.layer4', 'neck')
    at_iteration(9)
    losses_of(model)
    assert ran == ['backbone.layer1', 'backbone.layer4', 'neck']
    ran.clear()
    at_iteration(10)
    assert losses_of(model)['distill.loss_early'] > 0
    assert ran == ['backbone.layer1']
    at_iteration(9)  # and back, where a schedule rises again
    losses_of(model)
    assert ran == ['backbone.layer1', 'backbone.layer1', 'backbone.layer4', 'neck']


class Net(BaseModel):
    """Small enough to be compiled in a second."""

    def __init__(self, width):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1))

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.extract_feat(inputs)
        return dict(loss_own=out.mean()) if mode == 'loss' else out


def test_compiles_once_more_when_a_term_stops():
    taps = dict(loss_deep=dict(tap='backbone.1', loss_weight=STOPS), loss_early=dict(tap='backbone.0'))
    terms = {name: dict(FITNET, adapter=None) | tap for name, tap in taps.items()}
    model = Distiller(Net(4), Net(4), terms=terms, probe_size=8).train()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model.forward, backend=backend)

    def known(iteration):
        at_iteration(iteration)
        losses = compiled(torch.randn(2, 3, 8, 8), mode='loss')
        assert (losses['distill.loss_deep'] > 0) == (iteration < 10)
        return len(graphs)

    first = known(0)
    assert first > 0
    assert known(1) == known(2) == first
    stopped = known(10)
    assert known(11) == known(12) == stopped


def test_nothing_is_refined_once_the_last_follower_has_stopped():
    early = dict(FITNET, tap='backbone.layer2', refine=False)
    model = distiller(terms=dict(loss_hint=dict(FITNET, loss_weight=STOPS), loss_early=early), refine=AT).train()
    neck = model.refine.necks['shared']
    neck.searching = True
    at_iteration(9)
    assert losses_of(model)['sokd.loss_fit'] > 0
    assert neck.pop_gradient() is not None
    ran = runs(model, 'backbone.layer2', 'backbone.layer3')
    at_iteration(10)
    losses = losses_of(model)
    assert losses['distill.loss_early'] > 0
    assert losses['sokd.loss_fit'] == 0
    assert neck.pop_gradient() is None
    assert ran == ['backbone.layer2']
    model.parse_losses(losses)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize('keep_host', [True, False])
@pytest.mark.parametrize('refine', [dict(type='mmsokd.FeatureAugmentationNeck'), AT])
def test_the_log_names_the_same_losses_when_a_term_rests(keep_host, refine):
    """MMEngine prints the last window of a key that is no longer there."""
    terms = dict(loss_host=dict(type='mmsokd.VIDLoss', tap='neck', loss_weight=STOPS))  # it learns its variances
    model = distiller(terms=terms, refine=refine, keep_host=keep_host).train()
    keys = []
    for iteration in (9, 10):
        at_iteration(iteration)
        losses = losses_of(model)
        keys.append(set(losses))
        model.zero_grad()
        model.parse_losses(losses)[0].backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert keys[0] == keys[1]
    rest = {key: value for key, value in losses.items() if key.startswith(('sokd.', 'distill.'))}
    assert all(value == 0 for key, value in rest.items() if 'loss' in key)
    silent = {'sokd.aug', 'sokd.norm_ratio', 'sokd.mask_cover', 'sokd.heat_std', 'sokd.area_mean'}
    assert {key for key, value in rest.items() if value.isnan()} == silent


def test_a_ratio_that_nobody_measured_is_no_warning():
    lines = []
    hook = PolicySearchHook(log_interval=1)
    runner = type('Runner', (), {'logger': type('Logger', (), {'log': lambda self, *args: lines.append(args)})()})()
    hook._watch_ratio(runner, {'sokd.norm_ratio': torch.tensor(float('nan'))})
    assert lines == []
    hook._watch_ratio(runner, {'sokd.norm_ratio': torch.tensor(3.0)})
    assert len(lines) == 1


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_a_training_forward_that_calls_a_tapped_layer_twice():
    model = distiller('Distiller', teacher=retinanet(16), terms=dict(loss_hint=dict(FITNET, adapter=None))).train()
    student = model.student
    plain = student.loss

    def noisy_first(inputs, samples):
        student.extract_feat(torch.zeros_like(inputs))
        return plain(inputs, samples)

    student.loss = noisy_first
    with pytest.raises(ValueError, match=r"student: tap 'neck': expected 1 calls of 'neck' .*, found 2"):
        losses_of(model)


@MODELS.register_module(force=True)
class OutOfSortsLoss(nn.Module):
    """Fails with what it is told to, in training."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, student, teacher):
        if self.training:
            raise self.error
        return student.mean()


class OddError(Exception):
    """Not built from a message."""

    def __init__(self, code, reason):
        super().__init__(code, reason)


class OwnError(RuntimeError):
    """Somebody else's, as NCCL's are."""


ERRORS = [RuntimeError, KeyError, AssertionError, OwnError, torch.cuda.OutOfMemoryError]


@pytest.mark.parametrize('kind', ERRORS)
def test_an_error_of_a_loss_names_its_term_and_stays_what_it_is(kind):
    terms = dict(loss_odd=dict(type=OutOfSortsLoss, error=kind('odd sizes'), tap='neck'))
    model = distiller('Distiller', terms=terms).train()
    for _ in range(2):  # the term is named once
        with pytest.raises(kind, match=r"""^['"]?terms\.loss_odd: odd sizes['"]?$""") as caught:
            losses_of(model)
        assert caught.type is kind


def test_an_error_of_a_dry_run_names_its_model():
    class Broken(type(MODELS.build(retinanet(24)))):
        def extract_feat(self, inputs):
            raise NotImplementedError

    with pytest.raises(NotImplementedError, match=r'^teacher: NotImplementedError$'):
        distiller('Distiller', teacher=dict(retinanet(24), type=Broken))


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OddError(3, 'sizes differ')])
def test_what_is_no_terms_fault_goes_through(error):
    terms = dict(loss_odd=dict(type=OutOfSortsLoss, error=error, tap='neck'))
    model = distiller('Distiller', terms=terms).train()
    with pytest.raises(type(error)) as caught:
        losses_of(model)
    assert caught.value.args == error.args
