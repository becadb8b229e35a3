"""A run on one page."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmsokd.version import __version__
from mmsokd.visualization import page
from mmsokd.visualization.charts import Chart, Line
from mmsokd.visualization.compare import (
    METRICS,
    duration,
    metric_chart,
    number,
    ordered,
)
from mmsokd.visualization.complexity import Cost
from mmsokd.visualization.describe import is_distiller, method_of, role_of, students_text, teachers_of, teachers_text
from mmsokd.visualization.page import Html
from mmsokd.visualization.policy import policies_of, policy_charts
from mmsokd.visualization.runs import Run, best_of, is_less_better

_DRAWINGS = 6  # of the areas; more would make the page heavy
_GROUPS = dict(distill='distillation terms', sokd="SoKD's own", sftn="SFTN's branches")


def write_report(
    run: Run, others: Sequence[Run] = (), costs: Mapping[str, Cost] | str = '', size: tuple[int, int] = (0, 0)
) -> str:
    """One self-contained HTML page of a run. What there is not is told.

    Args:
        run: to report.
        others: to compare it with; their roles are found from the configs.
        costs: of the run's networks, or why they are not known.
        size: height and width of the picture that ``costs`` are for.
    """
    method = method_of(run.config)
    sections = [
        ('metrics', 'Metrics', _metrics(run, others)),
        ('curves', 'Curves', _curves(run, others)),
        ('losses', 'Losses by term', _losses(run)),
        ('policy', 'Policy', _policy(run)),
        ('areas', 'Areas', _areas(run)),
        ('cost', 'Parameters and FLOPs', _costs(costs, size)),
        ('speed', 'Speed', _speed(run, others)),
        ('settings', 'Settings', _settings(run)),
        ('environment', 'Environment', _environment(run)),
    ]
    now = datetime.datetime.now().strftime('%Y-%m-%d %H:%M')
    return page.page(
        run.name, f'{method.text} · {run.folder}', _summary(run), sections, f'Written {now} by mmsokd {__version__}'
    )


def _summary(run: Run) -> Html:
    planned, unit = run.planned
    progress = f'{unit} {run.reached}' + (f' of {planned}' if planned else '')
    state = 'finished' if run.is_finished else 'not finished'
    found = [
        ('method', method_of(run.config).text),
        ('student' if is_distiller(run.config) else 'network', students_text(run.config)),
    ]
    if is_distiller(run.config):
        found.append(('teacher', teachers_text(run.config)))
    found.append((state, progress))
    if run.metrics:
        steps, values = run.metric(run.metrics[0])
        found.append((f'{run.metrics[0]}, {run.val_unit} {steps[-1]}', number(values[-1])))
    if run.seconds is not None:
        found.append(('training time, without validation', duration(run.seconds)))
    notes = []
    if run.starts > 1:
        notes.append(f'Started {run.starts} times; iterations that were repeated are shown as they were the last time.')
    if run.earlier:
        notes.append(f'Left out: {run.earlier} earlier starts in this work dir, which this run did not go on with.')
    return page.join([page.cards(found), *map(page.text, notes)])


def _metrics(run: Run, others: Sequence[Run]) -> Html:
    parts = _validated(run, others)
    roles = {role_of(other, run) for other in others}
    if is_distiller(run.config):
        wanted = ['teacher', 'student alone'] if teachers_of(run.config) else ['student alone']
        for role in wanted:
            if role not in roles:
                parts.append(
                    page.missing(f'Not known: the metrics of the {role}. Give its work dir: --compare WORK_DIR')
                )
    if run.test:
        parts.append(page.heading('The last test in this work dir'))
        parts.append(page.pairs((key, number(value)) for key, value in run.test.items()))
    return page.join(parts)


def _validated(run: Run, others: Sequence[Run]) -> list[Html]:
    if not run.metrics:
        return [page.missing('The log has no validation: no val_dataloader, or the run has not come to one.')]
    runs = ordered([run, *others], run)
    shown, left = run.metrics[:METRICS], run.metrics[METRICS:]
    rows = []
    for other in runs:
        values = other.metric(shown[0])[1]
        best = number(best_of(shown[0], values)) if values else '-'
        cells = [_last(other, key) for key in shown]
        step = other.val[-1]['step'] if other.val else '-'
        rows.append([role_of(other, run), other.name, step, cells[0], best, *cells[1:]])
    head = ['role', 'run', f'last {run.val_unit}', shown[0], 'best of it', *shown[1:]]
    parts = [
        page.text('The last validation as MMEngine logged it, and the best of all validations.'),
        page.table(head, rows, main=len(rows) - 1),
        *_gains(run, others, shown[0]),
    ]
    if left:
        rows = [(key, _last(run, key)) for key in left]
        parts += [page.heading('More of the last validation'), page.pairs(rows)]
    return parts


def _gains(run: Run, others: Sequence[Run], key: str) -> Iterable[Html]:
    own = run.metric(key)[1]
    for other in others:
        values = other.metric(key)[1]
        if own and values:
            change = own[-1] - values[-1]
            better = change < 0 if is_less_better(key) else change > 0
            kind = 'up' if better else 'down' if change else ''
            gain = f'<b class="{kind}">{change:+.4g}</b>'
            against = page.safe(f'{key} against {role_of(other, run)} ({other.name})')
            yield page.text(Html(f'{against}: {gain}'))


def _last(run: Run, key: str) -> str:
    values = run.metric(key)[1]
    return number(values[-1]) if values else '-'


def _curves(run: Run, others: Sequence[Run]) -> Html:
    names = dict(loss='loss, all terms', lr='learning rate', grad_norm='norm of the gradient')
    found = [_column(run, key, title, log=key != 'lr') for key, title in names.items() if run.values(key)[0]]
    if run.metrics:
        measured = [metric_chart(ordered([run, *others], run), run.metrics[0], run)]
        measured += [metric_chart([run], key, run) for key in run.metrics[1:4]]
        found += [chart for chart in measured if any(len(line.x) > 1 for line in chart.lines)]
    parts = [page.charts(found)]
    if not run.train:
        parts.append(page.missing('The log has no row of the training.'))
    if not run.metrics:
        parts.append(page.missing('No validation, so no curve of a metric.'))
    elif len(run.val) == 1:
        parts.append(page.missing('One validation makes no curve; its metrics are in the table above.'))
    return page.join(parts)


def _column(run: Run, key: str, title: str, log: bool = False) -> Chart:
    return Chart(title, [Line(key, *run.values(key))], 'iteration', log=log)


def _losses(run: Run) -> Html:
    if not run.losses:
        return page.missing('The log has no row of the training.')
    groups: dict[str, list[str]] = {}
    for key in run.losses:
        groups.setdefault(_GROUPS.get(key.split('.')[0], "the network's own"), []).append(key)
    found = [
        Chart(title, [Line(key, *run.values(key)) for key in keys], 'iteration', 'weighted loss', log=True)
        for title, keys in groups.items()
    ]
    ends = {key: (run.values(key)[1][0], run.values(key)[1][-1]) for key in run.losses}
    total = sum(last for _, last in ends.values())
    rows = []
    for title, keys in groups.items():
        for key in keys:
            first, last = ends[key]
            rows.append([key, title, number(first), number(last), f'{100 * last / total:.1f}' if total else '-'])
    return page.join(
        [
            page.text('Each term with its weight: what is summed, and what the student learns from.'),
            page.charts(found),
            page.table(['term', 'of', 'first', 'last', 'share of the last sum (%)'], rows),
        ]
    )


def _policy(run: Run) -> Html:
    found = policies_of(run)
    if not found:
        method = method_of(run.config)
        if method.kind not in ('SoKD', 'TST') or 'areas alone' in method.text:
            return page.missing('This method has no policy.')
        return page.missing(
            'There is no vis_data/policy.json in this run: it was trained without PolicySearchHook or TSTHook, or by '
            'an earlier version of mmsokd.'
        )
    parts = []
    for name in found:
        if len(found) > 1 or name == 'augmenter':
            parts.append(page.heading("TST's image augmenter" if name == 'augmenter' else f'policy {name}'))
        lines = [(line['iter'], line[name]) for line in run.policy if name in line]
        ops = lines[-1][1]
        fixed = '' if name == 'augmenter' else ' After the search a policy is only sampled.'
        parts.append(page.text(f'{len(lines)} looks, at iterations {lines[0][0]} to {lines[-1][0]}.{fixed}'))
        parts.append(page.charts(policy_charts(run, name)))
        rows = [
            [op, f'{rate:.3f}', f'{ops["magnitude"][op]:.3f}' if op in ops['magnitude'] else '-']
            for op, rate in ops['fires'].items()
        ]
        parts.append(page.table(['operation', 'fires (share of draws)', 'magnitude (0 to 1)'], rows))
    names = {
        'sokd.aug': 'distance of refined teacher and student',
        'sokd.norm_ratio': 'norm of the refined feature / its own',
    }
    parts.append(_diagnostics(run, names))
    return page.join(parts)


def _diagnostics(run: Run, names: Mapping[str, str]) -> Html:
    found = [_column(run, key, f'{title} ({key})') for key, title in names.items() if run.values(key)[0]]
    return page.charts(found) if found else Html('')


def _areas(run: Run) -> Html:
    names = {
        'sokd.mask_cover': 'share of the map in areas',
        'sokd.heat_std': "the heatmap's standard deviation",
        'sokd.area_mean': 'mean area, cells',
    }
    measured = _diagnostics(run, names)
    if not run.drawings:
        if not measured:
            return page.missing('This run has no areas.')
        return page.join([measured, page.missing('No drawings: DAMHook has drawn nothing yet, or draws nothing.')])
    iteration, paths = list(run.drawings.items())[-1]
    left = sum(map(len, run.drawings.values())) - len(paths[:_DRAWINGS])
    more = f' {left} more are in vis_data/vis_image.' if left else ''
    return page.join(
        [
            page.text(f'The areas that student and teacher are compared in, at iteration {iteration}.{more}'),
            page.drawings(paths[:_DRAWINGS]),
            page.heading('In figures'),
            measured,
        ]
    )


def _costs(costs: Mapping[str, Cost] | str, size: tuple[int, int]) -> Html:
    if isinstance(costs, str):
        return page.missing(f'Not counted: {costs or "nobody asked for it"}.')
    rows, parts = [], []
    for name, cost in costs.items():
        flops = f'{cost.flops / 1e9:.3f}' if cost.flops is not None else '-'
        rows.append([name, f'{cost.parameters / 1e6:.3f}', flops])
        if cost.problem:
            parts.append(page.missing(f'{name}: the operations cannot be counted: {cost.problem}'))
    note = (
        f'Operations are multiply-adds for one picture of {size[0]} x {size[1]} pixels, as MMEngine counts them. '
        'Adapters and area heads learn beside the student; its export leaves them behind.'
    )
    return page.join([page.table(['network', 'parameters (M)', 'FLOPs (G)'], rows), *parts, page.text(note, 'note')])


def _speed(run: Run, others: Sequence[Run]) -> Html:
    if run.median('time') is None:
        return page.missing('The log has no times: IterTimerHook is off, or nothing was trained.')
    rows = []
    for other in [run, *others]:
        seconds, loading, memory = (other.median(key) for key in ('time', 'data_time', 'memory'))
        if seconds is None:
            continue
        size = other.batch_size
        rows.append(
            [
                other.name,
                f'{seconds:.4g}',
                f'{loading:.4g}' if loading is not None else '-',
                f'{size / seconds:.4g}' if size else '-',
                f'{memory:.0f}' if memory is not None else '-',
                duration(other.seconds),
            ]
        )
    head = ['run', 's / iteration', 'of it waiting for data (s)', 'pictures / s', 'GPU memory (MB)', 'iterations took']
    times = [Line(label, *run.values(key)) for key, label in (('time', 'whole'), ('data_time', 'waiting for data'))]
    return page.join(
        [
            page.text('Medians over the log.'),
            page.table(head, rows, main=0 if len(rows) > 1 else None),
            page.charts([Chart('time of an iteration', times, 'iteration', 'seconds')]),
        ]
    )


def _settings(run: Run) -> Html:
    cfg = run.config
    if not cfg:
        return page.missing('MMEngine has left no config beside the log.')
    planned, unit = run.planned
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    schedulers = cfg.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    data = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    rows = [
        ('model', _kind(cfg.get('model'))),
        ('length', f'{planned} {unit}s' if planned else 'not told'),
        ('pictures an iteration', run.batch_size or 'not told'),
        ('optimizer', _call(optimizer)),
        ('schedule', ', '.join(_kind(s) for s in schedulers) or 'constant'),
        ('precision', 'mixed' if 'Amp' in _kind(cfg.get('optim_wrapper')) else 'float32'),
        ('training data', _call({k: data[k] for k in ('type', 'data_root', 'ann_file') if k in data})),
        ('seed', (cfg.get('randomness') or {}).get('seed', 'not set')),
        ('hooks', ', '.join(_kind(hook) for hook in cfg.get('custom_hooks') or []) or 'none'),
    ]
    parts = [page.pairs(rows)]
    model = cfg.get('model') or {}
    if is_distiller(cfg):
        terms = []
        for name, term in (model.get('terms') or {}).items():
            taps = [term.get(key, term.get('tap', '-')) for key in ('student_tap', 'teacher_tap')]
            known = {'type', 'tap', 'student_tap', 'teacher_tap', 'loss_weight', 'teacher'}
            rest = ', '.join(f'{key}={value!r}' for key, value in term.items() if key not in known) or 'defaults'
            more = [term.get('teacher', 'teacher'), term.get('loss_weight', 1.0), rest]
            terms.append([name, _kind(term), *map(str, taps), *more])
        head = ['term', 'loss', 'student tap', 'teacher tap', 'teacher', 'weight', 'further']
        parts += [page.heading('Terms'), page.table(head, terms)]
        plugins = [(key, _call(model[key])) for key in ('refine', 'areas', 'augmenter') if model.get(key)]
        if plugins:
            parts += [page.heading('Plug-ins'), page.pairs(plugins)]
    parts.append(page.details('the whole config', cfg.pretty_text))
    return page.join(parts)


def _kind(part: Any) -> str:
    kind = part.get('type') if isinstance(part, Mapping) else None
    return str(getattr(kind, '__name__', kind) or 'default').rpartition('.')[2]


def _call(part: Mapping) -> str:
    rest = ', '.join(f'{key}={value!r}' for key, value in part.items() if key != 'type')
    return f'{_kind(part)}({rest})'


def _environment(run: Run) -> Html:
    if not run.environment:
        return page.missing('Not in the log: MMEngine tells it at log_level INFO, in the .log file of the run.')
    return page.pairs((key, value) for key, value in run.environment.items() if 'compiling details' not in key)
