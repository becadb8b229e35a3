"""What the tests of the losses and adapters share."""

import math

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData


def feats(seed=0, shape=(2, 3, 5, 6)):
    """At random; a list of them, level by level, for a list of shapes."""
    if isinstance(shape, list):
        return [feats(seed + 10 * i, level) for i, level in enumerate(shape)]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def boxed(boxes, size=(40, 48), wrap=lambda x: x):
    """Data samples of a batch of ``size`` (height, width) with ``boxes``, picture by picture, in pixels."""
    return [
        DetDataSample(
            metainfo=dict(batch_input_shape=size, img_shape=(size[0] // 2, size[1]), pad_shape=size),
            gt_instances=InstanceData(bboxes=wrap(torch.tensor(b, dtype=torch.float32).reshape(-1, 4))),
        )
        for b in boxes
    ]


def in_cells(samples, stride=8):
    return [[[v / stride for v in box] for box in sample.gt_instances.bboxes.tolist()] for sample in samples]


def shake(module, seed=0):
    """Give every parameter another value, in float64: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def arrays(*tensors):
    return [arrays(*x) if isinstance(x, list) else x.detach().numpy() for x in tensors]


def relative_error(value, expected):
    """Of a value in float64 against its slow twin's."""
    value, expected = value.detach(), torch.as_tensor(expected, dtype=torch.float64)
    assert value.dtype == torch.float64
    return ((value - expected).norm() / expected.norm()).item()


def assert_agrees(name, errors, tolerance=1e-12):
    """The largest relative error in float64; shown by ``pytest -s -k slow_twin``."""
    print(f'\n{name:<18} max relative error {max(errors):.1e}')
    assert max(errors) < tolerance


def assert_slopes(value, named, step=1e-6):
    """Central differences of ``value()`` along a direction of each named leaf are what its ``grad`` says."""
    generator = torch.Generator().manual_seed(0)
    for key, x in named:
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        values = []
        for sign in (1, -2):  # to +step, and from there to -step
            with torch.no_grad():
                x += sign * step * direction
            values.append(value())
        with torch.no_grad():
            x += step * direction
        slope = (values[0] - values[1]) / (2 * step)
        found = (x.grad * direction).sum().item()
        assert math.isclose(found, slope, rel_tol=1e-5, abs_tol=1e-7), (key, found, slope)
