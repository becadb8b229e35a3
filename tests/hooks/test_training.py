"""Whole trainings through MMEngine's Runner, on tiny models and pictures made here."""

import copy
import json
import sys
import uuid
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmsokd.export import export_student, load_student
from mmsokd.hooks import DAMHook, PolicySearchHook, common, dam
from mmsokd.registry import MODELS
from mmsokd.visualization import draw_areas
from tests import builders_training as small
from tests.builders import distiller, raw_batch, raw_seg_batch, retinanet, segmentor, step
from tests.two_ranks import assert_same, on_two_ranks

CLASSES = ('a', 'b', 'c')


def make_pictures(folder: Path, count: int = 8, size: int = 64) -> str:
    """Bright rectangles on noise, in COCO's format."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / 'img').mkdir(parents=True)
    for i in range(count):
        picture = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
        for _ in range(2):
            x, y = rng.integers(0, size // 2, 2).tolist()
            w, h = rng.integers(12, size // 2, 2).tolist()
            label = int(rng.integers(3))
            picture[y : y + h, x : x + w, label] = 255
            box = dict(bbox=[x, y, w, h], area=w * h, iscrowd=0)
            annotations.append(dict(id=len(annotations) + 1, image_id=i, category_id=label + 1, **box))
        cv2.imwrite(str(folder / 'img' / f'{i}.png'), picture)
        images.append(dict(id=i, file_name=f'{i}.png', width=size, height=size))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    dump(dict(images=images, annotations=annotations, categories=categories), folder / 'ann.json')
    return str(folder)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('data') / 'pictures')


def config(data, work_dir, model=None, epochs=2, hooks=(), **kwargs):
    dataset = dict(
        type='CocoDataset',
        data_root=data,
        ann_file='ann.json',
        data_prefix=dict(img='img/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
    )
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    resize = dict(type='Resize', scale=(64, 64))
    test_pipeline = [*dataset['pipeline'][:2], resize, dict(type='PackDetInputs', meta_keys=meta_keys)]
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
    val = dict(
        loader,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(dataset, pipeline=test_pipeline, test_mode=True),
    )
    sokd = dict(
        type='mmsokd.SoKDDistiller',
        student=retinanet(16),
        teacher=retinanet(24),
        terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='neck')),
        probe_size=128,
    )
    evaluator = dict(type='CocoMetric', ann_file=f'{data}/ann.json', metric='bbox')
    cfg = dict(
        default_scope='mmdet',
        custom_imports=dict(imports=['mmsokd'], allow_failed_imports=False),
        model=sokd if model is None else model,
        train_dataloader=loader,
        val_dataloader=val,
        test_dataloader=val,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=10)),
        custom_hooks=list(hooks),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1)
        ),
        randomness=dict(seed=1),
        work_dir=str(work_dir),
        log_level='WARNING',
    )
    cfg.update(kwargs)
    return Config(copy.deepcopy(cfg))


SOKD_HOOKS = [dict(type='mmsokd.GuardHook'), dict(type='mmsokd.PolicySearchHook', search_iters=2, weight_decay=0.0)]


def train(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def policy_of(model):
    return model.refine.necks['shared'].policy


def test_policy_is_searched_then_frozen_and_still_sampled(data, tmp_path):
    seen = []

    def chi(runner):
        policy = policy_of(runner.model)
        return torch.cat(
            [policy.alpha.flatten(), policy.beta.flatten(), policy.magnitude.flatten()]
        ).clone(), policy.draws

    runner = Runner.from_cfg(config(data, tmp_path, hooks=SOKD_HOOKS, epochs=4))

    class Watch(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, **_):
            seen.append(chi(runner))

    runner.register_hook(Watch())
    runner.train()
    moved = [not torch.equal(a[0], b[0]) for a, b in pairwise(seen)]
    assert len(seen) == 8
    assert moved == [True, False, False, False, False, False, False]  # bit-identical after the second iteration
    assert [draws for _, draws in seen] == list(range(seen[0][1], seen[0][1] + 8))


def policy_lines(folder):
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob('*/vis_data/policy.json'))
    ]


def test_the_policys_evolution_is_kept(data, tmp_path):
    """One line at the start, one an iteration of the search, which is shorter than a hundred, and none after it."""
    hooks = [SOKD_HOOKS[0], dict(SOKD_HOOKS[1], search_iters=3, lr=0.05)]
    runner = Runner.from_cfg(config(data, tmp_path, hooks=hooks, epochs=3))
    seen = []

    class Watch(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, **_):
            policy = policy_of(runner.model)
            seen.append((policy.alpha.softmax(0).tolist(), policy.expected_ops()))

    runner.register_hook(Watch())
    runner.train()
    (lines,) = policy_lines(tmp_path)
    assert [line['iter'] for line in lines] == [0, 1, 2, 3]
    assert lines[0]['shared']['sub_policies'] == pytest.approx([1 / 36] * 36, abs=1e-5)
    for line, (chances, ops) in zip(lines[1:], seen, strict=False):
        state = line['shared']
        assert state['sub_policies'] == pytest.approx(chances, abs=1e-5)
        assert list(state['fires']) == list(ops)
        for op, (rate, level) in ops.items():
            assert (state['fires'][op], state['magnitude'][op]) == pytest.approx((rate, level), abs=1e-5)
    assert lines[1]['shared']['fires'] != lines[3]['shared']['fires']
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    assert 'fires' not in log.read_text()  # nor the console, which has what scalars.json has


def test_a_long_search_is_kept_in_a_hundred_lines(tmp_path):
    hook = PolicySearchHook()
    runner = Recorder(distiller())
    runner.optim_wrapper = runner.logger
    runner.log_dir, runner.info = tmp_path / '20260101_000000', lambda _: None
    hook.before_run(runner)
    hook._end = 1010
    for runner.iter in range(1100):
        hook.after_train_iter(runner, 0)
    (lines,) = policy_lines(tmp_path)
    assert len(lines) == 92  # every eleventh, and the last
    assert lines[-1]['iter'] == 1010


@pytest.mark.parametrize(('lr', 'count'), [(3e-4, 1), (0.2, 0)])
def test_a_search_that_ends_where_it_began_is_told(data, tmp_path, monkeypatch, lr, count):
    runner = Runner.from_cfg(config(data, tmp_path, hooks=[*SOKD_HOOKS[:-1], dict(SOKD_HOOKS[-1], lr=lr)], epochs=1))
    told = []
    monkeypatch.setattr(runner.logger, 'warning', told.append)
    runner.train()
    assert sum('ends where it began' in text and str(lr) in text for text in told) == count


@pytest.mark.parametrize('hooks', [SOKD_HOOKS, [dict(type='mmsokd.PolicySearchHook', mode='unrolled', search_iters=3)]])
def test_a_killed_run_resumes_exactly(data, tmp_path, hooks):
    hooks = [*hooks[:-1], dict(hooks[-1], search_iters=6)]
    whole = train(config(data, tmp_path / 'whole', hooks=hooks, epochs=4))
    first = config(data, tmp_path / 'cut', hooks=hooks, epochs=4)
    runner = Runner.from_cfg(first)

    class Kill(Hook):
        priority = 'LOWEST'

        def before_train_epoch(self, runner):
            if runner.epoch == 2:
                raise KeyboardInterrupt

    runner.register_hook(Kill())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    second = train(config(data, tmp_path / 'cut', hooks=hooks, epochs=4, resume=True))
    a, b = whole.model.state_dict(), second.model.state_dict()
    assert a.keys() == b.keys()
    wrong = [name for name in a if not torch.equal(a[name], b[name])]
    assert not wrong


def test_a_record_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(common, 'print_log', lambda text, *_: told.append(text))
    (tmp_path / 'vis_data').write_text('in the way')
    common.record_policy(SimpleNamespace(log_dir=tmp_path), 3, dict(shared=dict(fires=dict(Rotate=0.1))))
    assert len(told) == 1
    assert str(tmp_path / 'vis_data') in told[0]


def test_unrolled_search_moves_the_policy_and_leaves_no_trace(data, tmp_path):
    hook = dict(type='mmsokd.PolicySearchHook', mode='unrolled', search_iters=2, weight_decay=0.0)
    runner = train(config(data, tmp_path, hooks=[hook], epochs=1))
    policy = policy_of(runner.model)
    assert policy.magnitude.sub(0.5).abs().max() > 0
    assert not runner.model.refine.necks['shared'].is_exposed


@pytest.mark.parametrize(
    'refine',
    [
        dict(estimator='relax'),
        dict(magnitude_grad='pathwise'),
        dict(per_sample=True),
        dict(per_term=True),
        dict(at='backbone.layer3'),
    ],
)
def test_every_way_to_search(data, tmp_path, refine):
    cfg = config(
        data, tmp_path, hooks=[dict(type='mmsokd.PolicySearchHook', search_iters=2, weight_decay=0.0)], epochs=1
    )
    cfg.model.refine = dict(type='mmsokd.FeatureAugmentationNeck', **refine)
    runner = train(cfg)
    (neck, *_) = runner.model.refine.necks.values()
    assert any(not torch.equal(p, p.new_full((), 0.5).expand_as(p)) for p in (neck.policy.beta, neck.policy.magnitude))


class Bf16Wrapper(OptimWrapper):
    """AmpOptimWrapper has no CPU mode; this is what it does to the forward."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def test_unrolled_passes_see_the_virtual_step_under_autocast(data, tmp_path):
    """Autocast caches half-precision weights; a stale copy would hide the virtual step from the passes."""
    totals = {}
    for cls in (OptimWrapper, Bf16Wrapper):
        runner = Runner.from_cfg(config(data, tmp_path / cls.__name__, epochs=1))
        runner.optim_wrapper = cls(torch.optim.SGD(runner.model.parameters(), lr=0.01))
        hook = PolicySearchHook(mode='unrolled', virtual_lr=0.05)
        hook.before_run(runner)
        parse, seen = runner.model.parse_losses, totals.setdefault(cls.__name__, [])

        def listen(losses, parse=parse, seen=seen):
            total, log = parse(losses)
            seen.append(float(total))
            return total, log

        runner.model.parse_losses = listen
        hook._unrolled(runner, raw_batch(4, seed=3))
    exact, half = totals['OptimWrapper'], totals['Bf16Wrapper']
    assert len(exact) == len(half) == 4
    assert abs(exact[1] - exact[0]) > 0.05 * exact[0]
    torch.testing.assert_close(half, exact, rtol=0.03, atol=0)


