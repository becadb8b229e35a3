"""Packaging and installing: the version check, what a wheel holds, make, and the setup script on made-up machines."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from mmsokd.stack import SUPPORTED, check_stack, find_version, mend_mmseg_scope, stack_problems

ROOT = Path(__file__).resolve().parents[1]
OPENMMLAB = dict(torch='2.1.2+cu121', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmseg='1.2.2', mmpretrain='1.2.0')
ONEDL = dict(torch='2.11.0', mmengine='0.10.12', mmcv='2.3.6', mmdet='3.5.1', mmseg='1.4.2', mmpretrain='1.3.6')


def is_distribution(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


# ---- the version check ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('stack', [OPENMMLAB, ONEDL], ids=['openmmlab', 'onedl'])
def test_both_stacks_are_supported(stack):
    assert stack_problems(stack) == []


def test_one_task_library_is_enough():
    assert stack_problems({**OPENMMLAB, 'mmseg': None, 'mmpretrain': None}) == []
    assert stack_problems({**OPENMMLAB, 'torch': '2.1.0a0+32f93b1'}) == []  # NVIDIA's


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(torch='1.13.1'), ['torch', '1.13.1', '>=2.1']),
        (dict(mmcv=None), ['mmcv', 'none', '>=2.1']),
        (dict(mmdet='2.28.2'), ['mmdet', '2.28.2', '>=3.3']),
        (dict(mmcv='2.2.0', mmseg=None), ['mmcv', '2.2.0', 'mmdet 3.3.0', '<2.2']),
        (dict(torch='2.6.0'), ['torch', '2.6.0', 'mmengine 0.10.7', 'weights_only']),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    (problem,) = stack_problems({**OPENMMLAB, **change})
    for word in words:
        assert word in problem


def test_versions_are_found_without_importing():
    code = (
        'import sys; from importlib.util import spec_from_file_location as s, module_from_spec as m;'
        f'spec = s("stack", {str(ROOT / "mmsokd/stack.py")!r}); stack = m(spec); spec.loader.exec_module(stack);'
        'print(stack.find_version("mmdet"), stack.find_version("torch"), {"mmdet", "torch"} & set(sys.modules))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd='/')
    import mmdet
    import torch

    assert run.stdout.split() == [mmdet.__version__, torch.__version__, 'set()']


def test_version_of_a_source_checkout(tmp_path, monkeypatch):
    """On PYTHONPATH, before an installed one: what would be imported counts."""
    package = tmp_path / 'mmdet'
    package.mkdir()
    (package / '__init__.py').write_text('raise RuntimeError("imported")')
    (package / 'version.py').write_text("__version__ = '2.0.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mmdet', raising=False)
    assert find_version('mmdet') == '2.0.0'


def test_unsupported_stack_stops_the_import(monkeypatch):
    monkeypatch.setattr('mmsokd.stack.find_version', lambda name: {**OPENMMLAB, 'mmdet': '2.28.2'}[name])
    with pytest.raises(ImportError, match=r'mmdet: expected .*found 2\.28\.2(?s:.)*stack-openmmlab\.txt'):
        check_stack()


@pytest.mark.parametrize('distribution', ['mmsegmentation', 'no-such-distribution'])
def test_mmseg_configs_are_found_whatever_its_distribution_is_called(monkeypatch, distribution):
    from mmengine.config import Config, utils

    monkeypatch.setitem(utils.MODULE2PACKAGE, 'mmseg', distribution)
    mend_mmseg_scope()
    path, scope = Config._get_cfg_path('mmseg::_base_/models/pspnet_r50-d8.py', '')
    assert (Path(path).name, scope) == ('pspnet_r50-d8.py', 'mmseg')


@pytest.mark.xfail(
    not is_distribution('mmsegmentation'),
    reason='onedl-mmengine 0.10.12 looks for the distribution mmsegmentation, not for onedl-mmsegmentation',
)
def test_mmseg_configs_are_found_by_mmengine_alone():
    """As where mmseg's own tools read a config; docs/stacks.md says what to do."""
    code = 'from mmengine.config import Config; Config._get_cfg_path("mmseg::_base_/models/pspnet_r50-d8.py", "")'
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd='/', capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_import_stays_light():
    """mmdet, mmseg and mmpretrain are not imported, so that each is optional."""
    code = "import mmsokd, sys; print([m for m in ('mmdet', 'mmseg', 'mmpretrain') if m in sys.modules])"
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == '[]', run.stderr


# ---- what is installed ----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the sources: building writes beside them."""
    folder = tmp_path_factory.mktemp('source')
    tracked = ['mmsokd', 'configs', 'tools', 'tests', 'requirements']
    ignore = shutil.ignore_patterns('__pycache__', '.mim', 'work_dirs')
    for name in tracked:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def build(source, *command):
    subprocess.run([sys.executable, 'setup.py', '-q', *command], cwd=source, check=True, capture_output=True, text=True)


