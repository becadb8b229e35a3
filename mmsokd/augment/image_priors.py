"""TST's learned priors: small networks that imitate the image operators.

After "Teaching What You Should Teach", arXiv 2212.05422, whose first stage fits one to each operator of a library,
which has no gradient. How they are fitted (tools/fit_tst_priors.py) is the authors'; how the networks look is ours, and
so is that they see both signs of a strength. Invert and Cutout have nothing to be learned and stay exact [ours].
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmsokd.augment.image_ops import IMAGE_OPS, ImageOp
from mmsokd.augment.warping import Canvas
from mmsokd.checkpoint import load_checkpoint

IMITATED = [name for name, op in IMAGE_OPS.items() if op.lo is not None or name == 'Equalize']


class ColorPrior(nn.Module):
    """A 3x3 convolution and two of 1x1 on picture, strength and the picture's mean colour; gives the change.

    In two parts, of which one is multiplied with the strength, and with a linear convolution beside. Where the strength
    is one of seven channels and no more, the priors of Color and Sharpness do not learn to react to it, as in the
    authors' release.

    Args:
        scale: the strength that is fed as 1.
        width: channels in between.
    """

    def __init__(self, scale: float = 1.0, width: int = 16) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.Sequential(
            nn.Conv2d(7, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 6, 1)
        )
        for last in (self.linear, self.layers[-1]):  # no change at the start, from which small ones are learned
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, v: Tensor | None, canvas: Canvas) -> Tensor:
        """The imitated picture (N, 3, H, W)."""
        mean = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
        v = (x.new_zeros(len(x)) if v is None else v / self.scale)[:, None, None, None]
        parts = self.linear(x) + self.layers(torch.cat([x, mean, v.expand_as(x[:, :1])], dim=1))
        constant, slope = parts.chunk(2, dim=1)
        return x + constant + v * slope


class WarpPrior(nn.Module):
    """Two linear layers from the strength to a map; its shift is in pictures' sides.

    Args:
        scale: the strength that is fed as 1.
        width: units in between.
    """

    def __init__(self, scale: float = 1.0, width: int = 32) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 6))
        nn.init.normal_(self.layers[-1].weight, std=1e-3)  # a map that is far off sees nothing of the picture
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, v: Tensor, size: Tensor) -> Tensor:
        """The map (N, 2, 3) that :func:`~mmsokd.augment.warping.warp` takes."""
        change = self.layers(v[:, None] / self.scale).unflatten(-1, (2, 3))
        side = torch.cat([torch.ones_like(change[:, :, :2]), size.flip(-1).to(change)[:, :, None]], dim=-1)
        return torch.eye(2, 3, device=v.device, dtype=change.dtype) + change * side


def build_prior(name: str) -> nn.Module:
    """The untrained network that stands for the operator ``name``."""
    op = IMAGE_OPS[name]
    scale = 1.0 if op.lo is None else max(abs(op.lo), abs(op.hi))
    return (WarpPrior if op.warps else ColorPrior)(scale)


def load_priors(key: str, filename: str | os.PathLike) -> dict[str, ImageOp]:
    """The operators that the fitted networks of ``filename`` stand for.

    Args:
        key: where the config has the file, for messages.
        filename: what ``tools/fit_tst_priors.py`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of fitted priors.
    """
    try:
        state = load_checkpoint(str(filename))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f'{key}: {error}') from error
    if not isinstance(state, dict) or set(state) != set(IMITATED):
        raise ValueError(f'{key}: expected the priors of {IMITATED}, found {list(state)[:3]} in {str(filename)!r}')
    ops = {}
    for name in IMITATED:
        prior = build_prior(name)
        _check_weights(f'{key}: {filename}, {name}', state[name], prior)
        prior.load_state_dict(state[name])
        ops[name] = IMAGE_OPS[name]._replace(function=_Frozen(prior))
    return ops


def _check_weights(key: str, found: Any, prior: nn.Module) -> None:
    """Raise ValueError unless ``found`` are weights of such a network, of the same names and shapes."""
    expected = _shapes(prior.state_dict())
    given = _shapes(found) if isinstance(found, Mapping) else {}
    for name in sorted(expected.keys() | given.keys(), key=str):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"{key}'s {name}: expected {expected.get(name, 'none')} as {type(prior).__name__} has it, found "
                f'{given.get(name, "none")}, as in a file of an older mmsokd; fit the priors again by '
                'tools/fit_tst_priors.py'
            )


def _shapes(state: Mapping) -> dict[str, tuple]:
    return {name: tuple(getattr(value, 'shape', ())) for name, value in state.items()}


class _Frozen:
    """A fitted network as a function. It is part of no module: neither the optimizer nor a checkpoint shall have it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict) -> '_Frozen':
        return self

    def __call__(self, x: Tensor, *args: Tensor | Canvas | None) -> Tensor:
        return self.module.to(x.device)(x, *args)