def test_unrolled_search_scales_its_loss_and_skips_overflows(data, tmp_path, monkeypatch):
    told, gradients = [], {}
    monkeypatch.setattr('mmsokd.hooks.policy_search.print_log', lambda text, *_: told.append(text))
    for scale in (1.0, 2.0**16, 1e38):
        runner = Runner.from_cfg(config(data, tmp_path, epochs=1))
        runner.optim_wrapper = OptimWrapper(torch.optim.SGD(runner.model.parameters(), lr=0.01))
        runner.optim_wrapper.loss_scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)  # as AmpOptimWrapper's
        hook = PolicySearchHook(mode='unrolled', lr=0.1)
        hook.before_run(runner)
        gradients[scale] = hook._unrolled(runner, raw_batch(4, seed=3))['shared']
        before = copy.deepcopy(policy_of(runner.model).tensors())
        for _ in range(2):
            hook._necks['shared'].push_gradient(gradients[scale])
            hook._step()
        moved = any(not torch.equal(value, before[name]) for name, value in policy_of(runner.model).tensors().items())
        assert moved == (scale < 1e38)
        assert bool(hook._optimizers['shared'].state) == moved
    torch.testing.assert_close(gradients[2.0**16], gradients[1.0], rtol=1e-3, atol=1e-6)
    assert len(told) == 1
    assert 'a step of the search is left out' in told[0]


