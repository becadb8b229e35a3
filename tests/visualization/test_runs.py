"""What is read of a work dir is what its log says, each iteration once, however often it was resumed."""

import io
import json

import pytest
from PIL import Image

from mmsokd.visualization.runs import best_of, main_metric, read_run
from tests.builders_runs import ENVIRONMENT, config, train_row, val_row, write_run

RESUMED = config(resume=True)


def rows_of(first, last, run, every=10, epoch=20):
    """Every tenth iteration, and a validation after each epoch of twenty; the run's number is in the values."""
    rows = []
    for i in range(first, last + 1, every):
        rows.append(train_row(i, -(-i // epoch), loss=run + i / 1000))
        if i % epoch == 0:
            rows.append(val_row(i // epoch, **{'accuracy/top1': 10 * run + i / epoch}))
    return rows


def test_one_run_is_its_log(tmp_path):
    rows = rows_of(10, 60, 1)
    write_run(tmp_path, '20260101_000000', rows, log=ENVIRONMENT)
    run = read_run(tmp_path)
    assert run.train == [row for row in rows if 'iter' in row]
    assert run.val == [row for row in rows if 'iter' not in row]
    assert run.values('loss') == ([10, 20, 30, 40, 50, 60], [1 + i / 1000 for i in (10, 20, 30, 40, 50, 60)])
    assert run.metric('accuracy/top1') == ([1, 2, 3], [11.0, 12.0, 13.0])
    assert (run.starts, run.earlier, run.iterations, run.val_unit) == (1, 0, 60, 'epoch')
    assert run.seconds == 60 * 2.0
    assert run.environment['Python'] == '3.11.2 (main) [GCC 12.2.0]'
    assert run.environment['seed'] == '7'
    assert run.batch_size == 8  # of two processes


def test_resumed_twice_each_iteration_is_shown_once_and_as_it_was_the_last_time(tmp_path):
    write_run(tmp_path, '20260101_000000', rows_of(10, 50, 1))
    write_run(tmp_path, '20260101_010000', rows_of(30, 40, 2), RESUMED)  # from iteration 20: 30 to 50 were lost
    write_run(tmp_path, '20260101_020000', rows_of(50, 60, 3), RESUMED)
    run = read_run(tmp_path)
    assert [int(row['loss']) for row in run.train] == [1, 1, 2, 2, 3, 3]
    assert [row['iter'] for row in run.train] == [10, 20, 30, 40, 50, 60]
    assert run.metric('accuracy/top1') == ([1, 2, 3], [11.0, 22.0, 33.0])
    assert (run.starts, run.earlier) == (3, 0)


def test_drawings_of_the_lost_branch_and_torn_ones_are_left_out(tmp_path):
    whole = io.BytesIO()
    Image.new('RGB', (8, 8)).save(whole, 'png')

    def draw(stamp, iteration, content):
        path = tmp_path / stamp / 'vis_data' / 'vis_image' / f'areas_loss_hint_0_{iteration}.png'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    write_run(tmp_path, '20260101_000000', rows_of(10, 50, 1))
    write_run(tmp_path, '20260101_010000', rows_of(30, 40, 2), RESUMED)
    kept = [draw('20260101_000000', 20, whole.getvalue()), draw('20260101_010000', 30, whole.getvalue())]
    draw('20260101_000000', 50, whole.getvalue())
    draw('20260101_010000', 40, whole.getvalue()[:-20])
    assert read_run(tmp_path).drawings == {20: kept[:1], 30: kept[1:]}


def test_a_validation_of_the_lost_branch_is_left_out(tmp_path):
    write_run(tmp_path, '20260101_000000', rows_of(10, 50, 1))
    write_run(tmp_path, '20260101_010000', rows_of(30, 30, 2), RESUMED)  # killed again before epoch 2 ends
    run = read_run(tmp_path)
    assert [row['iter'] for row in run.train] == [10, 20, 30]
    assert run.metric('accuracy/top1') == ([1], [11.0])


def test_a_new_training_in_the_same_folder_does_not_go_on_with_the_old_one(tmp_path):
    write_run(tmp_path, '20260101_000000', rows_of(5, 60, 1, every=5))
    write_run(tmp_path, '20260101_010000', rows_of(10, 20, 2))
    run = read_run(tmp_path)
    assert [int(row['loss']) for row in run.train] == [2, 2]
    assert (run.starts, run.earlier) == (1, 1)


def test_policy_of_a_resumed_run(tmp_path):
    first = [dict(iter=i, shared=dict(entropy=1.0)) for i in (0, 5, 10, 15)]
    second = [dict(iter=i, shared=dict(entropy=2.0)) for i in (10, 15, 20)]
    part = write_run(tmp_path, '20260101_000000', rows_of(10, 20, 1), policy=first)
    with (part / 'vis_data' / 'policy.json').open('a') as file:
        file.write('{"iter": 20, "sha')  # killed
    write_run(tmp_path, '20260101_010000', rows_of(20, 20, 2), RESUMED, policy=second)
    run = read_run(tmp_path)
    found = [(line['iter'], line['shared']['entropy']) for line in run.policy]
    assert found == [(0, 1.0), (5, 1.0), (10, 2.0), (15, 2.0), (20, 2.0)]


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    part = write_run(tmp_path, '20260101_000000', rows_of(10, 20, 1))
    with (part / 'vis_data' / 'scalars.json').open('a') as file:
        file.write('{"loss": 3.0, "it')
    assert read_run(tmp_path).iterations == 20


def test_names_with_hierarchy_are_the_plain_names(tmp_path):
    plain = rows_of(10, 20, 1)
    rows = [
        {key if key in ('iter', 'epoch', 'step') else f'{"train" if "iter" in row else "val"}/{key}': value}
        | {key: row[key] for key in ('iter', 'epoch', 'step') if key in row}
        for row in plain
        for key, value in [('loss' if 'iter' in row else 'accuracy/top1', row.get('loss', row.get('accuracy/top1')))]
    ]
    write_run(tmp_path, '20260101_000000', rows)
    run = read_run(tmp_path)
    assert run.values('loss')[1] == [row['loss'] for row in plain if 'iter' in row]
    assert run.metrics == ['accuracy/top1']


def test_iterations_are_the_unit_where_the_config_says_so(tmp_path):
    logger = dict(type='LoggerHook', interval=10, log_metric_by_epoch=False)
    cfg = config(train_cfg=dict(type='IterBasedTrainLoop', max_iters=65), default_hooks=dict(logger=logger))
    rows = [train_row(60, 1, 1.0), val_row(60, mIoU=40.0)]
    write_run(tmp_path, '20260101_000000', rows, cfg)
    run = read_run(tmp_path)
    assert (run.val_unit, run.planned, run.reached) == ('iteration', (65, 'iteration'), 60)
    assert not run.is_finished
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_65.pth')
    assert run.is_finished  # the next line of the log would have come at 70


@pytest.mark.parametrize(
    ('last', 'checkpoint', 'finished'),
    [(60, 'epoch_3.pth', True), (60, 'epoch_2.pth', False), (20, 'epoch_3.pth', False), (60, None, False)],
)
def test_finished_is_what_has_its_last_checkpoint(tmp_path, last, checkpoint, finished):
    """Another training's checkpoint may lie there still."""
    write_run(tmp_path, '20260101_000000', rows_of(10, last, 1))
    if checkpoint:
        (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/{checkpoint}')
    assert read_run(tmp_path).is_finished == finished


def test_the_last_test_is_read(tmp_path):
    write_run(tmp_path, '20260101_000000', rows_of(10, 20, 1))
    for stamp, value in (('20260102_000000', 1.0), ('20260103_000000', 2.0)):
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / f'{stamp}.json').write_text(json.dumps({'accuracy/top1': value, 'time': 0.1}))
    assert read_run(tmp_path).test == {'accuracy/top1': 2.0}


def test_the_metric_that_the_best_checkpoint_is_kept_by(tmp_path):
    keys = ['single-label/f1-score', 'accuracy/top5', 'accuracy/top1']
    assert main_metric(keys, config()) == 'accuracy/top1'
    hooks = dict(checkpoint=dict(save_best='accuracy/top5'))
    assert main_metric(keys, config(default_hooks=hooks)) == 'accuracy/top5'
    assert main_metric(['aAcc', 'mIoU'], config()) == 'mIoU'
    assert best_of('mIoU', [1, 3, 2]) == 3
    assert best_of('val_loss', [1, 3, 2]) == 1


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda path: path / 'none', 'expected a folder that a training has written, found none'),
        (lambda path: path, r'with <time>/vis_data/scalars\.json in it, found none'),
        (lambda path: write_run(path, '20260101_000000', rows_of(10, 10, 1)), r"found one run's, .*; give '"),
        (lambda path: write_run(path / 'my_run', '20260101_000000', rows_of(10, 10, 1)).parents[1], r"\['my_run'\]"),
        (lambda path: write_run(path, '20260101_000000', []).parent, r"needs dict\(type='LocalVisBackend'\)"),
        (lambda path: write_run(path, '20260101_000000', [dict(a=1)]).parent, 'expected rows of losses or metrics'),
    ],
    ids=['none', 'empty', 'too deep', 'too high', 'other backends', 'no rows'],
)
def test_what_is_no_work_dir_is_told(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        read_run(make(tmp_path))
