"""mmpretrain's, with the zoo registered, and not one of 240 checkpoints after another."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mmsokd'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(interval=20, max_keep_ckpts=1))
