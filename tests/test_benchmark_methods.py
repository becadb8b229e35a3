"""tools/benchmark/methods.py: a step of each config, and a table of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
