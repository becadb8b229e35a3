"""A distiller's config as text that its user reads and changes; it is built before it is kept."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch.nn import SyncBatchNorm

from mmsokd.distillers.base import Distiller
from mmsokd.recipes.pairing import Plan, TermPlan
from mmsokd.recipes.sides import PROBE_SIZES, Side

# What the arguments of the losses mean, for the comments.
MEANINGS = dict(
    normalized="relative to the mean square of the teacher's feature",
    tau='temperature',
    alpha='weight of the true class',
    beta='weight of the other classes',
    gamma='weight of the correlation within each class',
    activation='each class by itself, as the head predicts them',
    lr='step of the learner whose progress the teacher foresees',
    lambda_mgd="share of the student's cells that are hidden",
    patch_size='side of a patch, in cells',
    distance_weight='of the distances between pictures',
    angle_weight='of the angles between pictures',
    num_samples='pictures of the training set; each has its place in the memory',
    num_classes='of the head; its channels are classes times anchors',
    num_responses='levels of the head: the last so many levels of the tap are its predictions',
    steps="of the flow from the student's feature to the prediction",
    metric='how predictions are compared',
)
# The hooks of configs/_base_/sokd.py, and what each is for. They stand in the config, so that it needs no path of ours.
HOOKS = dict(
    GuardHook='refuses data without annotations, and to write NaNs',
    SeedHook='a run that is resumed is the undisturbed one',
    PolicySearchHook='searches the policy of refine for a twelfth of the training; rests without',
    DAMHook='watches the areas, and draws them; rests without',
    StudentCheckpointHook="the student's weights alone, beside the best and the last checkpoint",
)
# Where they mean something else.
_OTHERS = dict(
    DISTLoss=dict(beta='weight of the correlation between classes'),
    DPDLoss=dict(alpha='how much a prediction on which the teacher is ahead counts'),
)


class Files(NamedTuple):
    """Where a config lies, and what it refers to.

    Attributes:
        out: the config.
        checkpoint: the teacher's, a path or a URL; None for a look without weights.
        trust: read that by pickle.
        copy: of the student's config, where that is in the new style; see :func:`text_copy`.
    """

    out: Path
    checkpoint: str | None
    trust: bool = False
    copy: Path | None = None


def write_text(student: Side, teacher: Side, plan: Plan, files: Files) -> str:
    """The config's text; its paths hold from where it will lie."""
    lines = [*_head(student, teacher, plan), *_bases(student, files), *_model(teacher, plan, files)]
    lines += _rest(student, plan, files)
    return '\n'.join([*lines, ''])


def text_copy(student: Side) -> str:
    """A new-style config as a text, which another can take as its base."""
    title = f"{Path(student.source).name} in MMEngine's text style, whole. Made by mmsokd's tools/distill.py."
    return f'"""{title}"""\n\n{student.cfg.pretty_text}'


def _head(student: Side, teacher: Side, plan: Plan) -> list[str]:
    name = plan.method.host.loss.removesuffix('Loss')
    what = f'SoKD on {name}' if plan.method.sokd else name
    return [
        f'"""{what}: {teacher.name} teaches {student.name}.',
        '',
        f'Teacher: {Path(teacher.source).stem}. Student: {Path(student.source).stem}.',
        '',
        "Made by mmsokd's tools/distill.py, and yours to change. mmsokd's docs/config.md explains every key.",
        '"""',
        '',
    ]


