"""Distil a teacher into a student: from two plain configs to a distiller's, and to a trained student.

    python tools/distill.py STUDENT_CONFIG TEACHER_CONFIG --teacher-checkpoint FILE --method sokd-fitnet
    python tools/distill.py --list-taps CONFIG

Both configs are mmdet's, mmsegmentation's or mmpretrain's, as paths or as scope::path. What it writes is an ordinary
config that you own; --dry-run stops there. Flags of tools/train.py (--amp, --resume, --cfg-options, ...) come last.
"""

import argparse
import logging
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmengine.logging import MMLogger
from train import train_parser

from mmsokd.checks import nearest
from mmsokd.distillers.base import Distiller
from mmsokd.recipes.methods import Found, Method, find_method
from mmsokd.recipes.pairing import Plan, make_plan
from mmsokd.recipes.sides import Side, check_classes, check_pair, count_pictures, read_side, survey_sides
from mmsokd.recipes.survey import Survey
from mmsokd.recipes.tables import columns, count_text, pairing_table, tap_tree
from mmsokd.recipes.writing import Files, build_config, check_copy, check_place, draft, text_copy, write_text

TOOLS = Path(__file__).resolve().parent


def parse_args(args: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('student', nargs='?', metavar='STUDENT_CONFIG', help='config of the student')
    parser.add_argument('teacher', nargs='?', metavar='TEACHER_CONFIG', help='config of the teacher')
    parser.add_argument('--teacher-checkpoint', metavar='FILE', help='weights of the teacher, a file or URL')
    parser.add_argument(
        '--method',
        default='sokd-fitnet',
        help="a host of docs/hosts.md, such as fitnet, pkd, cwd or kd; with 'sokd-' before it SoKD is added "
        '(default: sokd-fitnet)',
    )
    parser.add_argument('--work-dir', help='of the training; by default ./work_dirs/<name of the config>')
    parser.add_argument(
        '--out', type=Path, help='config to write; by default ./<method>_<name of the student config>.py'
    )
    parser.add_argument('--force', action='store_true', help='write over it, even if you have changed it')
    parser.add_argument('--dry-run', action='store_true', help='write the config and show the pairing; do not train')
    parser.add_argument(
        '--student-tap', metavar='TAP', help="instead of the method's: path.of.module[level], or several with commas"
    )
    parser.add_argument('--teacher-tap', metavar='TAP', help='likewise, of the teacher')
    parser.add_argument(
        '--probe-size', type=int, metavar='PIXELS', help='side of the picture on which shapes are found'
    )
    parser.add_argument('--list-taps', metavar='CONFIG', help="show a model's modules with their outputs, and stop")
    parser.add_argument('--depth', type=int, default=2, help='of the tree that --list-taps shows (default: 2)')
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='read checkpoints by pickle, which may run code'
    )
    known, rest = parser.parse_known_args(args)
    if known.teacher is None and rest and not rest[0].startswith('-'):
        known.teacher = rest.pop(0)  # argparse takes no second positional behind a flag
    if known.list_taps is None and known.teacher is None:
        parser.error('expected STUDENT_CONFIG and TEACHER_CONFIG, or --list-taps CONFIG')
    if known.trust_checkpoint:
        rest.append('--trust-checkpoint')
    strange = train_parser().parse_known_args([known.student or '', *rest])[1]  # told before anything is built
    if strange:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = nearest(strange[0], flags, n=1)
        parser.error(f'unrecognized arguments: {" ".join(strange)}{f"; nearest: {near[0]}" if near else ""}')
    return known, rest


def say(text: str = '') -> None:
    print(text, flush=True)


def tell(text: str = '') -> None:
    """What is going on, apart from what comes of it."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def plainly() -> Iterator[None]:
    """What a user can mend is told in one message, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise SystemExit(f'distill: {text}') from error


def quieten() -> None:
    """Only what concerns the user: building two models makes the libraries talk."""
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel(logging.ERROR)


def list_taps(args: argparse.Namespace) -> None:
    side = read_side('--list-taps', args.list_taps)
    (survey,) = survey_sides([side], args.probe_size)
    say(f'{side.name} of {side.source} ({side.task}, {count_text(side.model)} parameters)')
    say(f'Outputs for a picture of {survey.size} x {survey.size} pixels. Each name is a tap; [i] is one level of it.')
    say()
    say(tap_tree(survey, args.depth))
    if survey.stopped:
        say(f'\nThe forward ended early, so that some modules did not run: {survey.stopped}')


def check_checkpoint(args: argparse.Namespace) -> None:
    file = args.teacher_checkpoint
    if file is None:
        if not args.dry_run:
            raise ValueError(
                '--teacher-checkpoint: expected the weights of the teacher, found none; a look at the pairing, '
                'without them, is --dry-run'
            )
        return
    if '://' in file or Path(file).is_file():
        return
    folder = Path(file).parent
    near = nearest(Path(file).name, [p.name for p in folder.glob('*.pth')], n=1) if folder.is_dir() else []
    hint = f'; nearest in {folder}: {near[0]}' if near else ''
    raise FileNotFoundError(f'--teacher-checkpoint: expected a file or URL, found no file {file!r}{hint}')


def read_sides(args: argparse.Namespace) -> tuple[Side, Side, Method]:
    student, teacher = read_side('student', args.student), read_side('teacher', args.teacher)
    check_pair(student, teacher)
    method = find_method('--method', args.method, student.task)
    if method.host.on_logits:
        check_classes(f'--method {method.name}', student, teacher)
    return student, teacher, method


