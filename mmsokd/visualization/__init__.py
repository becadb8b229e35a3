"""Pictures of what the plug-ins do."""

from mmsokd.visualization.areas import draw_areas
from mmsokd.visualization.pixels import loads_rgb, pictures_of

__all__ = ['draw_areas', 'loads_rgb', 'pictures_of']
