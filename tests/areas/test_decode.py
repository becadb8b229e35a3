import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsokd.areas import area_count, area_weight, decode, keep_peaks
from tests.reference import areas as reference


def maps(n, k, h, w, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    heat = torch.rand(n, k, h, w, generator=generator)
    size = torch.rand(n, 2, h, w, generator=generator) * 5
    offset = torch.rand(n, 2, h, w, generator=generator)
    return heat.to(dtype), size.to(dtype), offset.to(dtype)


@pytest.mark.parametrize(('h', 'w', 'k'), [(7, 9, 2), (12, 5, 1), (1, 6, 3)])
def test_against_mmdets_centernet_helpers(h, w, k):
    from mmdet.models.utils import get_local_maximum, get_topk_from_heatmap, transpose_and_gather_feat

    heat, size, offset = maps(3, k, h, w)
    peaks = get_local_maximum(heat, kernel=3)
    torch.testing.assert_close(keep_peaks(heat), peaks)
    top = min(4, int((peaks.flatten(1) > 0).sum(1).min()))
    score, index, _, ys, xs = get_topk_from_heatmap(peaks, k=top)
    wh, off = transpose_and_gather_feat(size, index), transpose_and_gather_feat(offset, index)
    xs, ys = xs + off[..., 0], ys + off[..., 1]
    expected = torch.stack([xs - wh[..., 0] / 2, ys - wh[..., 1] / 2, xs + wh[..., 0] / 2, ys + wh[..., 1] / 2], dim=2)
    expected[..., 0::2] = expected[..., 0::2].clamp(0, w)
    expected[..., 1::2] = expected[..., 1::2].clamp(0, h)
    boxes, scores = decode(heat, size, offset, top)
    torch.testing.assert_close(scores, score)
    large = ((expected[..., 2:] - expected[..., :2]) >= 1).all(-1)  # the others are grown to a cell
    assert large.any()
    torch.testing.assert_close(boxes[large], expected[large])


@given(
    n=st.integers(1, 3), k=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 9), num=st.integers(1, 100),
    seed=st.integers(0, 9999), scale=st.sampled_from([0.0, 0.2, 1.0, 50.0]), shift=st.sampled_from([-30.0, 0.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]), channels_last=st.booleans(),
)  # fmt: skip
def test_boxes_lie_in_the_map_and_hold_a_cell(n, k, h, w, num, seed, scale, shift, dtype, channels_last):
    heat, size, offset = maps(n, k, h, w, seed, dtype)
    if channels_last:
        heat, size, offset = (x.contiguous(memory_format=torch.channels_last) for x in (heat, size, offset))
    boxes, scores = decode(heat, size * scale, offset + shift, num)
    top = min(num, h * w)
    assert boxes.shape == (n, top, 4)
    x1, y1, x2, y2 = boxes.unbind(-1)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= w + 1e-5).all()
    assert (y2 <= h + 1e-5).all()
    assert (x2 - x1 >= 1 - 1e-5).all()
    assert (y2 - y1 >= 1 - 1e-5).all()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    # each box of positive score covers at least one cell
    for i in range(top):
        count = area_count(boxes[:, i : i + 1], scores[:, i : i + 1], (h, w)).sum((1, 2, 3))
        assert (count[scores[:, i] > 0] >= 1).all()


@given(n=st.integers(1, 2), k=st.integers(1, 5), h=st.integers(1, 8), w=st.integers(1, 8), seed=st.integers(0, 9999))
def test_masks_against_a_plain_loop(n, k, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, k, 2, generator=generator) * torch.tensor([w, h])
    boxes = torch.cat([corner, corner + torch.rand(n, k, 2, generator=generator) * 4], -1)
    scores = torch.rand(n, k, generator=generator).sub(0.3).clamp(min=0)
    expected = torch.tensor(reference.count(boxes.tolist(), scores.tolist(), h, w))[:, None].float()
    torch.testing.assert_close(area_count(boxes, scores, (h, w)), expected)
    torch.testing.assert_close(area_weight(boxes, scores, (h, w), 'sum'), expected)
    torch.testing.assert_close(area_weight(boxes, scores, (h, w), 'union'), (expected > 0).float())


@pytest.mark.parametrize('everywhere', [False, True])
def test_a_score_that_is_no_number_covers_nothing(everywhere):
    """The step's losses are none either, and the guard tells; decoding must not fail before."""
    heat, size, offset = maps(2, 1, 4, 5)
    heat[0, :, slice(None) if everywhere else 1] = torch.nan
    boxes, scores = decode(heat, size, offset, 6)
    count = area_count(boxes, scores, (4, 5))
    assert count.isfinite().all()
    assert (count[0].sum() == 0) or not everywhere
    assert count[1].sum() > 0


@pytest.mark.cuda
@pytest.mark.parametrize('overlap', ['union', 'sum'])
def test_masks_on_a_gpu_as_on_the_cpu(overlap):
    found = []
    for device in ('cpu', 'cuda'):
        boxes, scores = decode(*(x.to(device) for x in maps(3, 2, 9, 7)), 8)
        found.append([x.cpu() for x in (scores, area_weight(boxes, scores, (9, 7), overlap))])
    torch.testing.assert_close(*found)
    assert found[0][1].unique().numel() > 1


def test_untrained_box_is_centred_on_its_peak():
    heat = torch.zeros(1, 1, 7, 9)
    heat[0, 0, 3, 5] = 1
    boxes, scores = decode(heat, torch.full((1, 2, 7, 9), 3.0), torch.full((1, 2, 7, 9), 0.5), 2)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([4.0, 2.0, 7.0, 5.0]))
    weight = area_weight(boxes, scores, (7, 9), 'union')
    assert weight.sum() == 9  # the second box has score zero and covers nothing
    assert weight[0, 0, 2:5, 4:7].all()
