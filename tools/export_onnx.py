"""Write an exported student as ONNX, and compare it with PyTorch in onnxruntime where that is installed.

python tools/export_onnx.py my_student.py student.pth student.onnx --size 224 224 [--dynamic-batch]

Its input is a batch as the data preprocessor gives it (RGB, normalised, padded). Its outputs are `logits` of a
classifier, `logits` in the pictures' size of a segmentor, and of a one-stage detector the maps of its head
(`cls_score.0`, ...), whose boxes are still to be decoded: docs/deployment.md does that in NumPy.
"""

import argparse
import inspect
import math
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmsokd.distillers.build import build_model, load_config
from mmsokd.export import load_student

HEAD_NAMES = ('cls_score', 'bbox_pred', 'score_factor')  # as mmdet's `predict_by_feat` calls a dense head's outputs
EXPORTED = {'ImageClassifier', 'EncoderDecoder', 'SingleStageDetector'}  # and what is derived from them
TOLERANCE = 1e-4  # of the largest value; both compute in float32, in other orders


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help="the student's plain config")
    parser.add_argument('checkpoint', help='what tools/export_student.py wrote')
    parser.add_argument('out', help='file (.onnx) to write')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), required=True, help='of the input, in pixels')
    parser.add_argument('--dynamic-batch', action='store_true', help='leave the number of pictures open')
    parser.add_argument('--opset', type=int, default=17, help="ONNX's version of operators (default: 17)")
    return parser.parse_args()


class Graph(nn.Module):
    """A model's forward from the preprocessed batch to a flat tuple of tensors.

    Args:
        model: of mmpretrain, mmseg or mmdet, in eval mode.
        size: height and width of the pictures.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        self.names: list[str] = []

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of ``names``, which it sets."""
        if hasattr(self.model, 'encode_decode'):
            outputs = self.model.encode_decode(inputs, [self.meta])
        else:
            outputs = self.model(inputs, mode='tensor')
        if isinstance(outputs, Tensor):
            self.names = ['logits']
            return (outputs,)
        # a detector: one tuple a kind of output, with a map a level
        self.names = [f'{name}.{i}' for name, maps in zip(HEAD_NAMES, outputs, strict=False) for i in range(len(maps))]
        return tuple(level for maps in outputs for level in maps)


def export(model: nn.Module, out: Path, size: tuple[int, int], dynamic_batch: bool = False, opset: int = 17) -> float:
    """Write ``model`` and, where there is onnxruntime, run it.

    Returns: the largest difference from PyTorch, as a part of the largest value; NaN without onnxruntime.
    """
    if EXPORTED.isdisjoint(base.__name__ for base in type(model).__mro__):
        raise SystemExit(
            'model: expected a classifier, a segmentor or a one-stage detector with a dense head, found '
            f'{type(model).__name__}; mmdeploy takes more'
        )
    channels = len(getattr(model.data_preprocessor, 'mean', [0] * 3))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 if dynamic_batch else 1, channels, *size, generator=generator)
    graph = Graph(model, size).eval()  # itself too: the exporter gives all parts its mode
    with torch.no_grad():
        expected = graph(inputs)
        # PyTorch's newer exporter, its default from 2.9 on, needs onnxscript, and rewrites what mmdet's heads do
        older = dict(dynamo=False) if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
        torch.onnx.export(
            graph,
            (inputs,),
            str(out),
            input_names=['input'],
            output_names=graph.names,
            dynamic_axes={name: {0: 'batch'} for name in ('input', *graph.names)} if dynamic_batch else None,
            opset_version=opset,
            **older,
        )
    return difference(out, inputs, expected)


def difference(path: Path, inputs: Tensor, expected: tuple[Tensor, ...]) -> float:
    """The largest difference of ``path``'s outputs from ``expected``, as a part of the largest value."""
    try:
        import onnxruntime
    except ImportError:
        return float('nan')
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    found = session.run(None, {'input': inputs.numpy()})
    pairs = [(torch.from_numpy(f), e) for f, e in zip(found, expected, strict=True)]
    return max(float((f - e).abs().max() / e.abs().max().clamp(min=1e-6)) for f, e in pairs)


def main() -> None:
    args = parse_args()
    if not Path(args.checkpoint).is_file():
        raise SystemExit(f'checkpoint: expected a file, found none at {args.checkpoint!r}')
    cfg = load_config('config', args.config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build_model('config', cfg)
    load_student(model, args.checkpoint)
    error = export(model, Path(args.out), tuple(args.size), args.dynamic_batch, args.opset)
    if math.isnan(error):
        print(f'{args.out}: written; install onnxruntime to have it compared with PyTorch')
    elif error > TOLERANCE:
        raise SystemExit(
            f'{args.out}: expected outputs of PyTorch up to {TOLERANCE}, found a difference of {error:.1e}'
        )
    else:
        print(f'{args.out}: written; onnxruntime agrees with PyTorch to {error:.1e} of the largest value')


if __name__ == '__main__':
    main()
