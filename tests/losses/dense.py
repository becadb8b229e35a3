"""What the tests of the dense losses share."""

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData


def feats(seed=0, shape=(2, 3, 5, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(boxes, size=(40, 48), wrap=lambda x: x):
    """Data samples of a batch of ``size`` (height, width) with ``boxes``, picture by picture, in pixels."""
    return [
        DetDataSample(
            metainfo=dict(batch_input_shape=size, img_shape=(size[0] // 2, size[1]), pad_shape=size),
            gt_instances=InstanceData(bboxes=wrap(torch.tensor(b, dtype=torch.float32).reshape(-1, 4))),
        )
        for b in boxes
    ]


def shake(module, seed=0):
    """Give every parameter another value, in float64: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def arrays(*tensors):
    return [x.detach().numpy() for x in tensors]


def assert_agrees(name, value, expected, tolerance=1e-10):
    """The relative error against a slow twin in float64; shown by ``pytest -s``."""
    value, expected = value.detach(), torch.as_tensor(expected, dtype=torch.float64)
    assert value.dtype == torch.float64
    error = ((value - expected).norm() / expected.norm()).item()
    print(f'\n{name}: relative error {error:.1e}')
    assert error < tolerance


def check_gradient(loss, *inputs):
    """By finite differences, to the inputs and to the loss's own parameters."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    parameters = list(loss.parameters()) if isinstance(loss, torch.nn.Module) else []
    return torch.autograd.gradcheck(lambda *x: loss(*x[: len(inputs)]), (*inputs, *parameters))
