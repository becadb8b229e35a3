"""SoKD: the distiller with both plug-ins on."""

from collections.abc import Mapping
from typing import Any

from mmsokd.distillers.base import Distiller
from mmsokd.distillers.plugins import Default
from mmsokd.registry import MODELS

_AREAS = Default(type='mmsokd.DistinctiveAreaDetector')


@MODELS.register_module()
class SoKDDistiller(Distiller):
    """:class:`Distiller` with learned feature augmentation and distinctive-area detection on by default.

    After "Student-Oriented Teacher Knowledge Refinement for Knowledge Distillation", arXiv 2409.18785. The full text
    was not available: docs/faithfulness.md tells for each part whether it follows the abstract, a public review, the
    authors' development fork, or is our own.

    Args:
        refine: DAFA's config, None to switch it off.
        areas: DAM's config, None to switch it off. Without this key it is off too where only logits are compared and
            ``refine.at`` reaches them: they have no areas.
        kwargs: :class:`Distiller`'s.
    """

    def __init__(
        self,
        *args: Any,
        refine: Mapping | None = dict(type='mmsokd.FeatureAugmentationNeck'),
        areas: Mapping | None = _AREAS,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, refine=refine, areas=areas, **kwargs)
