"""Child registries of MMEngine's roots, scope ``mmsokd``.

``locations`` lets MMEngine import the rooms on the first look-up, so that ``type='mmsokd.FitNetLoss'`` resolves
wherever the package is installed.
"""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='mmsokd',
    locations=[
        'mmsokd.losses',
        'mmsokd.adapters',
        'mmsokd.augment',
        'mmsokd.areas',
        'mmsokd.backbones',
        'mmsokd.distillers',
    ],
)
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='mmsokd', locations=['mmsokd.hooks'])