def test_decay_leaves_what_is_not_drawn_where_it_started(data, tmp_path):
    runner = Recorder(distiller())
    hook = PolicySearchHook(lr=0.1)
    hook.before_run(runner)
    neck = runner.model.refine.necks['shared']
    neck.policy.magnitude[0, 0] = 0.9
    zero = {name: torch.zeros_like(p) for name, p in neck.search_parameters().items()}
    for _ in range(5):
        neck.push_gradient(zero)
        hook._step()
    assert neck.policy.magnitude[0, 0] < 0.9
    assert neck.policy.magnitude[1:].eq(0.5).all()


def test_search_longer_than_the_schedule(data, tmp_path):
    hook = dict(type='mmsokd.PolicySearchHook', search_epochs=3)
    with pytest.raises(
        ValueError, match=r'search_epochs=3: expected a search within the schedule of 4 iterations \(2 epochs\)'
    ):
        train(config(data, tmp_path, hooks=[hook]))


def test_search_defaults_to_a_twelfth(data, tmp_path):
    runner = train(config(data, tmp_path, hooks=[dict(type='mmsokd.PolicySearchHook')], epochs=2))
    (hook,) = [h for h in runner.hooks if type(h).__name__ == 'PolicySearchHook']
    assert hook._end == 1


def without_annotations(tmp_path):
    empty = make_pictures(tmp_path / 'pictures')
    from mmengine.fileio import load

    ann = load(f'{empty}/ann.json')
    dump(dict(ann, annotations=[]), f'{empty}/ann.json')
    cfg = config(empty, tmp_path / 'run', hooks=[dict(type='mmsokd.GuardHook')])
    return cfg


