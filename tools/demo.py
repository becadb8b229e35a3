"""The demo: a teacher, a student alone, and the same student with SoKD, on pictures made here.

    python tools/demo.py [--work-dir work_dirs/demo] [--epochs N] [--seed 0]

Ends with a table of what was measured, whoever wins, and a page, ``report.html``, with curves, policy and areas.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'detection' / 'demo'
TEACHER = 'retinanet_r18-wide_shapes.py'
STUDENT = 'retinanet_r18-narrow_shapes.py'
SOKD = 'sokd_fitnet_retinanet_r18-narrow_shapes.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--epochs', type=int, help="instead of the configs' own, for a quick look")
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def say(text: str) -> None:
    print(text, flush=True)


def make_data(folder: Path, seed: int) -> None:
    marker = folder / 'annotations' / 'instances_val.json'
    if marker.is_file():
        say(f'data: {folder} is there already')
        return
    command = [
        sys.executable,
        str(ROOT / 'tools' / 'data' / 'make_shapes.py'),
        '--out',
        str(folder),
        '--train',
        '560',  # with 800 all three runs took 7:40 on two quiet cores; 8 minutes is what the demo may take on busy ones
        '--seed',
        str(seed),
    ]
    subprocess.run(command, check=True)


def train(name: str, config: str, args: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Train in a process of its own, print its progress lines, and read what it measured from its log."""
    folder = args.work_dir / name
    shutil.rmtree(folder, ignore_errors=True)
    options = [f'data_root={args.work_dir}/data/', f'randomness.seed={args.seed}', *data_options(args), *options]
    if args.epochs:
        options += [f'train_cfg.max_epochs={args.epochs}', f'train_cfg.val_interval={args.epochs}']
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(CONFIGS / config), '--work-dir', str(folder)]
    command += ['--cfg-options', *options]
    say(f'\n== {name}: {config}')
    begin = time.time()
    folder.mkdir(parents=True)
    log = folder / 'console.log'
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}  # its progress must come through the pipe line by line
    with log.open('w') as file:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            file.write(line)
            if 'Epoch(train)' in line or ('Epoch(val)' in line and 'coco/' in line):
                say('  ' + shorten(line))
    if process.wait():
        tail = ''.join(log.read_text().splitlines(keepends=True)[-20:])
        raise SystemExit(f'{name}: training failed; the end of {log}:\n{tail}')
    return {'run': name, 'minutes': (time.time() - begin) / 60, 'log': str(log), **read_scalars(folder)}


def data_options(args: argparse.Namespace) -> list[str]:
    """`data_root` stands in four places of a resolved config."""
    root = f'{args.work_dir}/data/'
    loaders = [f'{part}_dataloader.dataset.data_root={root}' for part in ('train', 'val', 'test')]
    ann = f'{root}annotations/instances_val.json'
    return [*loaders, f'val_evaluator.ann_file={ann}', f'test_evaluator.ann_file={ann}']


def shorten(line: str) -> str:
    """The message without date and logger."""
    return line.split(' - ', 3)[-1].strip()[:150]


def read_scalars(folder: Path) -> dict[str, Any]:
    """AP of the last evaluation and the median seconds of a step."""
    (path,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    times = sorted(row['time'] for row in rows if 'loss' in row and 'time' in row)
    (*_, last) = (row for row in rows if 'coco/bbox_mAP' in row)
    return {'AP': 100 * last['coco/bbox_mAP'], 'AP50': 100 * last['coco/bbox_mAP_50'], 's/step': times[len(times) // 2]}


def count_parameters(config: str) -> float:
    """Millions of parameters of a plain model config."""
    from mmsokd.distillers.build import build_model

    return sum(p.numel() for p in build_model('config', str(CONFIGS / config)).parameters()) / 1e6


def table(rows: list[dict[str, Any]]) -> str:
    lines = ['| run | AP | AP50 | params (M) | s/step | minutes | log |', '|---|---|---|---|---|---|---|']
    for row in rows:
        lines.append(
            '| {run} | {AP:.1f} | {AP50:.1f} | {params:.2f} | {s/step:.2f} | {minutes:.1f} | {log} |'.format(**row)
        )
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    begin = time.time()
    make_data(args.work_dir / 'data', seed=0)
    checkpoint = args.work_dir / 'teacher' / 'last.pth'
    teacher = train('teacher', TEACHER, args, [])
    shutil.copy((args.work_dir / 'teacher' / 'last_checkpoint').read_text().strip(), checkpoint)
    student = train('student', STUDENT, args, [])
    sokd = train('student+SoKD', SOKD, args, [f'model.teacher.checkpoint={checkpoint}'])
    rows = [teacher, student, {**sokd, 'run': 'student + SoKD'}]
    for row, config in zip(rows, (TEACHER, STUDENT, STUDENT), strict=True):
        row['params'] = count_parameters(config)
    page = write_report(args.work_dir)
    gain = rows[2]['AP'] - rows[1]['AP']
    say(
        f'\n{table(rows)}\n\n'
        f'SoKD against the student alone: {gain:+.1f} AP, one seed ({args.seed}), in {(time.time() - begin) / 60:.1f} '
        'minutes. A\nteacher and pictures of this size show that the parts work; they do not measure the method.\n\n'
        f'report, for a browser: {page}'
    )


def write_report(folder: Path) -> Path:
    """The page of the run with SoKD, beside the other two."""
    page = folder / 'report.html'
    tool = ROOT / 'tools' / 'analysis' / 'report.py'
    command = [sys.executable, '-W', 'ignore', str(tool), str(folder / 'student+SoKD'), '--out', str(page)]
    subprocess.run([*command, '--compare', str(folder / 'student'), str(folder / 'teacher')], check=True)
    return page


if __name__ == '__main__':
    main()
