import shutil
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ['configs', 'tools', 'model-index.yml']  # `mim train mmsokd CONFIG` finds these in mmsokd/.mim


def version():
    scope = {}
    exec((ROOT / 'mmsokd/version.py').read_text(), scope)
    return scope['__version__']


def requirements(name):
    """The lines of requirements/NAME.txt, with those of the files it includes."""
    lines = []
    for line in (ROOT / f'requirements/{name}.txt').read_text().splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('-r '):
            lines += requirements(line.removeprefix('-r ').removesuffix('.txt'))
        elif line:
            lines.append(line)
    return lines


def link_mim():
    """Let mmsokd/.mim of the working tree point at configs/ and tools/."""
    folder = ROOT / 'mmsokd/.mim'
    folder.mkdir(exist_ok=True)
    for name in MIM:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path('../..') / name)


class BuildPy(build_py):
    """Puts configs and tools into the built package; an editable install gets links instead."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            link_mim()
            return
        target = Path(self.build_lib) / 'mmsokd/.mim'
        shutil.rmtree(target, ignore_errors=True)  # build/ may be an older one
        target.mkdir(parents=True)
        for name in MIM:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__', 'work_dirs'))
            else:
                shutil.copy2(ROOT / name, target / name)


class LinkMim(Command):
    """What an editable install does about .mim, for tools/dev/setup_env.sh."""

    user_options = []

    def initialize_options(self):
        pass

    def finalize_options(self):
        pass

    def run(self):
        link_mim()


setup(
    name='mmsokd',
    version=version(),
    description='Student-oriented knowledge distillation for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmsokd', 'mmsokd.*']),
    python_requires='>=3.10,<3.13',
    install_requires=requirements('runtime'),
    extras_require={
        **{name: requirements(name) for name in ('det', 'seg', 'cls', 'tests', 'docs', 'dev')},
        'all': sorted({*requirements('det'), *requirements('seg'), *requirements('cls')}),
    },
    cmdclass={'build_py': BuildPy, 'link_mim': LinkMim},
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
