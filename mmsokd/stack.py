"""Which versions of PyTorch and the OpenMMLab libraries mmsokd runs on, and what to say about others.

Two sets of distributions provide the same import names (docs: *get started*), so versions are looked up by import name,
and nothing is imported to find them.
"""

import importlib.util
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

REQUIRED = ('torch', 'mmengine', 'mmcv')

# What the two stacks of requirements/stack-*.txt span; newer patch releases are let through.
SUPPORTED = {
    'torch': '>=2.1,<3',
    'mmengine': '>=0.10.4,<0.11',
    'mmcv': '>=2.1,<2.4',
    'mmdet': '>=3.3,<3.6',
    'mmseg': '>=1.2,<1.5',
    'mmpretrain': '>=1.2,<1.4',
}

# (a library, its versions, another library, the versions of it they need, why)
PAIRS = (
    ('mmengine', '<0.10.8', 'torch', '<2.6', 'it cannot load its own checkpoints on newer ones (weights_only)'),
    ('mmdet', '<3.4', 'mmcv', '<2.2', 'it refuses to be imported beside newer ones'),
    ('mmseg', '<1.3', 'mmcv', '<2.2', 'it refuses to be imported beside newer ones'),
)

DISTRIBUTIONS = {
    'torch': ('torch',),
    'mmengine': ('mmengine', 'onedl-mmengine', 'mmengine-lite'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-lite'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}

_MEND = (
    'Install a set that fits together: `make install` in the repository, or requirements/stack-openmmlab.txt '
    '(Python 3.10, 3.11) or requirements/stack-onedl.txt (current PyTorch).'
)


def find_version(module: str) -> str | None:
    """The version of an importable ``module``, without importing it; None where there is no such module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name is no library
        return None
    source = Path(spec.origin).with_name('version.py')  # of what would be imported, whatever distribution it came in
    found = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", source.read_text()) if source.is_file() else None
    if found:
        return found[1]
    for distribution in DISTRIBUTIONS[module]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return 'unknown'


def stack_problems(found: Mapping[str, str | None]) -> list[str]:
    """What is wrong with a set of versions, one sentence a problem; empty where nothing is.

    Args:
        found: import name -> version, or None where it is not installed. mmdet, mmseg and mmpretrain may be None.
    """
    problems = []
    for name, supported in SUPPORTED.items():
        if found.get(name) is None:
            if name in REQUIRED:
                problems.append(f'{name}: expected {supported}, found none')
        elif not _within(found[name], supported):
            problems.append(f'{name}: expected {supported}, found {found[name]}')
    for name, which, other, needs, why in PAIRS:
        if found.get(name) is None or found.get(other) is None:
            continue
        if _within(found[name], which) and not _within(found[other], needs):
            problems.append(f'{other}: {name} {found[name]} needs {other} {needs}, found {found[other]}; {why}')
    return problems


def check_stack() -> None:
    """Look the libraries up.

    Raises:
        ImportError: one is missing or unsupported; says what was found and what to install.
    """
    problems = stack_problems({name: find_version(name) for name in SUPPORTED})
    if problems:
        raise ImportError('\n  '.join(['mmsokd cannot run on these libraries:', *problems, _MEND]))


def mend_mmseg_scope() -> None:
    """Let MMEngine find ``mmseg::`` configs where mmseg comes in another distribution than ``mmsegmentation``.

    onedl-mmengine (0.10.12) still asks for the official one by that name, and so does not find onedl-mmsegmentation.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    try:
        version(MODULE2PACKAGE['mmseg'])
    except PackageNotFoundError:
        if importlib.util.find_spec('mmseg') is not None:
            MODULE2PACKAGE['mmseg'] = 'mmseg'  # an import name does as well


def _within(found: str, supported: str) -> bool:
    if found == 'unknown':
        return True
    # A local part (2.1.2+cu121) and a pre-release (NVIDIA's 2.1.0a0+32f93b1) do not make another version of it.
    return SpecifierSet(supported).contains(Version(found.split('+')[0]).base_version)
