"""Compare several runs: a table, and curves.

python tools/analysis/compare.py work_dirs/student work_dirs/fitnet work_dirs/sokd [--metric mIoU] [--out curves.png]
"""

import argparse
from pathlib import Path

from _reading import one_message, read

from mmsokd.visualization.charts import draw, save
from mmsokd.visualization.compare import comparison, comparison_charts, markdown


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dirs', type=Path, nargs='+', help='the first one is what the others are compared with')
    parser.add_argument('--metric', help='to compare by (default: what the first run keeps its best checkpoint by)')
    parser.add_argument(
        '--out', type=Path, help='file for the curves: .png, .svg or .pdf (default: compare.png in the first)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runs = [read(folder) for folder in args.work_dirs]
    out = args.out or args.work_dirs[0] / 'compare.png'
    with one_message():
        print(markdown(*comparison(runs, args.metric)))
        save(draw(comparison_charts(runs, args.metric), columns=3), out)
    print(f'\ncurves: {out}')


if __name__ == '__main__':
    main()
