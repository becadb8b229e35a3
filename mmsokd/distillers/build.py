"""From what a user writes for a student or a teacher to a built model with its weights."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmsokd.checkpoint import load_checkpoint
from mmsokd.checks import check_keys, nearest, telling

# beside cfg
TEACHER_KEYS = ('checkpoint', 'trust_checkpoint', 'autocast', 'channels_last', 'compile', 'stream', 'trim')


def load_config(key: str, source: str) -> Config:
    """The config at ``scope::path`` or at a local path.

    Raises:
        ValueError: the package is not installed, or has no such config; names the nearest one.
        FileNotFoundError: there is no such file; names the nearest one in its folder.
    """
    if '::' not in source:
        path = Path(source)
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob('*.py')], n=1) if path.parent.is_dir() else []
            hint = f'; nearest in {path.parent}: {near[0]}' if near else ''
            raise FileNotFoundError(f"{key}: expected a config file or 'scope::path', found no file {source!r}{hint}")
        try:
            return Config.fromfile(source)
        except Exception as error:  # it may be anything
            raise ValueError(f'{key}: expected a config file, found {source!r}: {error}') from error
    scope, path = source.split('::', 1)
    spec = importlib.util.find_spec(scope)
    if spec is None or spec.origin is None:
        raise ValueError(f"{key}: expected an installed package before '::', found {scope!r} in {source!r}")
    configs = Path(spec.origin).parent / '.mim' / 'configs'
    if not (configs / path).is_file():
        here = [str(p.relative_to(configs)) for p in configs.rglob('*.py')]
        raise ValueError(
            f'{key}: expected a config of {scope}, found no {path!r}; nearest: '
            f'{[f"{scope}::{p}" for p in nearest(path, here)]}'
        )
    return get_config(source)


def build_model(key: str, source: Any, data_preprocessor: dict | None = None) -> nn.Module:
    """Build a student or a teacher.

    Args:
        key: the config key, for messages (``'student'``).
        source: a module, a model dict, a Config (or its ``model``), a local path, ``'scope::path'``, or
            ``dict(cfg=one of these)``.
        data_preprocessor: the config's top-level one, used where the model has none of its own.

    Raises:
        TypeError, ValueError, FileNotFoundError: ``source`` is none of these.
    """
    if isinstance(source, nn.Module):
        return source
    if isinstance(source, str | os.PathLike):
        source = load_config(key, str(source))
    if not isinstance(source, dict | Config):
        raise TypeError(f"{key}: expected a model dict, a Config, a path or 'scope::path', found {source!r}")
    if 'cfg' in source and 'type' not in source:
        allowed = ['cfg'] if key == 'student' or key.endswith('.cfg') else ['cfg', *TEACHER_KEYS]
        check_keys(key, source, allowed)
        return build_model(f'{key}.cfg', source['cfg'], data_preprocessor)
    scope = None
    if 'model' in source and 'type' not in source:
        scope = source.get('default_scope')
        data_preprocessor = source.get('data_preprocessor') or data_preprocessor
        source = source['model']
        if not isinstance(source, dict):
            raise TypeError(f"{key}.model: expected a model dict with 'type', found {source!r}")
    if 'type' not in source:
        raise ValueError(f"{key}: expected a model dict with 'type', or dict(cfg=...), found the keys {sorted(source)}")
    model = ConfigDict(source) if not isinstance(source, ConfigDict) else source
    model = model.copy()  # shallow: the registry's build copies, and `type` may be a class
    if scope is not None:
        model.setdefault('_scope_', scope)
    if not isinstance(model['type'], str) and not callable(model['type']):
        raise ValueError(f'{key}.type: expected a registered name or a class, found {model["type"]!r}')
    top = key.removesuffix('.cfg')
    if top != 'student' and 'checkpoint' in model:
        raise ValueError(f'{key}.checkpoint: expected it beside cfg, as {top}=dict(cfg=dict(...), checkpoint=...)')
    if data_preprocessor is not None and model.get('data_preprocessor') is None:
        model['data_preprocessor'] = data_preprocessor
    with telling(key):
        try:
            built = ROOT_MODELS.build(model)
        except KeyError as error:  # an unknown type, here or inside
            raise ValueError(f'{" ".join(map(str, error.args))}{_nearest_type(str(error))}') from error
    if not isinstance(built, nn.Module):
        raise ValueError(f'{key}.type: expected a model, found {model["type"]!r}')
    return built


def _nearest_type(message: str) -> str:
    """The registered name that MMEngine's message most probably means, or the library that has this very name."""
    found = re.search(r'^\W*(\S+) is not in the', message)
    if not found:
        return ''
    name = found[1].rpartition('::')[2]
    registries = [ROOT_MODELS, *ROOT_MODELS.children.values()]
    scopes = [registry.scope for registry in registries if name in registry.module_dict]
    if scopes:
        return (
            f"; it is one of {scopes[0]}'s: give the model _scope_='{scopes[0]}', or its config as "
            f"dict(cfg='{scopes[0]}::...')"
        )
    return f'; nearest: {nearest(name, [name for registry in registries for name in registry.module_dict])}'


def _fits(value: Any, own: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == own.shape and value.is_complex() == own.is_complex()


def _text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f'is no tensor but of the type {type(value).__name__}'
    return f'has the shape {tuple(value.shape)} and is {value.dtype}'


def load_weights(key: str, model: nn.Module, filename: str | os.PathLike, trust: bool = False) -> None:
    """Load the checkpoint ``filename`` (path or URL) into ``model``; every parameter of the model must be in it.

    Nothing that is in the file is run, unless ``trust`` says so: see :func:`~mmsokd.checkpoint.load_checkpoint`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or belongs to another architecture; says how many keys fit.
    """
    filename = str(filename)
    try:
        checkpoint = load_checkpoint(filename, trust=trust)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f'{key}: {error}') from error
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(state, dict):
        raise ValueError(f'{key}: expected a state_dict in {filename!r}, found {type(state).__name__}')
    state = {str(name).removeprefix('module.'): value for name, value in state.items()}
    # BatchNorm's counters came late to PyTorch: old files lack them
    own = {
        name: value
        for name, value in model.state_dict().items()
        if name in state or not name.endswith('num_batches_tracked')
    }
    wrong = [name for name, value in own.items() if name not in state or not _fits(state[name], value)]
    if wrong:
        hint = ''
        if any(name.startswith('student.') for name in state):
            hint = '; this is a distiller checkpoint: run tools/export_student.py on it first'
        name = wrong[0]
        found = _text(state[name]) if name in state else 'is missing'
        raise ValueError(
            f'{key}: expected weights of {type(model).__name__}, found that {len(own) - len(wrong)} of {len(own)} keys '
            f'of {filename!r} fit; the first that does not: {name!r} {found}{hint}'
        )
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    surplus = len([name for name in state if name not in own and not name.endswith('num_batches_tracked')])
    if surplus:
        print_log(f'{key}: {surplus} keys of {filename} are not in the model and are left out', 'current')
    with torch.no_grad():
        model.load_state_dict(state, strict=False)
