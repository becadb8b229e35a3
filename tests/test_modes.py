"""The ways to train that MMEngine offers, through its Runner, each beside plain fp32. ``-s`` shows the figures."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from tests.builders import distiller, losses_of, retinanet, step
from tests.test_launch import SEARCH, additive, assert_the_same, config, records
from tests.test_own_train_scripts import make_classes

AMP = 'mmengine.optim.optimizer.amp_optimizer_wrapper'


@pytest.fixture(autouse=True)
def _quick_and_on_the_cpu(request, monkeypatch):
    """MMEngine formats each config it logs or saves, which takes longer than these trainings."""
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda code, **_: (code, True), raising=False)
    if request.node.get_closest_marker('cuda') is None:
        monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_classes(tmp_path_factory.mktemp('modes') / 'pictures')


class Keep(Hook):
    """The weights, and the policy, after each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.weights, self.policies = [], []

    def after_train_iter(self, runner, **_):
        self.weights.append({name: p.detach().clone() for name, p in runner.model.named_parameters()})
        self.policies.append(runner.model.refine.necks['shared'].policy.get_extra_state())


def runner_of(data, work_dir, batch_size=4, hooks=(SEARCH,), **more):
    """Four epochs of three iterations, without validation."""
    cfg = additive(config(data, work_dir, batch_size, hooks=hooks))
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None, log_level='ERROR')
    cfg.merge_from_dict(more)
    return Runner.from_cfg(cfg)


def run(data, work_dir, **more):
    """What RecordHook saw in a training of twelve iterations, of which the policy is searched in eight."""
    runner_of(data, work_dir, **more).train()
    return records(work_dir, ranks=1)[0]


