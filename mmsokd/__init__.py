"""Student-oriented knowledge distillation for OpenMMLab. Importing it registers everything under the scope `mmsokd`."""

from mmsokd.stack import check_stack, mend_mmseg_scope
from mmsokd.version import __version__

check_stack()  # before anything that would fail in a less helpful way
mend_mmseg_scope()

from mmsokd import adapters, areas, augment, backbones, distillers, hooks, losses  # noqa: E402, F401 (registers)

__all__ = ['__version__', 'check_stack']
