"""Train a config of mmsokd, mmdet, mmsegmentation or mmpretrain."""

import argparse

from _cli import load_config, make_parser, train
from mmengine.config import Config

import mmsokd  # noqa: F401  registers the scope, so that a config may use it without custom_imports


def train_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the batch size ('auto_scale_lr')"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to resume from; without a path, the latest one in the work dir',
    )
    return parser


def use_amp(cfg: Config) -> None:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    kind = getattr(kind, '__name__', kind)  # new-style configs name classes
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise SystemExit(f"--amp: expected optim_wrapper.type 'OptimWrapper', found {kind!r}; the config decides then")
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise SystemExit("--auto-scale-lr: expected 'auto_scale_lr.base_batch_size' in the config, found none")
    cfg.auto_scale_lr.enable = True


def main() -> None:
    args = train_parser().parse_args()
    cfg = load_config(args)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        scale_lr(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    train(cfg)


if __name__ == '__main__':
    main()
