"""From a distiller's checkpoint to ONNX: onnxruntime gives PyTorch's outputs, and NumPy mmdet's boxes."""

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS

from mmsokd.export import export_student, load_student
from mmsokd.registry import MODELS
from tests.builders import IMAGENET, classifier, gfl, raw_batch, retinanet, segmentor

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs/deployment.md').read_text()
SIZE = (64, 96)
STRIDES = (8, 16, 32)


def load_tool():
    spec = importlib.util.spec_from_file_location('export_onnx', ROOT / 'tools/export_onnx.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def detector(channels=16):
    """As RetinaNet usually is, with anchors of nine shapes and one threshold."""
    model = retinanet(channels)
    model['bbox_head']['anchor_generator'].update(scales_per_octave=3, ratios=[0.5, 1.0, 2.0])
    model['test_cfg'] = dict(nms_pre=300, score_thr=0.6, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50)
    return model


# library: builder, and what the distiller taps
STUDENTS = {
    'mmpretrain': (classifier, 'backbone'),
    'mmseg': (segmentor, 'backbone.layer4'),
    'mmdet': (detector, 'neck'),
    'mmdet-gfl': (gfl, 'neck'),
}


def exported(kind, path):
    """A distiller's student, which has seen some pictures, as a file; and the plain model that loads it."""
    build, tap = STUDENTS[kind]
    cfg = ConfigDict(build())  # as a config file gives it
    terms = dict(loss_hint=dict(type='mmsokd.FitNetLoss', tap=tap))
    model = MODELS.build(dict(type='mmsokd.SoKDDistiller', student=cfg, teacher=build(), terms=terms, probe_size=64))
    inputs = torch.randn(4, 3, *SIZE)
    model.train()
    for _ in range(10):
        model.student(inputs, mode='tensor')  # BatchNorm's statistics
    torch.save(export_student(dict(state_dict=model.state_dict(), meta={})), path)
    plain = ROOT_MODELS.build(copy.deepcopy(cfg))
    load_student(plain, path)
    return plain.eval()


@pytest.mark.parametrize('kind', STUDENTS)
def test_onnxruntime_agrees(kind, tmp_path):
    model = exported(kind, tmp_path / 'student.pth')
    with torch.no_grad():
        assert tool.export(model, tmp_path / 'student.onnx', SIZE, dynamic_batch=True) < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / 'student.onnx'), providers=['CPUExecutionProvider'])
    assert session.get_inputs()[0].shape == ['batch', 3, *SIZE]
    inputs = torch.randn(3, 3, *SIZE)  # another number of pictures than was traced
    with torch.no_grad():
        expected = tool.Graph(model, SIZE)(inputs)
    found = session.run(None, {'input': inputs.numpy()})
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(f), e, rtol=1e-4, atol=1e-5)


def test_segmentation_is_what_predict_gives(tmp_path):
    model = exported('mmseg', tmp_path / 'student.pth')
    tool.export(model, tmp_path / 'student.onnx', SIZE)
    pictures = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)]
    model.data_preprocessor.size = SIZE
    data = model.data_preprocessor(dict(inputs=pictures), False)
    with torch.no_grad():
        (result,) = model.predict(data['inputs'])
    session = onnxruntime.InferenceSession(str(tmp_path / 'student.onnx'), providers=['CPUExecutionProvider'])
    (logits,) = session.run(['logits'], {'input': data['inputs'].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits[0]), result.seg_logits.data, rtol=1e-4, atol=1e-5)


def blocks():
    return re.findall(r'<!-- run by: tests/test_deployment.py -->\n```python\n(.*?)```', PAGE, re.S)


def test_the_page_detects_what_mmdet_does(tmp_path, monkeypatch):
    """The page's own code, on a picture in a file."""
    monkeypatch.chdir(tmp_path)
    model = exported('mmdet', tmp_path / 'student.pth')
    batch = raw_batch(1, size=96)
    tool.export(model, tmp_path / 'student.onnx', SIZE)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    cv2.imwrite('picture.png', picture)
    scope = {}
    for block in blocks():
        exec(block, scope)
    assert (scope['MEAN'], scope['STD']) == (IMAGENET['mean'], IMAGENET['std'])
    boxes, scores, labels = scope['detect'](
        scope['outputs'], SIZE, classes=3, strides=STRIDES, score_thr=0.6, nms_pre=300, max_per_img=50
    )

    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    sample = batch['data_samples'][0].clone()
    sample.set_metainfo(dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, batch_input_shape=SIZE))
    with torch.no_grad():
        (result,) = model.test_step(dict(inputs=[pixels], data_samples=[sample]))
    theirs = result.pred_instances
    assert len(theirs) > 10
    torch.testing.assert_close(torch.from_numpy(scores), theirs.scores, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert labels.tolist() == theirs.labels.tolist()
    torch.testing.assert_close(torch.from_numpy(boxes), theirs.bboxes, rtol=1e-4, atol=1e-2, check_dtype=False)


def test_what_is_not_exported_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r'one-stage detector.*found FasterRCNN'):
        tool.export(type('FasterRCNN', (torch.nn.Module,), {})(), tmp_path / 'student.onnx', SIZE)


@pytest.mark.slow
def test_the_tool(tmp_path):
    """As a user calls it."""
    exported('mmpretrain', tmp_path / 'student.pth')
    Config(dict(model=classifier(), default_scope='mmpretrain')).dump(tmp_path / 'my_student.py')
    command = [sys.executable, '-W', 'ignore', 'tools/export_onnx.py', tmp_path / 'my_student.py']
    command += [tmp_path / 'student.pth', tmp_path / 'student.onnx', '--size', '64', '64', '--dynamic-batch']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'onnxruntime agrees with PyTorch' in done.stdout
    assert (tmp_path / 'student.onnx').is_file()
