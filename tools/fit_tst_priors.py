"""Fit TST's learned priors: networks that imitate the image operators, for ImageAugmenter(prior='learned').

python tools/fit_tst_priors.py data/tin100/train tst_priors.pth [--size 32]

The authors' first stage (arXiv 2212.05422): AdamW at 1e-3, times 0.999 after each iteration, batches of 64, 10 epochs
for what warps and 20 for what colours, torchvision's operators as targets. Ours: mean squared error, magnitudes drawn
uniformly, both signs, and the networks themselves (mmsokd/augment/image_priors.py).
"""

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from mmsokd.augment.image_ops import IMAGE_OPS
from mmsokd.augment.image_priors import IMITATED, build_prior
from mmsokd.augment.warping import Canvas
from mmsokd.export import save_atomically

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp'}


def target(name: str, x: Tensor, v: float) -> Tensor:
    """What torchvision makes of one picture (3, H, W) in [0, 1], at our strength."""
    height, width = x.shape[1:]
    warps = dict(
        ShearX=dict(shear=[math.degrees(math.atan(v)), 0.0]),
        ShearY=dict(shear=[0.0, math.degrees(math.atan(v))]),
        TranslateX=dict(translate=[v * width, 0.0]),
        TranslateY=dict(translate=[0.0, v * height]),
        Rotate=dict(angle=-v),  # affine's angle is clockwise
    )
    if name in warps:
        still = dict(angle=0.0, translate=[0.0, 0.0], scale=1.0, shear=[0.0, 0.0])
        return TF.affine(x, **{**still, **warps[name]}, interpolation=TF.InterpolationMode.BILINEAR)
    whole = (x * 255).round().to(torch.uint8)
    colours = dict(
        Brightness=lambda: TF.adjust_brightness(x, 1 + v),
        Color=lambda: TF.adjust_saturation(x, 1 + v),
        Contrast=lambda: TF.adjust_contrast(x, 1 + v),
        Sharpness=lambda: TF.adjust_sharpness(x, 1 + v),
        Posterize=lambda: TF.posterize(whole, 8 - round(v)) / 255,
        Solarize=lambda: TF.solarize(x, v),
        Equalize=lambda: TF.equalize(whole) / 255,
    )
    return colours[name]()


def strengths(name: str, n: int, generator: torch.Generator) -> Tensor | None:
    """``n`` strengths of the operator, or None where it has none; Posterize's are whole bits, as torchvision's."""
    op = IMAGE_OPS[name]
    if op.lo is None:
        return None
    signs = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    levels = torch.rand(n, generator=generator)
    v = torch.stack([op.strength(level, sign[None])[0] for level, sign in zip(levels, signs, strict=True)])
    return v.round() if name == 'Posterize' else v


def imitate(name: str, prior: nn.Module, x: Tensor, v: Tensor | None) -> Tensor:
    """What the network makes of the pictures (N, 3, H, W)."""
    canvas = Canvas.of(x, [tuple(x.shape[2:])] * len(x), torch.zeros(len(x), 2))
    return IMAGE_OPS[name]._replace(function=prior).apply(x, v, canvas)


def fit(
    name: str,
    pictures: Tensor,
    epochs: int,
    batch: int = 64,
    lr: float = 1e-3,
    decay: float = 0.999,
    advance: Callable[[int], None] = lambda done: None,
) -> nn.Module:
    """The network that imitates the operator ``name`` on ``pictures`` (n, 3, H, W); ``advance`` hears of batches."""
    generator = torch.Generator().manual_seed(0)
    prior = build_prior(name)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    for epoch in range(epochs):
        losses = []
        for x in pictures[torch.randperm(len(pictures), generator=generator)].split(batch):
            v = strengths(name, len(x), generator)
            values = [0.0] * len(x) if v is None else v.tolist()
            wanted = torch.stack([target(name, picture, value) for picture, value in zip(x, values, strict=True)])
            loss = F.mse_loss(imitate(name, prior, x, v), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
            advance(len(x))
        print(f'{name}: epoch {epoch + 1} of {epochs}, mean squared error {sum(losses) / len(losses):.5f}')
    return prior


def read_pictures(folder: Path, size: int, limit: int) -> Tensor:
    """Pictures of a folder and those below it, (n, 3, size, size) in [0, 1]."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(
            f'images: expected a folder with pictures {sorted(SUFFIXES)}, found none below {str(folder)!r}'
        )
    chosen = [paths[i] for i in torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))[:limit]]
    arrays = [np.asarray(Image.open(path).convert('RGB').resize((size, size), Image.BILINEAR)) for path in chosen]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', type=Path, help='folder of pictures')
    parser.add_argument('out', help='file to write')
    parser.add_argument('--size', type=int, default=32, help='side that they are resized to')
    parser.add_argument('--limit', type=int, default=50000, help='take no more pictures than so many')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--warp-epochs', type=int, default=10)
    parser.add_argument('--color-epochs', type=int, default=20)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    pictures = read_pictures(args.images, args.size, args.limit)
    epochs = {name: args.warp_epochs if IMAGE_OPS[name].warps else args.color_epochs for name in IMITATED}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:  # what is printed goes above the bar
        task = progress.add_task('pictures seen', total=sum(epochs.values()) * len(pictures))
        advance = functools.partial(progress.advance, task)
        priors = {name: fit(name, pictures, epochs[name], args.batch, advance=advance) for name in IMITATED}
    save_atomically({name: prior.state_dict() for name, prior in priors.items()}, args.out)
    print(f'{args.out}: priors of {len(priors)} operators, fitted on {len(pictures)} pictures')


if __name__ == '__main__':
    main()
