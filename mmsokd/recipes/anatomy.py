"""Where a model has what a method compares: its stages, its pyramid, its head's feature, its logits."""

from torch import Tensor, nn

from mmsokd.recipes.survey import Survey
from mmsokd.taps import FeatureSpec

LIBRARIES = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')
_MOST = 4  # stages


def task_of(model: nn.Module) -> str | None:
    """``'detection'``, ``'segmentation'`` or ``'classification'``, by the library of its class or of a base."""
    libraries = (cls.__module__.partition('.')[0] for cls in type(model).__mro__)
    return next((LIBRARIES[library] for library in libraries if library in LIBRARIES), None)


def stages(survey: Survey) -> list[str]:
    """The taps of a backbone's stages, from the first to the last, at most four.

    A stage is a part of the backbone that is made of blocks and gives one map, or tokens on a grid. Where there are
    more than four, such as the seven of MobileNetV2, they are the last one of each stride; where these are too few,
    as in a ViT, the ends of four equal shares. Where a backbone is not built like that, its own outputs count.
    """
    units = _units(survey)
    found = [tap for tap in (_one_map(survey, path) for path in units) if tap is not None]
    if not found or any(len(survey.find(path)) > 1 for path in units):  # HRNet's stages have a map for each branch
        specs = survey.find('backbone')
        count = len(specs) if all(len(spec.size) == 2 for spec in specs) else 0
        return ['backbone'] if count == 1 else [f'backbone[{i}]' for i in range(count)][-_MOST:]
    if len(found) <= _MOST:
        return found
    last = {survey.specs(tap)[0].stride: tap for tap in found}
    if len(last) >= 3:
        return list(last.values())[-_MOST:]
    return [found[(i * len(found)) // _MOST - 1] for i in range(1, _MOST + 1)]


def _units(survey: Survey) -> list[str]:
    """Children of the backbone, and of the lists among them, that have blocks, in the order in which they ran."""
    backbone = survey.modules.get('backbone', nn.Module())
    children = [(f'backbone.{name}', child) for name, child in backbone.named_children()]
    listed = [
        (f'{path}.{name}', child)
        for path, part in children
        if isinstance(part, nn.ModuleList)
        for name, child in part.named_children()
    ]
    units = [path for path, part in [*children, *listed] if _has_blocks(part) and survey.order.get(path) is not None]
    return sorted(units, key=survey.order.__getitem__)


def _has_blocks(part: nn.Module) -> bool:
    return any(True for child in part.children() for _ in child.children())


def _one_map(survey: Survey, path: str) -> str | None:
    """The tap of a unit that gives one map; a Swin's gives the map's size beside the tokens."""
    if len(survey.outputs(path)) != 1:
        return None
    for tap in (path, f'{path}[0]'):
        specs = survey.find(tap)
        if len(specs) == 1 and len(specs[0].size) == 2:
            return tap
    return None


def pyramid(survey: Survey) -> str:
    """The tap of a detector's levels: its neck's, or its backbone's where it has no neck.

    Raises:
        ValueError: neither gives maps.
    """
    for tap in ('neck', 'backbone'):
        specs = survey.find(tap)
        if specs and all(len(spec.size) == 2 for spec in specs):
            return tap
    raise ValueError(
        f"expected maps from 'neck' or 'backbone', found none in {type(survey.model).__name__}; choose taps of your own"
    )


def logits(survey: Survey, task: str) -> str:
    """The tap of the predictions of classes.

    Raises:
        ValueError: there are none to compare picture by picture; tells why.
    """
    return dict(classification=_logits_of_classifier, segmentation=_logits_of_segmentor, detection=_logits_of_detector)[
        task
    ](survey)


def _logits_of_classifier(survey: Survey) -> str:
    output = survey.outputs('head')
    if len(output) != 1 or not isinstance(output[0], Tensor):
        raise ValueError(
            f"expected a 'head' that gives logits (N, K), found that {_named(survey, 'head')} does not; choose taps of "
            'your own'
        )
    return _source(survey, 'head', output) or 'head'


def _logits_of_segmentor(survey: Survey) -> str:
    head = decode_head(survey)
    output = survey.outputs(head)
    if len(output) != 1 or not isinstance(output[0], Tensor):
        raise ValueError(
            f'expected a decode head that gives logits (N, K, H, W), found that {_named(survey, head)} has '
            'no class map to compare; take a method on features, or choose taps of your own'
        )
    return _source(survey, head, output) or head


def _logits_of_detector(survey: Survey) -> str:
    levels = _dense_outputs(survey)
    return _source(survey, 'bbox_head', list(levels)) or 'bbox_head[0]'


def _dense_outputs(survey: Survey) -> list[Tensor]:
    """The class scores, level by level.

    Raises:
        ValueError: the detector has no dense head of sigmoids.
    """
    name = type(survey.model).__name__
    if survey.modules.get('bbox_head') is None:
        raise ValueError(
            f'expected a one-stage detector with a dense head, whose logits belong to places, found {name}: a '
            'two-stage head has one row a proposal, and student and teacher propose other ones; take a method on '
            'features'
        )
    levels = survey.find('bbox_head[0]')
    if not levels or any(len(spec.size) != 2 for spec in levels):
        raise ValueError(
            f"expected a dense head whose first output is class logits (N, K, H, W), found that {name}'s "
            f'{_named(survey, "bbox_head")} gives none; take a method on features, or choose taps of your own'
        )
    if not getattr(survey.modules['bbox_head'], 'use_sigmoid_cls', False):
        raise ValueError(
            f"expected a dense head that predicts each class by a sigmoid, found {name}'s "
            f'{_named(survey, "bbox_head")}, which does not; take a method on features, or choose taps of your own'
        )
    first = survey.outputs('bbox_head')[0][0]
    return [first] if isinstance(first, Tensor) else list(first)


def num_classes(survey: Survey) -> int:
    """Of a detector's dense head."""
    return survey.modules['bbox_head'].num_classes


def box_distributions(survey: Survey) -> str:
    """The tap of the distributions of a box's sides, which GFL's head predicts.

    Raises:
        ValueError: the detector has no such head.
    """
    head = survey.modules.get('bbox_head')
    channels = {spec.channels for spec in survey.find('bbox_head[1]')}
    if head is None or channels != {4 * (getattr(head, 'reg_max', -1) + 1)}:
        raise ValueError(
            'expected a head that predicts distributions of the sides of a box, such as GFLHead, found '
            f'{_named(survey, "bbox_head")}'
        )
    return 'bbox_head[1]'


def decode_head(survey: Survey) -> str:
    """The path of a segmentor's decode head; the last one of a cascade."""
    heads = survey.modules.get('decode_head')
    return f'decode_head.{len(heads) - 1}' if isinstance(heads, nn.ModuleList) else 'decode_head'


def head_feature(survey: Survey, task: str) -> str:
    """The tap of what the head classifies: a decode head's last map, or a classifier's vector.

    Raises:
        ValueError: there is none.
    """
    return _head_feature_of_segmentor(survey) if task == 'segmentation' else _head_feature_of_classifier(survey)


def _head_feature_of_classifier(survey: Survey) -> str:
    for tap in ('neck', 'backbone'):
        specs = survey.find(tap)
        if len(specs) == 1 and not specs[0].size:
            return tap
    raise ValueError(
        f"expected a vector (N, C) from 'neck' or 'backbone', found none in {type(survey.model).__name__}; choose taps "
        'of your own'
    )


def _head_feature_of_segmentor(survey: Survey) -> str:
    head = decode_head(survey)
    classifier = survey.order.get(f'{head}.conv_seg', 0)
    before = [
        path
        for path in survey.order
        if path.startswith(f'{head}.')
        and survey.order[path] < classifier
        and not isinstance(survey.modules[path], nn.Dropout2d)
    ]
    tap = max(before, key=survey.order.__getitem__, default=None)  # a part gives its output after its own parts
    if tap is None or not _is_map(survey.find(tap)):
        raise ValueError(
            f"expected a decode head that classifies a map by its 'conv_seg', found that {_named(survey, head)} does "
            'not; choose taps of your own'
        )
    return tap


def _is_map(specs: list[FeatureSpec]) -> bool:
    return len(specs) == 1 and len(specs[0].size) == 2


def _source(survey: Survey, root: str, values: list[Tensor]) -> str | None:
    """The deepest part below ``root`` whose outputs, call by call, are ``values`` themselves."""
    found = [
        path
        for path in survey.order
        if path.startswith(f'{root}.')
        and len(survey.outputs(path)) == len(values)
        and all(ours is theirs for ours, theirs in zip(survey.outputs(path), values, strict=True))
    ]
    return min(found, key=survey.order.__getitem__, default=None)


def _named(survey: Survey, path: str) -> str:
    part = survey.modules.get(path)
    return f"'{path}' ({type(part).__name__})" if part is not None else f"no '{path}'"
