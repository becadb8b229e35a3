"""What a config trains, in a few words, and what several runs are to each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmsokd.distillers.build import load_config
from mmsokd.visualization.runs import Run

# What does not make another network.
_NOT_ARCHITECTURE = {'init_cfg', 'pretrained', 'data_preprocessor', 'train_cfg', 'test_cfg', '_scope_', 'checkpoint'}
_NO_TYPE = 'model'
SFTN = 'SFTNTeacherTrainer'
_KINDS = dict(TSTDistiller='TST', IAKDDistiller='IAKD', OnlineDistiller='EKD')


class Method(NamedTuple):
    """What a run does."""

    kind: str  # 'plain', 'host', 'SoKD', 'Meta-KD', 'TST', 'IAKD', 'EKD' or 'SFTN'
    text: str  # 'SoKD on FitNet'


def method_of(cfg: Mapping) -> Method:
    """The method of a config, by its model."""
    model = cfg.get('model') or {}
    name = _name(model.get('type'))
    if name == SFTN:
        return Method('SFTN', 'SFTN, a teacher trained for its student')
    if not is_distiller(cfg):
        return Method('plain', 'training without a teacher')
    terms = (model.get('terms') or {}).values()
    hosts = list(dict.fromkeys(_name(term.get('type')).removesuffix('Loss') for term in terms))
    kinds = [_KINDS[name]] if name in _KINDS else []
    on = name == 'SoKDDistiller'
    parts = [part for part in ('refine', 'areas') if model.get(part, {} if on else None) is not None]
    if 'refine' in parts and _name((model.get('refine') or {}).get('type')) == 'KnowledgeRefiner':
        parts.remove('refine')
        kinds.append('Meta-KD')
    if parts:
        kinds.append('SoKD' if len(parts) == 2 else f'SoKD ({parts[0]} alone)')
    hosts = ', '.join(hosts) or 'no host'
    if not kinds:
        return Method('host', hosts)
    return Method(kinds[-1].split(' ')[0], ' and '.join(kinds) + (f' on {hosts}' if terms else ''))


def is_distiller(cfg: Mapping) -> bool:
    """Whether its model is a distiller: one of ours, or somebody's with terms."""
    model = cfg.get('model') or {}
    return 'student' in model and ('terms' in model or 'stages' in model) and _name(model.get('type')) != SFTN


def students_text(cfg: Mapping) -> str:
    """The student's network in a few words."""
    model = cfg.get('model') or {}
    return _short(_plain('student', model.get('student'))) if is_distiller(cfg) else _short(model)


def teachers_of(cfg: Mapping) -> dict[str, Any]:
    """Name -> what the config says of each teacher."""
    model = cfg.get('model') or {}
    for key in ('teacher', 'online_teacher'):
        if model.get(key) is not None:
            return {key: model[key]}
    return dict(model.get('teachers') or {})


def teachers_text(cfg: Mapping) -> str:
    """The teachers' networks in a few words."""
    texts = []
    for source in teachers_of(cfg).values():
        checkpoint = source.get('checkpoint') if isinstance(source, Mapping) else None
        texts.append(_short(_plain('teacher', source)) + (f' ({Path(str(checkpoint)).name})' if checkpoint else ''))
    return ', '.join(texts) or 'none'


def role_of(other: Run, main: Run) -> str:
    """What ``other`` is to ``main``, a distillation: its teacher, its student alone, its host, or another method."""
    if other.folder.resolve() == main.folder.resolve():
        return 'distilled' if is_distiller(main.config) else 'this run'
    method = method_of(other.config)
    if method.kind != 'plain':
        return 'host' if method.kind == 'host' else method.kind
    own = _architecture(other.config.get('model'))
    if is_distiller(main.config):
        for source in teachers_of(main.config).values():
            if own == _architecture(_plain('teacher', source)):
                return 'teacher'
        if own == _architecture(_plain('student', main.config.model.get('student'))):
            return 'student alone'
    return 'another run'


def teacher_folders(run: Run) -> list[Path]:
    """The work dirs that the teachers' checkpoints lie in, where they are such."""
    folders = []
    for source in teachers_of(run.config).values():
        checkpoint = source.get('checkpoint') if isinstance(source, Mapping) else None
        if isinstance(checkpoint, str) and '://' not in checkpoint:
            folder = Path(checkpoint).parent
            if folder.resolve() != run.folder.resolve() and any(folder.glob('*/vis_data/scalars.json')):
                folders.append(folder)
    return list(dict.fromkeys(folders))


def _plain(key: str, source: Any) -> Mapping:
    """The model dict of what a config says of a network, or nothing where its file is not to be found."""
    if isinstance(source, Mapping) and 'cfg' in source and 'type' not in source:
        return _plain(key, source['cfg'])
    if isinstance(source, str):
        try:
            return load_config(key, source).get('model') or {}
        except (ValueError, OSError):
            return {_NO_TYPE: source}  # it may have been moved since
    if isinstance(source, Mapping) and 'model' in source and 'type' not in source:
        return source['model']
    return source if isinstance(source, Mapping) else {}


def _architecture(part: Any) -> Any:
    """A config without what leaves the network as it is."""
    if isinstance(part, Mapping):
        kept = {key: value for key, value in part.items() if key not in _NOT_ARCHITECTURE}
        return {key: _name(value) if key == 'type' else _architecture(value) for key, value in kept.items()}
    if isinstance(part, list | tuple):
        return [_architecture(value) for value in part]
    return part


def _short(model: Mapping) -> str:
    """``RetinaNet (ResNet-18)``."""
    if _NO_TYPE in model:
        return str(model[_NO_TYPE])
    backbone = model.get('backbone') or {}
    depth = backbone.get('depth') or backbone.get('arch')
    depth = f'-{depth}' if isinstance(depth, int | str) else ''
    inside = f' ({_name(backbone.get("type"))}{depth})' if backbone else ''
    return f'{_name(model.get("type"))}{inside}'


def _name(kind: Any) -> str:
    """A registered name without its scope, or a class's."""
    name = getattr(kind, '__name__', kind)
    return str(name or 'unknown').rpartition('.')[2]
