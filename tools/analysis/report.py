"""Write one self-contained HTML page of a run.

python tools/analysis/report.py work_dirs/my_sokd [--compare work_dirs/student work_dirs/teacher] [--out report.html]

The teacher's run is found by itself where its checkpoint lies in its work dir.
"""

import argparse
from contextlib import suppress
from pathlib import Path

from _reading import import_own, one_message, read, say
from mmengine.logging import MMLogger

from mmsokd.checkpoint import write_atomically
from mmsokd.visualization.complexity import Cost, costs_of, picture_size
from mmsokd.visualization.describe import teacher_folders
from mmsokd.visualization.report import write_report
from mmsokd.visualization.runs import Run, read_run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path, help='of a training')
    parser.add_argument(
        '--compare', type=Path, nargs='+', default=[], help='other work dirs: student alone, teacher, host'
    )
    parser.add_argument('--out', type=Path, help='file to write (default: report.html in the work dir)')
    return parser.parse_args()


def count(run: Run, size: tuple[int, int]) -> dict[str, Cost] | str:
    """The costs of a run's networks, or why they cannot be counted."""
    if 'model' not in run.config:
        return 'the run has left no config of its model'
    say(f'counting the operations for a picture of {size[0]} x {size[1]} pixels ...')
    try:
        import_own(run.config)
        return costs_of(run.config, size)
    except Exception as error:  # what a config builds may fail in any way; the page is worth writing all the same
        return f'the model of the config cannot be built here: {error}'.splitlines()[0]


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('report', log_level='ERROR')  # models tell of random weights, which here are meant
    run = read(args.work_dir)
    others = {folder.resolve(): read(folder) for folder in args.compare}
    for folder in teacher_folders(run):  # nobody named these: one that cannot be read is left out
        with suppress(ValueError):
            others.setdefault(folder.resolve(), read_run(folder))
    others.pop(run.folder.resolve(), None)
    size = picture_size(run.config)
    html = write_report(run, list(others.values()), count(run, size), size)
    out = args.out or args.work_dir / 'report.html'
    with one_message():
        out.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(out) as file:
            file.write(html.encode())
    print(f'{out}: {len(html.encode()) / 2**20:.1f} MiB, for any browser, without a network')


if __name__ == '__main__':
    main()
