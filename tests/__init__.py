"""The tests; without what MMEngine does for readers of its logs, or waits for, which took a third of their time."""

import ast
from types import SimpleNamespace

from mmengine.config import config
from mmengine.runner import loops
from yapf.yapflib import yapf_api


def checked(text, **_):
    """What yapf refuses is refused."""
    ast.parse(text)
    return text, True


for module in (yapf_api, config):  # of one stack it is asked for each time, of the other it was imported
    module.FormatCode = checked  # which takes a second and more for each Runner and each checkpoint
loops.time = SimpleNamespace(sleep=lambda _: None)  # two seconds after each pass of an iteration-based loop