def _bases(student: Side, files: Files) -> list[str]:
    """The student's config, and what is added to its imports and hooks."""
    base = student.source if '::' in student.source else _place(files.copy or student.source, files.out)
    imports = (student.cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    theirs = student.cfg.get('custom_hooks') or []
    there = {hook.get('type') for hook in theirs if isinstance(hook, dict)}
    hooks = {f'mmsokd.{name}': why for name, why in HOOKS.items()}
    return [
        '# Data, schedule and student are those of this config.',
        f'_base_ = {base!r}',
        '',
        f'custom_imports = dict(imports={[*imports, *({"mmsokd"} - {*imports})]}, allow_failed_imports=False)',
        'custom_hooks = [',
        *(['    *_base_.custom_hooks,'] if theirs else []),
        *(f'    dict(type={kind!r}),  # {why}' for kind, why in hooks.items() if kind not in there),
        ']',
        '',
    ]


def _model(teacher: Side, plan: Plan, files: Files) -> list[str]:
    cfg = teacher.source if '::' in teacher.source else _place(teacher.source, files.out, here=True)
    weights = files.checkpoint
    if weights is not None and '://' not in weights:
        weights = _place(weights, files.out, here=True)
    kind = 'SoKDDistiller' if plan.method.sokd else 'Distiller'
    other = "'mmsokd.Distiller': the host alone, without refine and areas" if plan.method.sokd else 'the host alone'
    lines = [
        'model = dict(',
        "    _delete_=True,  # all of this takes the place of the student's model, and is not merged into it",
        f"    type='mmsokd.{kind}',  # {other}",
        '    student=_base_.model,  # as its own config has it; its own losses stay',
        '    # Frozen; in no checkpoint and no optimizer. Paths that begin with fileDirname are seen from this file.',
        '    teacher=dict(',
        f'        cfg={cfg!r},',
        f'        checkpoint={weights!r},',
        *(['        trust_checkpoint=True,  # read by pickle, which runs what the file says'] if files.trust else []),
        '    ),',
        '    # What is compared, one summand of the training loss an entry. Channels and adapters are inferred.',
        '    terms=dict(',
        *(line for term in plan.terms for line in _term(term)),
        '    ),',
    ]
    if plan.refine is not None:
        lines += _plugin(
            'refine', plan.refine, "DAFA: the teacher's feature is drawn towards what the student can follow"
        )
    if plan.areas is not None:
        lines += _plugin('areas', plan.areas, 'DAM: the areas in which features are compared')
    elif plan.method.sokd:
        lines.append('    areas=None,  # DAM: none, since logits have no areas')
    if plan.probe_size != PROBE_SIZES[0]:
        lines.append(f'    probe_size={plan.probe_size},  # side of the picture on which shapes are found')
    return [*lines, ')']


def _plugin(key: str, cfg: Mapping, comment: str) -> list[str]:
    lines = [f'    # {comment}. None switches it off.', f'    {key}={_call(cfg)},']
    if 'at' in cfg:
        lines.insert(1, "    # Logits are compared: the teacher's layer is refined in its place, and they follow.")
    return lines


def _term(term: TermPlan) -> list[str]:
    """One entry of ``terms``."""
    if term.student == term.teacher:
        taps = dict(tap=(term.student, 'what is read, in both networks'))
    else:
        taps = dict(
            student_tap=(term.student, 'what is read'), teacher_tap=(term.teacher, 'and what it is compared with')
        )
    rows = [(key, repr(paths[0] if len(paths) == 1 else paths), comment) for key, (paths, comment) in taps.items()]
    if term.adapter is not None:
        rows.append(('adapter', _call(term.adapter), "the student's map is brought to the teacher's size"))
    meanings = {**MEANINGS, **_OTHERS.get(term.host.loss, {})}
    rows += [(key, repr(value), meanings[key]) for key, value in term.options.items()]
    rows.append(('loss_weight', term.weight, _source_of_weight(term)))
    lines = [f'            {key}={value},  # {comment}' for key, value, comment in rows]
    return [f'        {term.name}=dict(', f"            type='mmsokd.{term.host.loss}',", *lines, '        ),']


def _source_of_weight(term: TermPlan) -> str:
    over = f', over the number of {term.host.over}' if term.host.over else ''
    return f'{term.host.source}{over}; the log shows what it comes to, as distill.{term.name}'


def _rest(student: Side, plan: Plan, files: Files) -> list[str]:
    """What stands beside the model."""
    lines = []
    if plan.method.host.slow is not None:
        lines += [
            "# what simplifies the teacher's predictions learns at a rate of its own",
            f"optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{'{plan.method.host.slow}': dict(lr_mult=1e-3)}}))",
        ]
    has_sync_bn = any(isinstance(module, SyncBatchNorm) for module in student.model.modules())
    if has_sync_bn and 'sync_bn' not in student.cfg:
        lines += ["# several GPUs: BatchNorm of the adapters is synchronised, as the student's is", "sync_bn = 'torch'"]
    if student.cfg.get('work_dir'):
        lines += [
            "# the base's belongs to the student's own run",
            f'work_dir = {str(Path("work_dirs") / files.out.stem)!r}',
        ]
    return lines


def _call(cfg: Mapping) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in cfg.items())})'


def _place(target: str | os.PathLike, out: Path, here: bool = False) -> str:
    """``target`` as seen from the folder of ``out``; in full where they have nothing in common.

    Args:
        here: MMEngine sees only ``_base_`` from the config's folder; other paths begin with a name for that.
    """
    target, folder = Path(target).resolve(), out.resolve().parent
    if len(Path(os.path.commonpath([target, folder])).parts) < 2:
        return target.as_posix()
    path = Path(os.path.relpath(target, folder)).as_posix()
    if here:
        return f'{{{{ fileDirname }}}}/{path}'
    return path if path.startswith('.') else f'./{path}'


@contextmanager
def draft(text: str, out: Path) -> Iterator[Path]:
    """``text`` in a file beside ``out``, for the time of a ``with`` block: its paths are then what they will be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile('w', dir=out.parent, prefix='.draft_', suffix='.py', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        yield Path(file.name)


def build_config(path: Path) -> Distiller:
    """The distiller that a config describes, as MMEngine's Runner builds it.

    Raises:
        ValueError, TypeError, FileNotFoundError: it cannot be; the message begins with the key.
    """
    cfg = Config.fromfile(path)
    model = cfg.model
    if model.get('data_preprocessor') is None:
        model.data_preprocessor = cfg.get('data_preprocessor')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):  # its default
        return ROOT_MODELS.build(model)


def check_place(out: Path, work_dir: Path, text: str, force: bool) -> None:
    """Raise FileExistsError where ``out`` has another text, or where MMEngine would overwrite it."""
    if (work_dir / out.name).resolve() == out.resolve():
        raise FileExistsError(
            f'--out: expected a place outside of the work dir {str(work_dir)!r}, into which MMEngine writes the whole '
            f'config under the same name, found {str(out)!r}'
        )
    if _differs(out, text, force):
        raise FileExistsError(
            f"--out: expected a new file, found {str(out)!r}, which you may have changed; train that by 'python "
            f"tools/train.py {out}', give another place by --out, or write over it by --force"
        )


def check_copy(copy: Path, student: Side, text: str, force: bool) -> None:
    """Raise FileExistsError where ``copy`` is no copy of the student's config, or one of how that was before."""
    if _differs(copy, text, force):
        raise FileExistsError(
            f'student: expected to write {student.source!r} in the text style to a new file, found {str(copy)!r} with '
            'another text, since one of the two was changed; write over it by --force'
        )


def _differs(path: Path, text: str, force: bool) -> bool:
    return path.exists() and not force and path.read_text(encoding='utf-8') != text