def test_no_annotations(tmp_path):
    with pytest.raises(ValueError, match='expected annotations, found 8 pictures without any'):
        train(without_annotations(tmp_path))


def test_no_annotations_left_by_the_filter(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'tools'))
    import _cli

    cfg = without_annotations(tmp_path)
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    with pytest.raises(SystemExit, match=r"expected annotated pictures, found none in ann_file='ann\.json'"):
        _cli.train(cfg)


def test_nan_leaves_the_last_good_checkpoint(data, tmp_path):
    runner = Runner.from_cfg(config(data, tmp_path, hooks=SOKD_HOOKS, epochs=3))

    class Poison(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                with torch.no_grad():
                    runner.model.teacher.neck.fpn_convs[0].conv.bias.fill_(float('nan'))

    runner.register_hook(Poison())
    with pytest.raises(FloatingPointError, match=r'distill\.loss_hint'):
        runner.train()
    last = Path((tmp_path / 'last_checkpoint').read_text())
    assert last.name == 'epoch_1.pth'
    state = torch.load(last, map_location='cpu', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize('by_epoch', [True, False])
def test_poisoned_weights_are_not_saved(data, tmp_path, by_epoch):
    # One file is kept: the last good one must not be pushed out by a bad one that then is not written.
    checkpoint = dict(type='CheckpointHook', interval=1 if by_epoch else 2, by_epoch=by_epoch, max_keep_ckpts=1)
    cfg = config(data, tmp_path, hooks=SOKD_HOOKS, epochs=2, default_hooks=dict(checkpoint=checkpoint))
    runner = Runner.from_cfg(cfg)

    class Poison(Hook):
        priority = 'HIGHEST'

        def after_train_iter(self, runner, **_):
            if runner.iter == 3:  # the last of the second epoch: no later step would notice
                with torch.no_grad():
                    runner.model.student.bbox_head.retina_cls.weight[0] = float('inf')

    runner.register_hook(Poison())
    with pytest.raises(FloatingPointError, match=r'student\.bbox_head\.retina_cls\.weight'):
        runner.train()
    last = Path((tmp_path / 'last_checkpoint').read_text())
    assert last.name == ('epoch_1.pth' if by_epoch else 'iter_2.pth')
    assert last.is_file()


def test_exported_student_scores_the_same_in_the_plain_config(data, tmp_path):
    hooks = [*SOKD_HOOKS, dict(type='mmsokd.StudentCheckpointHook')]
    checkpoint = dict(type='CheckpointHook', interval=1, save_best='coco/bbox_mAP', rule='greater', max_keep_ckpts=1)
    cfg = config(data, tmp_path / 'run', hooks=hooks, epochs=2, default_hooks=dict(checkpoint=checkpoint))
    cfg.val_evaluator.metric = 'proposal'  # an untrained student has no AP, but it does recall something
    cfg.test_evaluator.metric = 'proposal'
    cfg.default_hooks.checkpoint.save_best = 'coco/AR@1000'
    runner = train(cfg)
    (tmp_path / 'run' / 'student_mine.pth').write_bytes(b'somebody else')
    runner.call_hook('after_val_epoch', metrics={})
    assert (tmp_path / 'run' / 'student_mine.pth').is_file()
    (tmp_path / 'run' / 'student_mine.pth').unlink()
    best = [p for p in (tmp_path / 'run').glob('best_*.pth')]
    students = sorted(p.name for p in (tmp_path / 'run').glob('student_*.pth'))
    assert len(best) == 1
    assert students == sorted([f'student_{best[0].name}', 'student_epoch_2.pth'])
    exported = tmp_path / 'run' / f'student_{best[0].name}'
    score = torch.load(best[0], weights_only=False)['message_hub']['runtime_info'].get('best_score')
    assert score > 0

    plain = config(data, tmp_path / 'plain', model=retinanet(16), load_from=str(exported))
    plain.test_evaluator.metric = 'proposal'
    MODELS.build(retinanet(16)).load_state_dict(torch.load(exported, weights_only=False)['state_dict'], strict=True)
    again = Runner.from_cfg(plain).test()['coco/AR@1000']
    assert again == pytest.approx(score, abs=1e-9)
    assert runner.epoch == 2


def test_checkpoint_holds_no_teacher_and_the_wrong_config_is_told(data, tmp_path):
    train(config(data, tmp_path, hooks=SOKD_HOOKS, epochs=1))
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert {name.split('.')[0] for name in checkpoint['state_dict']} == {'student', 'terms', 'areas', 'refine'}
    assert {'policy_search', 'optimizer'} <= set(checkpoint)
    exported = export_student(checkpoint)
    torch.save(exported, tmp_path / 'student.pth')
    load_student(MODELS.build(retinanet(16)), tmp_path / 'student.pth')
    with pytest.raises(ValueError, match=r'checkpoint: expected weights of RetinaNet, found that \d+ of \d+ keys'):
        load_student(MODELS.build(retinanet(20)), tmp_path / 'student.pth')
    with pytest.raises(ValueError, match="expected a distiller's"):
        export_student(exported)


def test_ema_holds_no_teacher(data, tmp_path):
    hooks = [*SOKD_HOOKS, dict(type='EMAHook', momentum=0.1)]
    train(config(data, tmp_path, hooks=hooks, epochs=1))
    names = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['ema_state_dict']
    roots = {name.removeprefix('module.').split('.')[0] for name in names if name != 'steps'}
    assert roots == {'student', 'terms', 'areas', 'refine'}


def test_sokds_hooks_rest_beside_a_host_alone(data, tmp_path):
    """The configs of a host alone and with SoKD share them."""
    shared = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/sokd.py').custom_hooks
    trained = []
    for name, hooks in {'with': shared, 'without': []}.items():
        cfg = config(data, tmp_path / name, hooks=hooks, epochs=1)
        cfg.model.type = 'mmsokd.Distiller'
        trained.append(train(cfg).model)
    assert trained[0].refine is trained[0].areas is None
    states = [model.state_dict() for model in trained]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert (tmp_path / 'with/student_epoch_1.pth').is_file()


def test_areas_are_drawn_by_every_backend(data, tmp_path):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    hooks = [*SOKD_HOOKS, dict(type='mmsokd.DAMHook', num_images=2)]
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    visualizer = dict(type='DetLocalVisualizer', vis_backends=backends, name=uuid.uuid4().hex)
    train(config(data, tmp_path, hooks=hooks, epochs=2, visualizer=visualizer))
    pictures = sorted(tmp_path.glob('*/vis_data/vis_image/*.png'))
    assert [p.name for p in pictures] == [f'areas_loss_hint_{i}_{n}.png' for i in (0, 1) for n in (2, 4)]
    picture = cv2.imread(str(pictures[-1]))
    assert picture.shape[1] > 2 * picture.shape[0] > 500
    assert picture.std() > 10
    (log,) = tmp_path.glob('*/vis_data/events.out.tfevents.*')
    events = event_accumulator.EventAccumulator(str(log), size_guidance=dict(images=0)).Reload()
    assert events.Tags()['images'] == ['areas_loss_hint_0', 'areas_loss_hint_1']
    seen = events.Images('areas_loss_hint_1')
    assert [event.step for event in seen] == [2, 4]
    shown = cv2.imdecode(np.frombuffer(seen[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown, picture)


class Wandb(ModuleType):
    """What MMEngine's backend asks of the package, which is not installed for the tests: pictures, and what is logged.

    Holds that the backend is fed, not that a server takes it.
    """

    def __init__(self):
        super().__init__('wandb')
        self.logged = []
        self.run = SimpleNamespace(log_code=lambda **_: None, dir='.')
        self.config = SimpleNamespace(update=lambda *args, **_: None)

    def init(self, **kwargs):
        return self.run

    def Image(self, picture):  # noqa: N802 (its name there)
        return picture

    def log(self, values, **_):
        self.logged.append(values)

    def join(self):
        """Waits for nothing."""


def test_areas_are_drawn_by_wandbs_backend(data, tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    hooks = [*SOKD_HOOKS, dict(type='mmsokd.DAMHook', num_images=1)]
    backends = [dict(type='LocalVisBackend'), dict(type='WandbVisBackend', init_kwargs=dict(project='p'))]
    visualizer = dict(type='DetLocalVisualizer', vis_backends=backends, name=uuid.uuid4().hex)
    train(config(data, tmp_path, hooks=hooks, epochs=1, visualizer=visualizer))
    (shown,) = [values['areas_loss_hint_0'] for values in wandb.logged if 'areas_loss_hint_0' in values]
    (file,) = tmp_path.glob('*/vis_data/vis_image/*.png')
    np.testing.assert_array_equal(shown[..., ::-1], cv2.imread(str(file)))
    assert any('distill.loss_hint' in values for values in wandb.logged)


def draw_on_a_rank(rank, folder):
    """A short training that draws after each step: how often this rank did, and that both are still one."""
    drawn = []

    def draw(*args):
        drawn.append(args)
        return draw_areas(*args)

    dam.draw_areas = draw
    model = small.sokd(terms=dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap='backbone.layer2')))
    hooks = [dict(type='mmsokd.DAMHook', draw_interval=1, num_images=1)]

    def on_cpus(cfg, **kwargs):
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
        return Runner(cfg=cfg, **kwargs)

    options = dict(launcher='pytorch', validates=False, kind=on_cpus)
    run = small.runner(folder / 'work', model=model, epochs=1, hooks=hooks, **options)
    run.train()
    assert is_model_wrapper(run.model)
    assert_same(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    (folder / f'drawn_{rank}').write_text(str(len(drawn)))


@pytest.mark.slow
def test_of_two_processes_the_first_draws(tmp_path):
    on_two_ranks(draw_on_a_rank, tmp_path)
    assert [(tmp_path / f'drawn_{rank}').read_text() for rank in (0, 1)] == ['2', '0']  # two steps of six pictures each
    assert len(list(tmp_path.glob('work/*/vis_data/vis_image/areas_loss_hint_0_*.png'))) == 2


def test_areas_of_unequal_crops_are_drawn_without_padding(tmp_path):
    model = distiller(
        student=segmentor(8),
        teacher=segmentor(12, channels=20),
        terms=dict(loss_cwd=dict(type='mmsokd.CWDLoss', tap='backbone.layer4')),
    ).train()
    model.data_preprocessor.size, model.data_preprocessor.size_divisor = None, 32
    small, large = raw_seg_batch(1, 64), raw_seg_batch(1, 96)
    batch = {key: small[key] + large[key] for key in small}
    step(model, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)), batch)
    augments = model.data_preprocessor.batch_augments = [lambda *_: pytest.fail('pictures are mixed')]
    runner = Recorder(model)
    drawn = []
    given = []
    draw = dam.draw_areas
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dam, 'draw_areas', lambda *args: given.append(args) or draw(*args))
        runner.visualizer = SimpleNamespace(add_image=lambda *args: drawn.append(args))
        DAMHook(draw_interval=1).after_train_iter(runner, 0, batch)
    assert model.data_preprocessor.batch_augments is augments
    ((pictures, levels, strides, title),) = given
    for picture, raw in zip(pictures, batch['inputs'], strict=True):
        np.testing.assert_array_equal(picture, raw.permute(1, 2, 0).numpy()[..., ::-1])
    assert strides == [8]
    assert levels[0].student.shape[-2:] == (12, 12)  # both are padded to 96 pixels
    assert title == 'loss_cwd, iteration 1'
    assert [(name, number) for name, _, number in drawn] == [('areas_loss_cwd_0', 1), ('areas_loss_cwd_1', 1)]


def test_nothing_is_drawn_between_intervals(monkeypatch):
    runner, hook = Recorder(distiller()), DAMHook(draw_interval=3, log_interval=0)
    calls = []
    monkeypatch.setattr(hook, '_draw', lambda runner, *_: calls.append(runner.iter))
    for runner.iter in range(7):
        hook.after_train_iter(runner, 0, raw_batch(), outputs=None)
    assert calls == [2, 5]
    monkeypatch.setattr(dam, 'is_main_process', lambda: False)
    runner.iter = 8
    hook.after_train_iter(runner, 0, raw_batch(), outputs=None)
    assert calls == [2, 5]


class Recorder:
    """A stand-in for a runner: DAMHook and PolicySearchHook read an iteration, a model and a logger off it."""

    def __init__(self, model):
        self.model, self.iter, self.lines = model, 0, []
        self.train_dataloader = SimpleNamespace(dataset=[])
        self.logger = self

    def warning(self, text):
        self.lines.append(text)

    def log(self, _, text):
        self.lines.append(text)


def test_collapse_is_told_once():
    runner, hook = Recorder(distiller()), DAMHook(num_images=0, log_interval=1)
    for _ in range(2):
        hook.after_train_iter(
            runner, 0, outputs={'sokd.heat_std': torch.tensor(1e-6), 'sokd.mask_cover': torch.tensor(0.99)}
        )
    assert [line.split(' ')[0] for line in runner.lines] == ['sokd.heat_std', 'sokd.mask_cover']
    fine = Recorder(runner.model)
    DAMHook(num_images=0, log_interval=1).after_train_iter(
        fine, 0, outputs={'sokd.heat_std': torch.tensor(0.1), 'sokd.mask_cover': torch.tensor(0.3)}
    )
    assert fine.lines == []


def test_blank_feature_is_told_once():
    runner = Recorder(distiller())
    hook = PolicySearchHook(log_interval=1)
    hook.before_run(runner)
    for ratio in (1.0, 0.3, 0.2):
        hook.after_train_iter(runner, 0, outputs={'sokd.norm_ratio': torch.tensor(ratio)})
    assert len(runner.lines) == 1
    assert 'sokd.norm_ratio is 0.30' in runner.lines[0]
    assert 'Rotate' in runner.lines[0]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(mode='unroled'), "did you mean 'unrolled'"),
        (dict(search_epochs=1, search_iters=2), 'found both'),
        (dict(search_iters=-1), 'search_iters: expected an integer >= 0, found -1'),
    ],
)
def test_search_options_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PolicySearchHook(**kwargs)
