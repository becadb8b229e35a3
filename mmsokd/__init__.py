"""Student-oriented knowledge distillation for OpenMMLab. Importing it registers everything under the scope `mmsokd`."""

from mmsokd.stack import check_stack
from mmsokd.version import __version__

check_stack()  # before anything that would fail in a less helpful way

__all__ = ['__version__', 'check_stack']
