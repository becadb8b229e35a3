"""tools/benchmark/methods.py: a step of each config, and a table of them."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmsokd.distillers.schedule import Clock
from tests.test_launch import environment

ROOT = Path(__file__).parents[1]
TIN = 'configs/classification/tin100'
NAMES = [
    'resnet8x4_4e_tin100',
    'kd_resnet32x4-resnet8x4_4e_tin100',
    'tst_sokd_studentfriendlykd_resnet32x4-resnet8x4_4e_tin100',
    'sftn_resnet32x4-resnet8x4_12e_tin100',
]


def benchmark(*args):
    command = [sys.executable, 'tools/benchmark/methods.py', *args]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_each_config_has_its_rows(tmp_path):
    small = ['--side', '32', '--batch-size', '2', '--rounds', '2', '--warm-up', '1']
    done = benchmark(*(f'{TIN}/{name}.py' for name in NAMES), *small, '--json', tmp_path / 'times.json')
    assert done.returncode == 0, done.stdout[-3000:]
    times = json.loads((tmp_path / 'times.json').read_text())
    assert list(times) == [*NAMES[:2], f'{NAMES[2]}, searching', *NAMES[2:]]
    assert all(len(own) == 2 and min(own) > 0 for own in times.values())
    rows = [line.rstrip(' |').split(' | ') for line in done.stdout.splitlines() if line.startswith('| ')][2:]
    assert [row[0][2:] for row in rows] == list(times)
    assert rows[0][2] == '1.00'


@pytest.mark.parametrize(
    ('paths', 'message'),
    [
        (['configs/detection/bccd/bccd.py'], 'expected a config to train'),
        ([f'{TIN}/{NAMES[0]}.py'] * 2, 'expected another file name than that of a config before it'),
    ],
)
def test_what_is_no_row_is_told(paths, message):
    done = benchmark(*paths, '--side', '32', '--batch-size', '2')
    assert done.returncode == 1
    assert message in done.stdout.splitlines()[-1]


def test_a_step_is_an_iteration_of_a_training_that_ends(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmark'))
    methods = importlib.import_module('methods')
    args = argparse.Namespace(width=0.25, side=32, batch_size=2, amp=None, rounds=3, warm_up=1)
    path = str(ROOT / TIN / 'iakd_kd_resnet32x4-resnet8x4_4e_tin100.py')
    found, weights = [], []
    for _ in range(2):
        step = methods.variants_of(path, args)[Path(path).stem]
        model = step.run.__self__.model
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        model.train_step = lambda batch, wrapper, model=model: found.append((Clock.now(), model.swap.draw()))
        for _ in range(4):
            step.run(step.prepare())
    assert [clock for clock, _ in found] == [Clock(i, 4, 4) for i in range(4)] * 2
    assert [clock.progress for clock, _ in found[:4]] == [0, 0.25, 0.5, 0.75]
    draws = [drawn for _, drawn in found]
    assert draws[:4] == draws[4:]  # the seed is the same
    assert draws[0] != draws[1] or draws[1] != draws[2]  # and not one draw again and again
    assert draws[3] == [False] * 3  # the probability has fallen to 0
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_mean_stands_beside_the_median(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmark'))
    methods = importlib.import_module('methods')
    rows = methods.table(dict(kd=[1.0, 1.0, 1.0, 1.0], iakd=[1.0, 1.0, 1.0, 5.0])).splitlines()
    assert rows[2] == '| kd | 1000.0 | 1.00 | 1.00 |'
    assert rows[3].startswith('| iakd | 1000.0 (1000.0 - ')
    assert rows[3].endswith(' | 2.00 |')
