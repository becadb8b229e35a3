"""What is measured: pairs of networks, with a host alone and with SoKD, as the shipped configs have them."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from _measure import Variant, bytes_of
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmsokd.distillers import Distiller
from mmsokd.distillers.build import build_model
from mmsokd.distillers.rehearsal import blank_samples
from mmsokd.hooks import MetaRefineHook, PolicySearchHook
from mmsokd.taps import FeatureTap, run_for_taps

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FOREVER = 10**9  # iterations
# What a teacher's config says where it is run another way.
PACES: dict[str, Any] = dict(autocast='bfloat16', channels_last=True, compile=True, trim=True)


class Case(NamedTuple):
    """A pair of networks: its configs, below ``configs/``, and its size on a GPU."""

    plain: str
    sokd: str
    side: int
    batch_size: int


def _pair(task: str, name: str, side: int, batch_size: int) -> Case:
    return Case(f'{task}/fitnet/fitnet_{name}.py', f'{task}/sokd/sokd_fitnet_{name}.py', side, batch_size)


CASES = {
    'retinanet': _pair('detection', 'retinanet_r101-r18_fpn_1x_coco', 800, 4),
    'faster-rcnn': _pair('detection', 'faster-rcnn_r101-r50_fpn_1x_coco', 800, 4),
    'pspnet': _pair('segmentation', 'pspnet_r101-r18-d8_4xb2-80k_cityscapes-512x1024', 512, 4),
    'imagenet': _pair('classification', 'resnet34-resnet18_8xb32_in1k', 224, 64),
    'cifar': _pair('classification', 'resnet32x4-resnet8x4_1xb64_cifar100', 32, 64),
}


def add_sizes(parser: Any) -> None:
    """The flags of how large."""
    parser.add_argument('--side', type=int, help="of the pictures, in pixels; the case's own by default")
    parser.add_argument('--batch-size', type=int, help='pictures a step')
    parser.add_argument('--width', type=float, default=1.0, help='of all networks, as a part of their own')
    parser.add_argument('--amp', choices=['bfloat16', 'float16'], help='train under autocast')


def load(path: str | Path, width: float = 1.0) -> Config:
    """A config, without its teachers' checkpoints and with networks of a part of their width.

    Raises:
        SystemExit: there is nothing to train in it.
    """
    cfg = Config.fromfile(path)
    if 'model' not in cfg or 'optim_wrapper' not in cfg:
        raise SystemExit(f'{path}: expected a config to train, with a model and an optim_wrapper, found {[*cfg]}')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for part in [cfg.model.get('teacher'), *cfg.model.get('teachers', {}).values()]:
        if part:
            part.pop('checkpoint', None)
            if width != 1 and isinstance(part.get('cfg'), str):
                part.cfg = teacher_config(part.cfg)
    if width != 1:
        narrow(cfg.model, width)
    return cfg


def teacher_config(source: str) -> Any:
    """The model of a config that a teacher names, with its preprocessor."""
    from mmsokd.distillers.build import load_config

    cfg = load_config('teacher.cfg', source)
    model = cfg.model
    model.setdefault('_scope_', cfg.get('default_scope'))
    if model.get('data_preprocessor') is None and cfg.get('data_preprocessor') is not None:
        model.data_preprocessor = cfg.data_preprocessor
    return model


_WIDTHS = ('in_channels', 'out_channels', 'feat_channels', 'channels', 'conv_out_channels', 'fc_out_channels', 'widths')


def narrow(node: Any, factor: float) -> None:
    """Scale the channels of a model's config in place, to multiples of eight."""

    def scaled(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [scaled(v) for v in value]
        return max(8, round(value * factor / 8) * 8)

    if isinstance(node, list | tuple):
        for part in node:
            narrow(part, factor)
    if not isinstance(node, Mapping):
        return
    if str(node.get('type')).rpartition('.')[2] in ('ResNet', 'ResNetV1c'):
        for key in ('base_channels', 'stem_channels'):
            node[key] = scaled(node.get(key, 64))
    for key, value in node.items():
        if key in _WIDTHS:
            node[key] = scaled(value)
        else:
            narrow(value, factor)


class Training:
    """A model, its optimizer, and batches of random pictures on the device.

    Args:
        model: with MMEngine's ``train_step``.
        cfg: the config's ``optim_wrapper``.
        side: of the pictures, in pixels.
        batch_size: pictures a step.
        amp: dtype of autocast, by name.
        student: whose annotations the pictures have; ``model`` itself by default.
        iters, epochs: how long the training is, of which each step is one iteration. By default there is no end, so
            that every schedule stays at its beginning.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Mapping,
        side: int,
        batch_size: int,
        amp: str | None = None,
        student: nn.Module | None = None,
        iters: int = FOREVER,
        epochs: int = 1,
    ) -> None:
        self.device = torch.device(get_device())
        self.model = model.to(self.device)
        self.model.train()  # MMRazor's gives nothing back
        cfg = copy.deepcopy(dict(cfg))
        cfg['optimizer'] = dict(cfg['optimizer'], lr=1e-6)  # random weights must not run away while they are measured
        if amp:
            cfg.update(dict(type='AmpOptimWrapper', dtype=amp) if self.device.type == 'cuda' else {})
        self.wrapper: OptimWrapper = build_optim_wrapper(self.model, cfg)
        self._amp = getattr(torch, amp) if amp else None
        self._student = student or model
        self._iter, self._iters, self._epochs = 0, iters, epochs
        self.resize(side, batch_size)

    def resize(self, side: int, batch_size: int) -> None:
        """Other pictures.

        Raises:
            SystemExit: nobody knows the annotations of this student.
        """
        samples = blank_samples(self._student, side)
        if samples is None:
            raise SystemExit(f'expected a student of mmdet, mmseg or mmpretrain, found {type(self._student).__name__}')
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, side, side)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)
        samples = [copy.deepcopy(samples[i % len(samples)]).to(self.device) for i in range(batch_size)]
        self._batch = dict(inputs=list(pictures), data_samples=samples)
        for module in self.model.modules():
            if isinstance(module, BaseDataPreprocessor) and getattr(module, 'size', None) is not None:
                module.size = (side, side)  # mmseg's would pad each picture to its config's crop

    def batch(self) -> dict:
        """A copy: mmseg's preprocessor pads in place."""
        return copy.deepcopy(self._batch)

    def step(self, batch: dict) -> dict:
        """Forward, backward, optimizer."""
        self._tick()
        with torch.autocast(self.device.type, self._amp, enabled=self._amp is not None and self.device.type == 'cpu'):
            return self.model.train_step(batch, self.wrapper)

    def _tick(self) -> None:
        """Tell what MMEngine's RuntimeInfoHook tells before an iteration: schedules and draws go by it."""
        hub = MessageHub.get_current_instance()
        epoch = self._iter * self._epochs // self._iters
        now = dict(iter=self._iter, epoch=epoch, max_iters=self._iters, max_epochs=self._epochs)
        for key, value in now.items():
            hub.update_info(key, value)
        self._iter += 1

    def resident(self) -> int:
        """Bytes of weights, teachers and optimizer."""
        teachers = list(getattr(self.model, 'teachers', {}).values())
        optimizer = self.wrapper.optimizer
        return bytes_of(self.model, teachers, list(optimizer.state.values()))

    def variant(self, run: Callable[[dict], Any] | None = None) -> Variant:
        """A step of it, or ``run`` in its place."""
        return Variant(run or self.step, self.batch, self.resident)


def searching_step(training: Training, mode: str | None) -> Callable[[dict], Any]:
    """A step of a distiller with its PolicySearchHook: ``'fused'``, ``'unrolled'``, or None once the search is over."""
    hook = PolicySearchHook(mode=mode or 'fused', search_iters=FOREVER if mode else 0)
    # What the hook reads of a Runner.
    folder = tempfile.TemporaryDirectory()  # it writes down how the policy changes
    runner = SimpleNamespace(
        model=training.model,
        optim_wrapper=training.wrapper,
        iter=0,
        max_iters=FOREVER,
        max_epochs=1,
        cfg={},
        log_dir=folder.name,
        _folder=folder,
    )
    hook.before_run(runner)
    hook.before_train(runner)

    def step(batch: dict) -> dict:
        hook.before_train_iter(runner, 0, batch)
        out = training.step(batch)
        hook.after_train_iter(runner, 0, batch, out)
        return out

    return step


def meta_step(training: Training, hook: MetaRefineHook) -> Callable[[dict], Any]:
    """A step of a distiller with its MetaRefineHook, which has its extra passes every few iterations alone."""
    runner = SimpleNamespace(model=training.model, optim_wrapper=training.wrapper, iter=0, cfg={})
    hook.before_run(runner)
    hook.before_train(runner)

    def step(batch: dict) -> dict:
        hook.before_train_iter(runner, 0, batch)
        runner.iter += 1
        return training.step(batch)

    return step


class Teaching:
    """The teacher of a distiller, run on its own: the floor's second part."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._distiller: Distiller = training.model
        self._guard = next(iter(self._distiller._teachers.values()))

    def inputs(self) -> tuple[Tensor, list]:
        """As the student's preprocessor makes them."""
        data = self._distiller.data_preprocessor(self._training.batch(), True)
        return data['inputs'], data['data_samples']

    def resident(self) -> int:
        """Bytes of weights."""
        return bytes_of(self._guard.module)

    @torch.no_grad()
    def whole(self, data: tuple[Tensor, list]) -> Any:
        """All of the network, with its heads."""
        with self._autocast():
            return self._guard.module(*data, mode='tensor')

    @torch.no_grad()
    def to_the_tap(self, data: tuple[Tensor, list]) -> Any:
        """Up to the deepest tap."""
        taps = self._guard.taps
        with self._autocast(), FeatureTap(self._guard.module, taps, self._guard._probe.calls) as feats:
            run_for_taps(self._guard.module, taps, *data)
        return feats

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._training.device.type, self._training._amp, enabled=self._training._amp is not None)

    def variant(self, name: str) -> Variant:
        """``'whole'`` or ``'to_the_tap'``."""
        return Variant(getattr(self, name), self.inputs, self.resident)