@pytest.fixture(scope='module')
def plain(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.device.utils.DEVICE', 'cpu')
        return run(data, tmp_path_factory.mktemp('plain'))


def distance(a, b):
    """Relative of the losses, absolute of weights and policy."""
    losses = (torch.tensor(a['losses']) / torch.tensor(b['losses']) - 1).abs().max().item()
    weights, policy = (max((a[k][n] - v).abs().max().item() for n, v in b[k].items()) for k in ('weights', 'policy'))
    print(f'losses {losses:.1e}, weights {weights:.1e}, policy {policy:.1e}', end=' ')
    return losses, weights, policy


# ---- accumulation and clipping --------------------------------------------------------------------------------------


def test_accumulated_batches_train_as_one(data, plain, tmp_path):
    """Two batches of two pictures against one of four: student and policy make the same steps.

    They differ by the order of float32 sums alone, some 1e-7 in a step.
    """
    hooks = [dict(SEARCH, search_iters=16), dict(type='SameDrawsHook', counts=2)]
    halves = run(data, tmp_path, batch_size=2, hooks=hooks, **{'optim_wrapper.accumulative_counts': 2})
    assert len(halves['losses']) == 24
    halves['losses'] = torch.tensor(halves['losses']).view(12, 2, -1).mean(1).tolist()
    assert max(distance(halves, plain)) < 1e-5
    assert (plain['policy']['magnitude'] - 0.5).abs().max() > 0.1


@pytest.mark.parametrize('mode', ['fused', 'unrolled'])
def test_the_policy_steps_as_often_as_the_student(data, tmp_path, mode):
    """Two windows of three batches, and what is left of the third when the search ends after eight."""
    keep = Keep()
    hook = dict(SEARCH, mode=mode, search_iters=8)
    runner = runner_of(data, tmp_path, hooks=[hook], **{'optim_wrapper.accumulative_counts': 3})
    runner.register_hook(keep)
    runner.train()
    chi = [state[:-1] for state in keep.policies]
    moved = [i for i in range(1, 12) if not torch.equal(chi[i], chi[i - 1])]
    assert moved == [2, 5, 7]
    (search,) = [h for h in runner.hooks if type(h).__name__ == 'PolicySearchHook']
    assert search._optimizers['shared'].state_dict()['state'][0]['step'] == 3


def test_clipping_leaves_the_policy_alone(data, tmp_path):
    """After one step: the student's is as long as it may be, the policy's is bit by bit what it was."""
    kept = []
    for clip in (None, dict(max_norm=1e-3)):
        keep = Keep()
        optimizer = {'optim_wrapper.optimizer.momentum': 0, 'optim_wrapper.clip_grad': clip}
        runner = runner_of(data, tmp_path, **optimizer)
        runner.register_hook(keep)
        before = {}

        class First(Hook):
            priority = 'LOWEST'

            def before_train_iter(self, runner, batch_idx, data_batch=None, before=before):
                before.update({} if before else copy.deepcopy(dict(runner.model.named_parameters())))

        runner.register_hook(First())
        runner.train()
        length = sum((keep.weights[0][name] - p).square().sum() for name, p in before.items()).sqrt()
        kept.append((length.item(), keep.policies[0]))
    (free, policy), (clipped, same) = kept
    assert free > 1e-3
    assert clipped == pytest.approx(0.02 * 1e-3, rel=1e-3)  # lr times max_norm; float32 weights near one round 1e-7
    assert torch.equal(policy, same)
    assert policy[:-1].sub(0.5).abs().min() < 0.49


# ---- mixed precision ------------------------------------------------------------------------------------------------


class Scaler:
    """What GradScaler does; PyTorch 2.1 has it for CUDA alone."""

    def __init__(self, init_scale=2.0**16):
        self.scale_, self.unscaled, self.skipped = init_scale, False, 0

    def get_scale(self):
        return self.scale_

    def scale(self, loss):
        return loss * self.scale_

    def unscale_(self, optimizer):
        self.grads = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        for grad in self.grads:
            grad.div_(self.scale_)
        self.unscaled = True

    def step(self, optimizer):
        if not self.unscaled:
            self.unscale_(optimizer)
        self.overflowed = not all(grad.isfinite().all() for grad in self.grads)
        if not self.overflowed:
            optimizer.step()
        self.skipped += self.overflowed

    def update(self, new_scale=None):
        self.scale_ *= 0.5 if self.overflowed else 1.0
        self.unscaled = False

    def state_dict(self):
        return dict(scale=self.scale_)

    def load_state_dict(self, state):
        self.scale_ = state['scale']


@pytest.fixture
def _amp_on_the_cpu(request, monkeypatch):
    """MMEngine's AmpOptimWrapper asks for a GPU; its code runs without one."""
    if request.node.get_closest_marker('cuda') is None:
        monkeypatch.setattr(f'{AMP}.is_cuda_available', lambda: True)
        monkeypatch.setattr(f'{AMP}.GradScaler', Scaler)


@OPTIM_WRAPPERS.register_module()
class ScalingWrapper(AmpOptimWrapper):
    """The scaling of AmpOptimWrapper without its autocast."""

    def optim_context(self, model):
        return OptimWrapper.optim_context(self, model)


@pytest.mark.usefixtures('_amp_on_the_cpu')
@pytest.mark.parametrize('more', [{}, {'clip_grad': dict(max_norm=0.1)}, {'accumulative_counts': 2}])
def test_a_scaled_loss_changes_nothing(data, tmp_path, more):
    """A power of two is exact in float32, so that weights and policy are those of the unscaled run, bit by bit."""
    more = {f'optim_wrapper.{key}': value for key, value in more.items()}
    scaled = {'optim_wrapper.type': 'ScalingWrapper', 'optim_wrapper.loss_scale': 2.0**16}
    one, other = (run(data, tmp_path / str(i), **more, **kwargs) for i, kwargs in enumerate(({}, scaled)))
    assert one['losses'] == other['losses']
    assert_the_same(one['weights'], other['weights'])
    assert_the_same(one['policy'], other['policy'])


@pytest.mark.usefixtures('_amp_on_the_cpu')
def test_the_policy_steps_where_a_scaled_gradient_overflows(data, tmp_path):
    """The scaler leaves the student's first steps out; the policy's gradient is not scaled, and is finite."""
    keep = Keep()
    wrapper = dict(type='ScalingWrapper', loss_scale=dict(init_scale=2.0**127), optimizer=dict(type='SGD', lr=1e-6))
    large = {'model.areas.agreement_weight': 20.0}  # the scale alone is finite in float32, not both
    runner = runner_of(data, tmp_path, optim_wrapper=wrapper, **large)
    runner.register_hook(keep)
    runner.train()
    skipped = runner.optim_wrapper.loss_scaler.skipped
    print(f'{skipped} skipped', end=' ')
    assert 2 < skipped < 8
    for i in range(1, skipped):
        assert_the_same(keep.weights[i - 1], keep.weights[i])
        assert not torch.equal(keep.policies[i - 1][:-1], keep.policies[i][:-1])
    assert any(not torch.equal(keep.weights[-1][name], p) for name, p in keep.weights[0].items())
    assert all(state.isfinite().all() for state in keep.policies)


@pytest.mark.usefixtures('_amp_on_the_cpu')
@pytest.mark.parametrize('estimator', ['straight_through', 'relax'])
@pytest.mark.parametrize(
    ('dtype', 'scale'),
    [
        pytest.param('bfloat16', 1.0, id='cpu-bf16'),
        pytest.param('bfloat16', 1.0, id='cuda-bf16', marks=pytest.mark.cuda),
        pytest.param('float16', 512.0, id='cuda-fp16', marks=pytest.mark.cuda),
    ],
)
def test_mixed_precision_trains_as_fp32(data, tmp_path, dtype, scale, estimator):
    """Six iterations. bf16 has 8 bits, so that a product is off by 4e-3 and areas may move by a cell.

    Adam makes the policy's step as long as its learning rate whatever the gradient's length: half a step apart would
    be 0.05, and a gradient that has lost its sign two steps.
    """
    amp = {'type': 'AmpOptimWrapper', 'dtype': dtype, 'loss_scale': scale}
    short = {'train_cfg.max_epochs': 2, 'model.refine.estimator': estimator}
    hooks = [dict(SEARCH, search_iters=6)]
    exact = run(data, tmp_path / 'exact', hooks=hooks, **short)
    half = run(data, tmp_path / 'half', hooks=hooks, **short, **{f'optim_wrapper.{k}': v for k, v in amp.items()})
    assert half['losses'] != exact['losses']
    losses, weights, policy = distance(half, exact)
    assert losses < 0.1
    assert weights < 0.02
    assert policy < 0.01
    assert all(p.dtype == torch.float32 for p in half['weights'].values())


# ---- averaged weights -----------------------------------------------------------------------------------------------


class Evaluated(Hook):
    """A weight while the model is validated, and after it; the hook goes after EMAHook, which swaps."""

    priority = 'LOWEST'
    name = 'student.head.fc.weight'

    def before_val_epoch(self, runner):
        self.averaged = runner.model.get_parameter(self.name).clone()
        self.teacher = copy.deepcopy(runner.model.teacher.state_dict())

    def after_val_epoch(self, runner, metrics=None):
        self.trained = runner.model.get_parameter(self.name).clone()


@pytest.mark.parametrize('kwargs', [dict(), dict(update_buffers=True), dict(begin_epoch=3)], ids=str)
def test_ema_averages_student_and_parts(data, tmp_path, kwargs):
    """Against the recursion by hand, in validation and in the checkpoint; the policy is as it is, and not averaged."""
    cfg = additive(config(data, tmp_path, 4, hooks=[SEARCH, dict(type='EMAHook', momentum=0.1, **kwargs)]))
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    keep, evaluated = Keep(), Evaluated()
    runner.register_hook(keep)
    runner.register_hook(evaluated)
    teacher = copy.deepcopy(runner.model.teacher.state_dict())
    runner.train()
    checkpoint = torch.load(tmp_path / 'epoch_4.pth', map_location='cpu', weights_only=False)

    begin = 3 * (kwargs.get('begin_epoch', 1) - 1)
    average = keep.weights[begin]
    for weights in keep.weights[begin + 1 :]:
        average = {name: 0.9 * value + 0.1 * weights[name] for name, value in average.items()}
    torch.testing.assert_close({name: checkpoint['state_dict'][name] for name in average}, average)
    torch.testing.assert_close(evaluated.averaged, average[evaluated.name])
    assert (average[evaluated.name] - keep.weights[-1][evaluated.name]).abs().max() > 1e-4
    assert torch.equal(evaluated.trained, keep.weights[-1][evaluated.name])
    assert_the_same(dict(runner.model.named_parameters()), keep.weights[-1])

    assert {name.split('.')[0] for name in checkpoint['state_dict']} == {'student', 'terms', 'areas', 'refine'}
    assert not [name for name in checkpoint['ema_state_dict'] if 'teacher' in name]
    (ema,) = [hook.ema_model for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    assert ema.module.teacher is runner.model.teacher
    assert_the_same(runner.model.teacher.state_dict(), teacher)
    assert_the_same(evaluated.teacher, teacher)

    key = 'refine.necks.shared.policy._extra_state'
    assert torch.equal(checkpoint['state_dict'][key], keep.policies[-1])
    assert torch.equal(checkpoint['ema_state_dict'][f'module.{key}'], keep.policies[-1])


def test_a_run_with_ema_resumes_exactly(data, tmp_path):
    hooks = [SEARCH, dict(type='EMAHook', momentum=0.1)]
    runner_of(data, tmp_path / 'whole', hooks=hooks).train()
    half = str(tmp_path / 'whole' / 'epoch_2.pth')
    runner_of(data, tmp_path / 'cut', hooks=hooks, resume=True, load_from=half).train()
    whole, cut = (torch.load(tmp_path / name / 'epoch_4.pth', weights_only=False) for name in ('whole', 'cut'))
    for key in ('state_dict', 'ema_state_dict'):
        assert_the_same(whole[key], cut[key])


# ---- SyncBN ---------------------------------------------------------------------------------------------------------


def batch_norms(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}


def test_sync_bn_reaches_student_and_parts():
    """What ``cfg.sync_bn`` makes of a distiller. In one process a SyncBatchNorm computes what a BatchNorm does."""
    model = distiller(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer3'))).train()
    other = convert_sync_batchnorm(copy.deepcopy(model), 'torch')
    syncing = {name for name, module in other.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    assert syncing == batch_norms(model)
    assert {name.split('.')[0] for name in syncing} == {'student', 'terms'}
    assert other.teacher is model.teacher
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in other.teacher.modules())
    assert other.state_dict().keys() == model.state_dict().keys()
    losses = losses_of(model), losses_of(other)
    assert_the_same(*({name: x for name, x in both.items() if name.startswith(('distill', 'sokd'))} for both in losses))


def test_a_config_with_sync_bn_trains_in_one_process():
    """MMEngine puts BatchNorm back; a teacher's may stay, in eval mode it asks nobody."""
    norm = dict(type='SyncBN', requires_grad=True)
    student, teacher = retinanet(16), retinanet(24)
    for side in (student, teacher):
        side['backbone']['norm_cfg'] = norm
    adapter = dict(type='mmsokd.SoKDAdapter', norm_cfg=norm)
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck', adapter=adapter))
    model = revert_sync_batchnorm(distiller(student=student, teacher=teacher, terms=terms)).train()
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.teacher.modules())
    assert step(model, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)))['loss'].isfinite()