def plan_for(args: argparse.Namespace, method: Method, student: Side, surveys: list[Survey]) -> Plan:
    pictures = None
    if Found.PICTURES in method.host.options.values():
        pictures = count_pictures(f'--method {method.name}', student.cfg)
    try:
        return make_plan(method, *surveys, taps=(args.student_tap, args.teacher_tap), pictures=pictures)
    except ValueError as error:
        raise ValueError(
            f'{method.name} from {args.teacher} to {args.student} is not possible as it is: {error}\n'
            "See what there is by 'python tools/distill.py --list-taps CONFIG', and choose by --student-tap and "
            '--teacher-tap.'
        ) from error


def build(student: Side, teacher: Side, plan: Plan, files: Files) -> Distiller:
    """The distiller of the config that is about to be written."""
    with ExitStack() as drafts:
        if files.copy is not None:
            files = files._replace(copy=drafts.enter_context(draft(text_copy(student), files.copy)))
        path = drafts.enter_context(draft(write_text(student, teacher, plan, files), files.out))
        try:
            return build_config(path)
        except (ValueError, TypeError, OSError, KeyError, RuntimeError) as error:
            told = str(error.args[0] if isinstance(error, KeyError) else error)
            told = told.replace('teacher.checkpoint:', '--teacher-checkpoint:', 1)
            raise ValueError(f'the two do not go together like this, and nothing is written. {told}') from error


def show(student: Side, teacher: Side, method: Method, plan: Plan, distiller: Distiller, surveys: list[Survey]) -> None:
    say(columns([(s.key, s.name, count_text(s.model), 'parameters', s.source) for s in (student, teacher)]))
    say(f'{method.name}, {method.task}; shapes of a picture of {plan.probe_size} x {plan.probe_size} pixels')
    say()
    say(pairing_table(distiller, *surveys))
    extra = [(key, getattr(distiller, key)) for key in ('terms', 'areas') if getattr(distiller, key) is not None]
    told = ', '.join(f'{key} {count_text(part)}' for key, part in extra)
    say(f'\nParameters beside the student, in training only: {told}')
    if 'at' in (plan.refine or {}):
        say(f"SoKD refines the teacher's {plan.refine['at']!r} in its place, and the logits follow.")
    for remark in plan.remarks:
        say(f'Note: {remark}')
    if method.host.untried:
        say(f'Note: the loss weight is {method.host.source}.')
    if teacher.parameters < student.parameters:
        say('Note: the teacher has fewer parameters than the student. Are the two configs in the right order?')


def command(tool: str, *args: object) -> str:
    """A line to paste into the shell, from where we are."""
    path = TOOLS / tool
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return ' '.join(['  ' + ('python ' if tool.endswith('.py') else '') + str(path), *map(str, args)])


def propose(args: argparse.Namespace) -> tuple[Path, Path] | None:
    """Pair both models, show it, and write the config; its place and the work dir, or None where it is not written."""
    check_checkpoint(args)
    tell('building both models ...')
    student, teacher, method = read_sides(args)
    tell('running each once, to see its shapes ...')
    surveys = survey_sides([student, teacher], args.probe_size)
    plan = plan_for(args, method, student, surveys)
    out = args.out or Path(f'{method.name.replace("-", "_")}_{Path(student.source).stem}.py')
    work_dir = Path(args.work_dir or Path('work_dirs') / out.stem)
    copy = out.with_name(f'{Path(student.source).stem}_text.py') if student.new_style else None
    files = Files(out, args.teacher_checkpoint, args.trust_checkpoint, copy)
    texts = {out: write_text(student, teacher, plan, files)}
    if copy is not None:
        texts[copy] = text_copy(student)
    if args.teacher_checkpoint is not None:
        check_place(out, work_dir, texts[out], args.force)
        if copy is not None:
            check_copy(copy, student, texts[copy], args.force)
    tell('building the distiller ...')
    distiller = build(student, teacher, plan, files)
    tell()
    show(student, teacher, method, plan, distiller, surveys)
    if args.teacher_checkpoint is None:
        say('\nNothing is written without --teacher-checkpoint.')
        return None
    for place, text in texts.items():
        place.write_text(text, encoding='utf-8')
    say(f'\nWritten: {out}. It builds; read it, change it, it is yours.')
    if copy is not None:
        say(f"Written: {copy}, its base: the student's config in the text style, since a text takes no other.")
    return out, work_dir


def train(args: argparse.Namespace, out: Path, work_dir: Path, rest: list[str]) -> int:
    """Train in a process of its own, which has the memory for itself, and say what is there afterwards."""
    words = [str(TOOLS / 'train.py'), str(out), '--work-dir', str(work_dir), *rest]
    say(f'Training: python {shlex.join(words)}\n')
    code = subprocess.run([sys.executable, *words], check=False).returncode
    last = work_dir / 'last_checkpoint'
    if code or not last.is_file():
        return code
    checkpoint = work_dir / Path(last.read_text().strip()).name
    student = checkpoint.with_name(f'student_{checkpoint.name}')
    say(f'\nCheckpoint: {checkpoint}\nStudent alone: {student}, for {args.student}\nTest either by')
    say(command('test.py', out, checkpoint))
    if '::' not in args.student:
        say(command('test.py', args.student, student))
    return code


def main() -> None:
    args, rest = parse_args()
    quieten()
    with plainly():
        if args.list_taps is not None:
            list_taps(args)
            return
        written = propose(args)
    if written is None:
        return
    out, work_dir = written
    if not args.dry_run:
        raise SystemExit(train(args, out, work_dir, rest))
    flags = [*(['--work-dir', args.work_dir] if args.work_dir else []), *rest]
    say('Train it by one of')
    say(command('train.py', out, *flags))
    say(command('dist_train.sh', out, 8, *flags, ' # 8 GPUs'))


if __name__ == '__main__':
    main()
