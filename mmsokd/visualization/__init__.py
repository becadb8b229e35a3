"""Pictures of what the plug-ins do."""

from mmsokd.visualization.areas import draw_areas, save_image

__all__ = ['draw_areas', 'save_image']