def narrow_plug_ins(model: Any, width: int) -> None:
    """Give SoKD's adapters and area heads ``width`` channels, in place."""
    model.areas = dict(model.get('areas') or dict(type='mmsokd.DistinctiveAreaDetector'), feat_channels=width)
    for term in model.terms.values():
        term.adapter = dict(term.get('adapter') or dict(type='mmsokd.SoKDAdapter'), feat_channels=width)


def build(
    path: str | Path, args: Any, side: int, batch_size: int, pace: Sequence[str] = (), **changes: Any
) -> Training:
    """The distiller of a config, ready to train; ``changes`` go into its model's dict, ``pace`` into its teacher's."""
    cfg = load(CONFIGS / path, args.width)
    cfg.model.update(changes)
    cfg.model.teacher.update({key: PACES[key] for key in pace})
    if getattr(args, 'sokd_width', None) and cfg.model.type.endswith('SoKDDistiller'):
        narrow_plug_ins(cfg.model, args.sokd_width)
    torch.manual_seed(0)
    model = build_model('model', cfg.model, cfg.get('data_preprocessor'))
    return Training(model, cfg.optim_wrapper, side, batch_size, args.amp, model.student)


def student_alone(distiller: Training, path: str | Path, args: Any, side: int, batch_size: int) -> Training:
    """The same student without a teacher, with an optimizer of its own."""
    cfg = load(CONFIGS / path, args.width)
    student = copy.deepcopy(distiller.model.student)
    return Training(student, cfg.optim_wrapper, side, batch_size, args.amp)


