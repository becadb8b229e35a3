"""What was found, for a terminal: the pairing as a table, and a model's taps as a tree."""

from collections.abc import Sequence

from torch import nn

from mmsokd.distillers.base import Distiller
from mmsokd.distillers.term import PerLevel
from mmsokd.recipes.survey import Survey
from mmsokd.taps import FeatureSpec, Tap, parse_tap, paths_of

_HEADER = ('term', 'student tap', 'stride', 'channels', 'teacher tap', 'stride', 'channels', 'adapter')


def pairing_table(distiller: Distiller, student: Survey, teacher: Survey) -> str:
    """The pairs of levels of every term that was built, in lines of even columns."""
    rows = [_HEADER]
    for name, term in distiller.terms.items():
        ours, theirs = _levels(student, term.student_tap), _levels(teacher, term.teacher_tap)
        for place, ((i, j), (s, t)) in enumerate(zip(term.pairs, term.specs, strict=True)):
            label = name if place == 0 else ''
            rows.append((label, ours[i], *_numbers(s), theirs[j], *_numbers(t), _adapter(term.adapter, place)))
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of even columns; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        numeric = [cell.isdigit() or cell == '-' for cell in row]
        cells = [f'{c:>{w}}' if n else f'{c:{w}}' for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def _levels(survey: Survey, tap: Tap) -> list[str]:
    """A text for each level of a tap."""
    names = []
    for path in paths_of(tap):
        *_, last = parse_tap(path).index or (None,)
        whole = path[: path.rindex('[')] if isinstance(last, slice) else path
        indices = range(len(survey.specs(whole)))
        names += (
            [path] if len(indices) == 1 else [f'{whole}[{i}]' for i in (indices[last] if whole != path else indices)]
        )
    return names


def _numbers(spec: FeatureSpec) -> tuple[str, str]:
    return (str(spec.stride) if spec.stride else '-', str(spec.channels))


def _adapter(adapter: nn.Module, place: int) -> str:
    part = adapter[place] if isinstance(adapter, PerLevel) else adapter
    if isinstance(part, nn.Identity):
        return 'none'
    return f'{type(part).__name__} ({count_text(part)})' if part is not adapter or place == 0 else 'the same'


def count_text(part: nn.Module) -> str:
    """How many parameters it has, in a readable unit."""
    count = sum(p.numel() for p in part.parameters())
    if count >= 1e6:
        return f'{count / 1e6:.1f} M'
    return f'{count / 1e3:.1f} k' if count >= 1e3 else str(count)


def tap_tree(survey: Survey, depth: int) -> str:
    """Every module down to ``depth`` with what a tap there reads; the extractor's levels are listed one by one.

    Lists of modules do not count as a level of the tree.
    What cannot be tapped has a reason in brackets in the place of its output.
    """
    rows = [('tap', 'module', 'stride', 'output')]
    for path, module in survey.modules.items():
        level = path.count('.')
        parents = [path[:i] for i, sign in enumerate(path) if sign == '.']
        if level - sum(isinstance(survey.modules[parent], nn.ModuleList) for parent in parents) < depth:
            first, *more = _tap_rows(survey, path)
            rows.append(('  ' * level + path, type(module).__name__, *first))
            rows += [('  ' * (level + 1) + tap, '', *rest) for tap, *rest in more]
    return columns(rows)


def _tap_rows(survey: Survey, path: str) -> list[tuple[str, ...]]:
    """Stride and output of a module, and then tap, stride and output of each part of it that is a tap of its own."""
    try:
        specs = survey.specs(path)
    except (KeyError, TypeError, ValueError) as error:
        parts = _parts(survey, path)
        reason = 'several things, each a tap' if parts else _reason(survey, path, error)
        return [('', f'[{reason}]'), *((tap, *_summary(specs)) for tap, specs in parts.items())]
    if len(specs) == 1 or path not in ('backbone', 'neck'):
        return [_summary(specs)]
    return [('', f'{len(specs)} levels'), *((f'{path}[{i}]', *_summary([spec])) for i, spec in enumerate(specs))]


def _parts(survey: Survey, path: str) -> dict[str, list[FeatureSpec]]:
    """The taps in the tuple that a module returns, such as a dense head's scores and boxes."""
    outputs = survey.outputs(path)
    count = len(outputs[0]) if len(outputs) == 1 and isinstance(outputs[0], list | tuple) else 0
    found = {f'{path}[{i}]': survey.find(f'{path}[{i}]') for i in range(count)}
    return {tap: specs for tap, specs in found.items() if specs}


def _reason(survey: Survey, path: str, error: Exception) -> str:
    if isinstance(survey.modules[path], nn.ModuleList | nn.ModuleDict):
        return 'no tap: only what is in it runs'
    if not survey.outputs(path):
        return 'no tap: it does not run here'
    return f'no tap: {str(error).removeprefix(f"tap {path!r}: ").split(";")[0]}'


def _summary(specs: Sequence[FeatureSpec]) -> tuple[str, str]:
    first, last = specs[0], specs[-1]
    stride = str(first.stride) if first.stride else ''
    if len(specs) == 1:
        return stride, shape_text(first)
    strides = stride if first.stride == last.stride else f'{first.stride} .. {last.stride}'
    return strides, f'{shape_text(first)} .. {shape_text(last)}, {len(specs)} levels'


def shape_text(spec: FeatureSpec) -> str:
    """``(N, C, H, W)`` in numbers but for N; tokens on a grid as the map that they are compared as."""
    sizes = (*spec.size, spec.channels) if len(spec.size) == 1 else (spec.channels, *spec.size)
    return f'(N, {", ".join(map(str, sizes))})' + (', tokens on a grid' if spec.extra is not None else '')
