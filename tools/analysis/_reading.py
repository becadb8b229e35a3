"""What the tools of this folder share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

import mmsokd  # noqa: F401  registers the scope
from mmsokd.visualization.runs import Run, read_run


@contextmanager
def one_message() -> Iterator[None]:
    """What a user can cause ends the tool with its message alone."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


def read(folder: Path) -> Run:
    with one_message():
        return read_run(folder)


def import_own(cfg: Config) -> None:
    """Import what the config's ``custom_imports`` name, before something is built from it."""
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)


def say(text: str) -> None:
    """On the error stream, where no table is read from."""
    print(text, file=sys.stderr, flush=True)