# ---- activation checkpointing ---------------------------------------------------------------------------------------


class Count(Hook):
    """How often a layer of the student runs; more than once a step where it is computed again."""

    def before_train(self, runner):
        self.runs = 0
        runner.model.student.backbone.layer2[0].conv1.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.runs += 1


@pytest.mark.parametrize(
    'more',
    [
        {'model.student.backbone.with_cp': True},
        {'activation_checkpointing': ['student.backbone.layer2', 'student.backbone.layer3']},
        {'activation_checkpointing': ['backbone.layer2']},  # as the student's own config has it
    ],
    ids=str,
)
def test_checkpointed_activations_train_as_kept_ones(data, plain, tmp_path, more):
    """A tap hears each step's one forward, and not what the backward computes again."""
    count = Count()
    runner = runner_of(data, tmp_path, **more)
    runner.register_hook(count)
    runner.train()
    assert count.runs == 2 * 12
    assert max(distance(records(tmp_path, ranks=1)[0], plain)) < 1e-6


def test_checkpointing_updates_batch_statistics_twice():
    """PyTorch's doing, and known; the losses and gradients are those of one forward."""
    student = retinanet(16)
    student['backbone']['with_cp'] = True
    kept = distiller().train()
    twice = distiller(student=student, teacher=kept.teacher).train()
    twice.load_state_dict(kept.state_dict())
    for model in (kept, twice):
        model.parse_losses(losses_of(model))[0].backward()
    one, other = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (kept, twice))
    assert (other - one).norm() < 1e-5 * one.norm()  # float32 sums in another order
    name = 'backbone.layer3.0.bn1.num_batches_tracked'
    assert [int(model.student.state_dict()[name]) for model in (kept, twice)] == [1, 2]