def cached(training: Training, dtype: str, batch_size: int) -> Training:
    """``training``, whose teacher's outputs are read from the disk once the first step has written them."""
    training.folder = tempfile.TemporaryDirectory()  # lives as long as it
    training.model.open_caches(Path(training.folder.name), dtype, batch_size)
    return training


def variants(case: Case, args: Any) -> dict[str, Variant]:
    """Everything that ``step.py`` compares, by name."""
    side, batch_size = args.side or case.side, args.batch_size or case.batch_size
    plain, sokd = (build(path, args, side, batch_size) for path in (case.plain, case.sokd))
    student = student_alone(plain, case.plain, args, side, batch_size)
    teaching = Teaching(plain)
    steps = {mode: partial(searching_step, sokd, mode) for mode in ('fused', 'unrolled', None)}
    more = {}
    if args.cached:
        more['plain host, cached'] = cached(
            build(case.plain, args, side, batch_size), args.cached, batch_size
        ).variant()
    return {
        'student alone': student.variant(),
        'teacher, whole': teaching.variant('whole'),
        'teacher, to the tap': teaching.variant('to_the_tap'),
        'plain host': plain.variant(),
        **more,
        **{f'plain host, {key}': build(case.plain, args, side, batch_size, [key]).variant() for key in args.pace},
        'SoKD, searching': sokd.variant(steps['fused']()),
        'SoKD, frozen': sokd.variant(steps[None]()),
        'SoKD, unrolled': sokd.variant(steps['unrolled']()),
    }
