"""Turn a distiller's checkpoint into one that the plain student config loads strictly.

python tools/export_student.py work_dirs/sokd/epoch_12.pth student.pth [--config my_student.py]
python tools/export_student.py work_dirs/sftn/epoch_12.pth teacher.pth --part teacher
"""

import argparse
from pathlib import Path

from mmsokd.checkpoint import load_checkpoint
from mmsokd.distillers.build import build_model
from mmsokd.export import export_part, load_student, save_atomically


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='checkpoint of a distiller, or of SFTNTeacherTrainer')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--part',
        default='student',
        help="what of it: 'student'; of SFTNTeacherTrainer 'teacher', or 'branches.0', the student's stages after the "
        'first, its neck and its head, to start a student from (default: student)',
    )
    parser.add_argument('--config', help='plain config of that model, into which the result is then loaded as a check')
    parser.add_argument('--trust-checkpoint', action='store_true', help='read it by pickle, which may run code in it')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not Path(args.checkpoint).is_file():
        raise SystemExit(f'checkpoint: expected a file, found none at {args.checkpoint!r}')
    exported = export_part(load_checkpoint(args.checkpoint, trust=args.trust_checkpoint), args.part)
    save_atomically(exported, args.out)
    if args.config:
        load_student(build_model('config', args.config), args.out, args.trust_checkpoint)
    before, after = (Path(p).stat().st_size / 2**20 for p in (args.checkpoint, args.out))
    print(f'{args.out}: {len(exported["state_dict"])} tensors, {after:.1f} MiB (checkpoint: {before:.1f} MiB)')


if __name__ == '__main__':
    main()