@pytest.mark.parametrize(
    'more', [{'model.student.backbone.with_cp': True}, {'activation_checkpointing': ['backbone.layer2']}], ids=str
)
def test_unrolled_search_refuses_checkpointing(data, tmp_path, more):
    with pytest.raises(ValueError, match=r"PolicySearchHook\.mode: expected 'fused' beside activation checkpointing"):
        run(data, tmp_path, hooks=[dict(SEARCH, mode='unrolled')], **more)


# ---- torch.compile --------------------------------------------------------------------------------------------------


@MODELS.register_module()
class SmallNet(BaseModel):
    """Small enough to be compiled in seconds."""

    def __init__(self, width, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=8), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3)
        )
        self.head = nn.Linear(width, 3)

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        scores = self.head(self.extract_feat(inputs).mean((2, 3)))
        if mode != 'loss':
            return scores
        labels = torch.cat([sample.gt_label for sample in data_samples]).to(scores.device)
        return dict(loss_cls=nn.functional.cross_entropy(scores, labels))


GRAPHS = []


@torch._dynamo.register_backend
def counting(graph, inputs):
    GRAPHS.append(graph)
    return graph.forward


def convolves(graph):
    """By a submodule, or by a function, as PyTorch has it since 2.5."""
    functions = (str(node.target) for node in graph.graph.nodes if node.op == 'call_function')
    return any(isinstance(module, nn.Conv2d) for module in graph.modules()) or any('conv2d' in f for f in functions)


