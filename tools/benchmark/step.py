"""Compare training steps with their floor, the student's own step and its teacher's forward to the deepest tap.

python tools/benchmark/step.py --case retinanet --side 256 --batch-size 2 --rounds 5

All steps of a case run in turns in one process, with random weights and pictures; each is the whole of ``train_step``,
and of PolicySearchHook. docs/benchmarks.md tells how to read the table.
"""

import argparse

from _cases import CASES, PACES, add_sizes, variants
from _measure import (
    MIB,
    Memory,
    Spread,
    Variant,
    add_rounds,
    clock_name,
    markdown,
    memory,
    operations,
    ratios,
    times,
    write,
)

from mmsokd.distillers.cache import DTYPES

FLOOR = ('student alone', 'teacher, to the tap')
HEAD = ('step', 'ms', 'times the floor', 'peak MiB', 'times the floor')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--case', nargs='+', choices=[*CASES], default=[*CASES], help='pairs of networks')
    parser.add_argument('--skip', nargs='*', default=[], help='names of steps to leave out, such as "SoKD, unrolled"')
    parser.add_argument('--memory-rounds', type=int, default=3, help='runs of each whose memory is looked at')
    parser.add_argument(
        '--profile', type=int, default=0, help='show so many operations that make up what is above the floor'
    )
    parser.add_argument('--cached', choices=DTYPES, help="the plain host also with its teacher's outputs on disk")
    parser.add_argument('--sokd-width', type=int, help="of SoKD's adapters and area heads; the config's by default")
    parser.add_argument(
        '--pace', nargs='*', default=[], choices=[*PACES], help='run the plain host with such a teacher too'
    )
    add_sizes(parser)
    add_rounds(parser)
    return parser.parse_args()


def floor_of(seconds: dict[str, list[float]], held: dict[str, Memory]) -> tuple[list[float], Memory]:
    """Both parts, one after the other: the times add up, of the memory both models lie there all the time."""
    time = [sum(pair) for pair in zip(*(seconds[name] for name in FLOOR), strict=True)]
    parts = [held[name] for name in FLOOR]
    highest = [max(pair) for pair in zip(*(part.peaks for part in parts), strict=True)]
    return time, Memory(sum(part.resident for part in parts), highest)


def table(seconds: dict[str, list[float]], held: dict[str, Memory]) -> str:
    """The median of each, and its middle half; ratios are those of one round."""
    time, memory = floor_of(seconds, held)
    rows = []
    for name in ('floor', *seconds):
        own, its = (time, memory) if name == 'floor' else (seconds[name], held[name])
        shown = Spread.of(own).text(1e-3, 1), Spread.of(its.total).text(MIB, 0)
        rows.append([name, shown[0], ratios(own, time).text(), shown[1], ratios(its.total, memory.total).text()])
    return markdown(HEAD, rows)


def above_the_floor(steps: dict[str, Variant], name: str, args: argparse.Namespace) -> str:
    """The operations on which the step ``name`` spends most beyond both parts of the floor, by their own time."""
    spent = {key: operations(steps[key], args.rounds) for key in (*FLOOR, name)}
    base = {op: sum(spent[key].get(op, 0.0) for key in FLOOR) for op in spent[name]}
    total = sum(sum(spent[key].values()) for key in FLOOR)
    more = sorted(((own - base[op], op) for op, own in spent[name].items()), reverse=True)[: args.profile]
    rows = [[op, f'{1000 * value:.1f}', f'{100 * value / total:.1f}'] for value, op in more]
    return markdown([f'{name}: operation', 'ms above the floor', '% of the floor'], rows)


def main() -> None:
    args = parse_args()
    figures = {}
    for name in args.case:
        case = CASES[name]
        steps = {key: step for key, step in variants(case, args).items() if key not in args.skip}
        seconds = times(steps, args)
        held = memory(steps, args.memory_rounds)
        side, batch_size = args.side or case.side, args.batch_size or case.batch_size
        title = f'{name}, {batch_size} pictures of {side} x {side}, width {args.width:g}, {args.amp or "float32"}'
        print(f'\n{title}; {clock_name(args.wall)}\n\n{table(seconds, held)}', flush=True)
        if args.profile:
            print(f'\n{above_the_floor(steps, "SoKD, searching", args)}', flush=True)
        kept = {key: own._asdict() for key, own in held.items()}
        figures[name] = dict(title=title, clock=clock_name(args.wall), seconds=seconds, memory=kept)
        del steps  # the next case needs the memory
    write(args.json, figures)


if __name__ == '__main__':
    main()