def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    build(source, 'bdist_wheel', '--dist-dir', str(folder))
    (path,) = folder.glob('*.whl')
    return path


def test_wheel_holds_one_package(wheel):
    tops = {name.split('/')[0] for name in contents(wheel)}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'mmsokd'}


def test_wheel_holds_what_mim_looks_for(wheel):
    names = contents(wheel)
    want = ['tools/train.py', 'tools/test.py', 'tools/dist_train.sh', 'tools/dist_test.sh', 'model-index.yml']
    want += [str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py')]
    assert {f'mmsokd/.mim/{name}' for name in want} <= names
    assert {str(p.relative_to(ROOT)) for p in (ROOT / 'mmsokd').rglob('*.py') if '.mim' not in p.parts} <= names
    assert not [name for name in names if name.endswith('.pyc') or 'work_dirs' in name]


def test_wheel_from_sdist_is_the_same(source, wheel, tmp_path):
    build(source, 'sdist', '--dist-dir', str(tmp_path))
    (archive,) = tmp_path.glob('*.tar.gz')
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    build(unpacked, 'bdist_wheel', '--dist-dir', str(tmp_path))
    (again,) = tmp_path.glob('*.whl')
    assert contents(again) == contents(wheel)


def test_installed_wheel_resolves_for_mim(wheel, tmp_path):
    """From another folder than the repository, as a user has it."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    code = (
        'from mmengine.utils import get_installed_path; from mmengine.config import Config; import pathlib;'
        'folder = pathlib.Path(get_installed_path("mmsokd"));'
        'assert (folder / ".mim/tools/train.py").is_file();'
        'print(folder, Config.fromfile(folder / ".mim/configs/_base_/sokd.py").custom_imports.imports)'
    )
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd='/', env=env, capture_output=True, text=True)
    assert run.stdout.split() == [str(tmp_path / 'mmsokd'), "['mmsokd']"], run.stderr


def test_model_index_names_files_that_are_there():
    import yaml

    for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        assert (ROOT / path).is_file(), path


# ---- make and the setup script --------------------------------------------------------------------------------------


def test_plain_make_lists_the_targets():
    out = subprocess.run(['make', '-s'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ('demo', 'test', 'lint', 'docs', 'install', 'clean'):
        assert f'make {target} ' in out


@pytest.mark.parametrize(
    ('asked', 'there', 'chosen'),
    [
        ([], '', '.venv'),
        (['STACK=openmmlab'], '', '.venv'),
        (['STACK=onedl'], '', '.venv-onedl'),
        (['STACK=onedl'], 'mmengine-0.10.7.dist-info', '.venv-onedl'),
        (['STACK=onedl'], 'onedl_mmengine-0.10.12.dist-info', '.venv'),  # where there is only Python 3.12
        (['STACK=onedl', 'VENV=mine'], '', 'mine'),
    ],
)
def test_each_stack_has_a_venv_of_its_own(tmp_path, asked, there, chosen):
    shutil.copy(ROOT / 'Makefile', tmp_path)
    (tmp_path / '.venv/lib/python3.11/site-packages' / there).mkdir(parents=True)
    env = {name: value for name, value in os.environ.items() if name not in ('STACK', 'VENV') and 'MAKE' not in name}
    command = ['make', '--eval', 'show: ; @echo $(VENV) $(PY)', 'show', *asked]
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert out.split() == [chosen, f'{chosen}/bin/python']


class Machine:
    """A made-up machine: a PATH of its own, with the tools of this one and Pythons that only tell a version."""

    TOOLS = ('bash', 'dirname', 'cat', 'cksum', 'awk', 'grep', 'du', 'sleep', 'mkdir', 'getconf', 'tail', 'env')

    def __init__(self, folder: Path) -> None:
        self.bin, self.repo = folder / 'bin', folder / 'repo'
        self.bin.mkdir()
        (self.repo / 'tools/dev').mkdir(parents=True)
        for name in ('setup_env.sh', 'missing.py'):
            shutil.copy(ROOT / 'tools/dev' / name, self.repo / 'tools/dev' / name)
        shutil.copytree(ROOT / 'requirements', self.repo / 'requirements')
        for name in self.TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.command('gcc', 'echo 12.2.0')
        self.command('g++', 'echo 12')
        self.disk(100)

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!{shutil.which("bash")}\n{body}\n')
        path.chmod(0o755)

    def python(self, name: str, version: str) -> None:
        """Tells its version, has venv and headers, and says with what it would make .venv."""
        other = f'echo "ran {name} $*" >&2; exit 3'
        self.command(name, f'case "$*" in *version_info*) echo {version} ;; *ensurepip*) ;; *) {other} ;; esac')

    def disk(self, gigabytes: int) -> None:
        self.command('df', f'echo head; echo "disk 0 0 {gigabytes * 2**20} 0% /"')

    def setup(self, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ['bash', 'tools/dev/setup_env.sh'],
            cwd=self.repo,
            env={'PATH': str(self.bin), **env},
            capture_output=True,
            text=True,
        )

    def complaint(self, **env: str) -> str:
        """The one line with which it refuses."""
        run = self.setup(**env)
        assert run.returncode != 0
        (line,) = (run.stdout + run.stderr).strip().splitlines()
        return line


def test_the_setup_asks_for_all_that_mmsokd_needs(tmp_path):
    """In a venv that is there already, as after a new requirement."""
    machine = Machine(tmp_path)
    venv, log = machine.repo / '.venv/bin', tmp_path / 'log'
    venv.mkdir(parents=True)
    answers = f'case "$*" in *version_info*) echo 3.11 ;; *purelib*) echo {tmp_path} ;; *) echo "$*" >>{log} ;; esac'
    machine.command('python', answers)
    shutil.copy(machine.bin / 'python', venv)
    run = machine.setup()
    assert run.returncode == 0, run.stderr
    asked = {word for line in log.read_text().splitlines() if 'missing.py' in line for word in line.split()}
    here = {f'requirements/{name}.txt' for name in ('stack-openmmlab', 'runtime', 'tests', 'lint', 'docs')}
    assert here <= asked


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ('pythons', 'env', 'chosen'),
    [
        ({'python3.11': '3.11', 'python3.12': '3.12'}, {}, 'python3.11'),
        ({'python3.10': '3.10', 'python3': '3.12'}, {}, 'python3.10'),
        ({'python3.12': '3.12'}, {}, 'python3.12'),
        ({'python3': '3.9', 'python3.12': '3.12'}, {}, 'python3.12'),
        ({'python3.11': '3.11', 'other': '3.10'}, {'PYTHON': 'other'}, 'other'),
    ],
)
def test_choice_of_python(machine, pythons, env, chosen):
    for name, number in pythons.items():
        machine.python(name, number)
    assert f'ran {chosen} -m venv' in machine.setup(**env).stderr


def test_a_shim_that_does_not_run_is_passed_over(machine):
    machine.command('python3.11', 'echo "pyenv: python3.11: command not found" >&2; exit 127')
    machine.python('python3.12', '3.12')
    assert 'ran python3.12 -m venv' in machine.setup().stderr


def test_no_python_at_all(machine):
    assert 'expected Python 3.10, 3.11 or 3.12' in machine.complaint()


@pytest.mark.parametrize('version', ['3.8', '3.13'])
def test_python_too_old_or_too_new(machine, version):
    machine.python('python3', version)
    assert f'python3 is {version}' in machine.complaint()


def test_python_that_cannot_serve_the_stack_asked_for(machine):
    machine.python('python3.12', '3.12')
    line = machine.complaint(STACK='openmmlab')
    assert 'expected Python 3.10 or 3.11' in line
    assert 'python3.12 is 3.12' in line


def test_no_such_stack(machine):
    machine.python('python3.11', '3.11')
    assert "'openmmlab' or 'onedl'" in machine.complaint(STACK='openmm')


def test_no_compiler(machine):
    machine.python('python3.11', '3.11')
    (machine.bin / 'g++').unlink()
    assert 'expected g++, found none' in machine.complaint()


def test_compiler_too_old(machine):
    machine.python('python3.11', '3.11')
    machine.command('g++', 'echo 4.8.5')
    assert 'found 4.8.5' in machine.complaint()


def test_disk_too_small(machine):
    machine.python('python3.11', '3.11')
    machine.disk(3)
    assert 'found 3 GB' in machine.complaint()


def test_requirements_that_are_not_met_are_told(tmp_path):
    path = tmp_path / 'requirements.txt'
    path.write_text('# a comment\npytest>=1\npytest<1   # too old\nno-such-distribution==1\n')
    command = [sys.executable, str(ROOT / 'tools/dev/missing.py'), str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout.splitlines() == [
        f'pytest<1 (found {pytest.__version__})',
        'no-such-distribution==1 (found none)',
    ]


@pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
def test_pins_are_supported_versions(stack):
    pins = dict(
        line.split('#')[0].strip().split('==')
        for line in (ROOT / f'requirements/stack-{stack}.txt').read_text().splitlines()
        if '==' in line.split('#')[0]
    )
    modules = dict(mmdetection='mmdet', mmsegmentation='mmseg')
    found = {modules.get(key := name.removeprefix('onedl-'), key): pin for name, pin in pins.items()}
    assert set(SUPPORTED) <= set(found)
    assert stack_problems({name: found[name] for name in SUPPORTED}) == []