@pytest.mark.parametrize(
    'backend',
    [
        'counting',
        pytest.param('inductor', marks=pytest.mark.slow),
        pytest.param('inductor', marks=[pytest.mark.slow, pytest.mark.cuda], id='cuda'),
    ],
)
def test_compiled_networks_train_as_they_are(data, tmp_path, backend):
    """With SGD's momentum, whose step PyTorch 2.1 does not compile; the fused kernels of inductor round elsewhere."""
    torch._dynamo.reset()
    GRAPHS.clear()
    seen, found = [], []
    for compiled in (False, dict(backend=backend)):
        cfg = config(data, tmp_path / str(bool(compiled)), 4, hooks=[SEARCH, dict(type='mmsokd.GuardHook')])
        cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None, log_level='ERROR', compile=compiled)
        preprocessor = cfg.model.student.data_preprocessor
        cfg.model.student = dict(type='SmallNet', width=8, data_preprocessor=preprocessor)
        cfg.model.teacher = dict(type='SmallNet', width=16)
        runner = Runner.from_cfg(cfg)

        class Watch(Hook):
            def after_train_iter(self, runner, **_):
                seen.append(len(GRAPHS))

        runner.register_hook(Watch())
        runner.train()
        found += records(tmp_path / str(bool(compiled)), ranks=1)
    plain, other = found
    assert (plain['policy']['magnitude'] - 0.5).abs().max() > 0.1
    if backend == 'counting':
        assert sum(map(convolves, GRAPHS)) == 2  # the networks; PyTorch 2.11 compiles the optimizer's step too
        assert seen[:12] == [0] * 12
        assert seen[13:] == [seen[13]] * 11
    assert max(distance(other, plain)) < (1e-6 if backend == 'counting' else 1e-4)
