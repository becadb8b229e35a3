"""Plot how a run's policy came to be: sub-policies, firing rates, magnitudes.

python tools/analysis/policy.py work_dirs/my_sokd [--out policy.png]
"""

import argparse
from pathlib import Path

from _reading import one_message, read

from mmsokd.visualization.charts import draw, save
from mmsokd.visualization.policy import policies_of, policy_charts


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path, help='of a training with PolicySearchHook or TSTHook')
    parser.add_argument(
        '--out', type=Path, help='file to write: .png, .svg or .pdf (default: policy.png in the work dir)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    run = read(args.work_dir)
    names = policies_of(run)
    if not names:
        raise SystemExit(
            f'work dir: expected lines in vis_data/policy.json, found none in {str(args.work_dir)!r}; PolicySearchHook '
            'and TSTHook write them'
        )
    out = args.out or args.work_dir / 'policy.png'
    for name in names:
        target = out if len(names) == 1 else out.with_stem(f'{out.stem}_{name}')
        with one_message():
            save(draw(policy_charts(run, name), columns=2), target)
        print(f'{target}: policy {name}, to iteration {run.policy[-1]["iter"]}')


if __name__ == '__main__':
    main()
