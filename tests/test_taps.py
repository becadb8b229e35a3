import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmsokd.taps import FeatureSpec, FeatureTap, UnknownTapError, as_map, as_tokens, match_levels, parse_tap, probe


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.layer2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x):
        x = self.layer1(x)
        return x, self.layer2(x).relu()


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow = nn.Conv2d(4, 6, 1)
        self.cls = nn.Conv2d(6, 5, 1)
        self.runs = 0

    def forward(self, feats):
        self.runs += 1
        scores = [self.cls(self.narrow(feats[0])), self.cls(feats[1])]
        return scores, dict(ids=torch.arange(3))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.neck = nn.Identity()
        self.head = Head()
        self.unused = nn.Conv2d(1, 1, 1)

    def extract_feat(self, x):
        return self.neck(self.backbone(x))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.extract_feat(inputs))


@pytest.mark.parametrize(
    ('text', 'parsed'),
    [
        ('neck', ('neck', ())),
        ('neck[2]', ('neck', (2,))),
        ('a.0.b[0][-1]', ('a.0.b', (0, -1))),
        ('neck[1:-1]', ('neck', (slice(1, -1),))),
        ('neck[:3]', ('neck', (slice(None, 3),))),
    ],
)
def test_parse(text, parsed):
    assert parse_tap(text) == parsed


@pytest.mark.parametrize('text', ['', 'neck[', 'neck[]', 'neck[1:2:3]', 'neck[a]', 'neck.', '.neck', 'neck 2', 3, None])
def test_parse_refuses(text):
    with pytest.raises(ValueError, match='path'):
        parse_tap(text)


def test_reads_what_the_module_returned():
    net, x = Net(), torch.randn(2, 3, 16, 16)
    slices = ['backbone[:2]', 'head.cls[1:]']
    tap = FeatureTap(net, ['backbone', 'backbone[1]', 'backbone[-1]', 'head.cls', 'head.cls[0]', 'head[0]', *slices])
    with tap as feats:
        scores, _ = net(x)
    fine, coarse = net.backbone(x)
    torch.testing.assert_close(feats['backbone'], [fine, coarse])
    torch.testing.assert_close(feats['backbone[1]'], [coarse])
    torch.testing.assert_close(feats['backbone[-1]'], [coarse])
    torch.testing.assert_close(feats['head.cls'], scores)  # called once a level
    torch.testing.assert_close(feats['backbone[:2]'], [fine, coarse])
    torch.testing.assert_close(feats['head.cls[1:]'], scores[1:])
    torch.testing.assert_close(feats['head.cls[0]'], scores[:1])
    torch.testing.assert_close(feats['head[0]'], scores)


def test_index_of_a_single_level_is_not_a_sample():
    net, x = Net(), torch.randn(2, 3, 16, 16)
    with FeatureTap(net, ['backbone.layer1[0]']) as feats:
        net(x)
    assert feats['backbone.layer1[0]'][0].shape == (2, 4, 8, 8)


def test_no_handle_outlives_the_block():
    net = Net()
    with pytest.raises(RuntimeError, match='boom'), FeatureTap(net, ['backbone']):
        raise RuntimeError('boom')
    assert not any(module._forward_hooks or 'forward' in vars(module) for module in net.modules())


def test_another_wrapping_of_forward_is_kept():
    net = Net()
    inner = net.backbone.forward
    net.backbone.forward = lambda x: inner(2 * x)
    mine = net.backbone.forward
    with FeatureTap(net, ['backbone']) as feats:
        net(torch.ones(1, 3, 8, 8))
    assert net.backbone.forward is mine
    torch.testing.assert_close(feats['backbone'][1], inner(2 * torch.ones(1, 3, 8, 8))[1])


def test_a_copy_reads_the_copied_model():
    net, x = Net(), torch.randn(1, 3, 16, 16)
    both = nn.ModuleList([net])
    both.tap = FeatureTap(net, ['backbone.layer1'])
    with both.tap:
        net(x)
    copied = copy.deepcopy(both)
    with torch.no_grad():
        copied[0].backbone.layer1.weight.zero_()
        copied[0].backbone.layer1.bias.zero_()
    with copied.tap as feats:
        copied[0](x)
    assert not feats['backbone.layer1'][0].any()


def test_one_module_by_two_names():
    net, x = Net(), torch.randn(1, 3, 16, 16)
    net.other = net.backbone.layer1
    for _ in range(2):
        with FeatureTap(net, ['backbone.layer1', 'other']) as feats:
            net(x)
        assert feats['backbone.layer1'][0] is feats['other'][0]
        assert 'forward' not in vars(net.other)


def test_a_checkpointed_forward_is_computed_again_after_the_block():
    class Checkpointed(Net):
        def extract_feat(self, x):
            return checkpoint(self.backbone.forward, x, use_reentrant=True)

    net, x = Checkpointed(), torch.randn(1, 3, 16, 16, requires_grad=True)
    with FeatureTap(net, ['backbone']) as feats:
        scores, _ = net(x)
    (scores[0].sum() + scores[1].sum()).backward()
    assert x.grad.abs().sum() > 0
    assert len(feats['backbone']) == 2


def test_a_block_inside_a_block_is_refused_and_leaves_the_outer_one():
    net, x = Net(), torch.randn(1, 3, 16, 16)
    tap = FeatureTap(net, ['backbone.layer1'])
    with tap as feats:
        with pytest.raises(RuntimeError, match='one block at a time'), tap:
            pass
        net(x)
    assert len(feats['backbone.layer1']) == 1
    assert 'forward' not in vars(net.backbone.layer1)


def test_an_unknown_module_leaves_the_others_as_they_were():
    net = Net()
    with pytest.raises(UnknownTapError), FeatureTap(net, ['backbone', 'nowhere']):
        pass
    assert 'forward' not in vars(net.backbone)


def test_stops_after_the_deepest_tap():
    net, x = Net(), torch.randn(1, 3, 16, 16)
    with FeatureTap(net, ['backbone.layer1'], calls={'backbone.layer1': 1}) as feats:
        net(x)
    assert net.head.runs == 0
    assert len(feats['backbone.layer1']) == 1
    with FeatureTap(net, ['head.cls'], calls={'head.cls': 2}) as feats:
        net(x)
    assert len(feats['head.cls']) == 2


def test_replaced_output_goes_on_through_the_network():
    net, x = Net(), torch.randn(1, 3, 16, 16)
    with FeatureTap(net, ['backbone.layer1', 'backbone']).replacing({'backbone.layer1': torch.zeros_like}) as feats:
        net(x)
    assert not feats['backbone.layer1'][0].any()
    torch.testing.assert_close(feats['backbone'][1], net.backbone.layer2(torch.zeros(1, 4, 8, 8)).relu())


def test_unknown_tap_names_the_nearest():
    with pytest.raises(UnknownTapError, match=r"found 'backbone\.layer3'; nearest: \['backbone\.layer") as caught:
        probe(Net(), ['backbone.layer3'], 32)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ('tap', 'message'),
    [
        ('head', 'expected a feature'),
        ('head[1]', 'expected a feature'),
        ('backbone[2]', 'found 2 outputs'),
        ('backbone[2:]', 'found 2 outputs'),
        ('unused', 'never does'),
    ],
)
def test_what_is_no_feature(tap, message):
    with pytest.raises((TypeError, ValueError), match=message):
        probe(Net(), [tap], 32)


def test_probe_sees_shapes_and_leaves_no_trace():
    net = Net().train()
    net.neck.eval()
    state = torch.get_rng_state()
    seen = probe(net, ['backbone', 'head.cls'], 32, at='backbone.layer2')
    assert [(s.channels, s.size, s.stride) for s in seen.specs['backbone']] == [(4, (16, 16), 2), (6, (8, 8), 4)]
    assert [s.signed for s in seen.specs['backbone']] == [True, False]  # the second comes out of a ReLU
    assert seen.calls == {'backbone': 1, 'head.cls': 2}
    assert seen.follows == {'backbone': [False, True], 'head.cls': [False, True]}
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert not net.neck.training
    assert not net.head.cls.weight.requires_grad or net.head.cls.weight.grad is None


def test_several_paths_are_one_tap_with_all_their_levels():
    net, x = Net(), torch.randn(2, 3, 16, 16)
    both = ('backbone.layer2', 'backbone.layer1')  # the order of the paths, not of the forward
    with FeatureTap(net, [both, 'backbone']) as feats:
        net(x)
    assert [level.shape[1] for level in feats[both]] == [6, 4]
    assert feats[both][1] is feats['backbone'][0]
    seen = probe(net, [both, 'head.cls'], 32)
    assert [(s.channels, s.stride) for s in seen.specs[both]] == [(6, 4), (4, 2)]
    assert seen.calls == {'backbone.layer1': 1, 'backbone.layer2': 1, 'head.cls': 2}
    assert seen.follows == {}


class Rows(Net):
    """Gives what has no batch in front: a stack of decoder layers, or one row a proposal."""

    def __init__(self, shape):
        super().__init__()
        self.stack = nn.Identity()
        self.shape = shape

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.stack(inputs.new_zeros(self.shape))


@pytest.mark.parametrize('shape', [(2, 1, 20, 16), (100, 16), (100, 16, 7, 7), (49, 1, 16), (0, 16)])
def test_a_feature_without_the_batch_in_front_is_refused(shape):
    with pytest.raises(ValueError, match=r"tap 'stack': expected the batch as first dimension.*decoder layer"):
        probe(Rows(shape), ['stack'], 32)


class Tokens(nn.Module):
    """A transformer's tokens behind a grid of patches, cut or padded as libraries do."""

    def __init__(self, patch, extra, known=None, padded=True):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layer = nn.Identity()
        self.patch, self.extra, self.padded = patch, extra, padded
        if known is not None:
            self.backbone.num_extra_tokens = known

    def extract_feat(self, x):
        over = (self.patch - 1) if self.padded else 0
        height, width = ((side + over) // self.patch for side in x.shape[-2:])
        grid = torch.arange(float(height * width)).view(1, -1, 1).repeat(len(x), 1, 4)
        return self.backbone.layer(torch.cat([grid.new_full((len(x), self.extra, 4), -1), grid], 1))


@pytest.mark.parametrize('extra', [0, 1, 2, 5, 9])  # none, class, distillation, class and four or eight registers
def test_tokens_before_the_grid_are_found(extra):
    (spec,) = probe(Tokens(16, extra), ['backbone.layer'], 128).specs['backbone.layer']
    assert (spec.size, spec.stride, spec.extra) == ((8, 8), 16, extra)


def test_what_the_backbone_says_decides_between_two_grids():
    (spec,) = probe(Tokens(80, 9, known=9), ['backbone.layer'], 320).specs['backbone.layer']  # 16 + 9 = 5 x 5
    assert (spec.size, spec.stride, spec.extra) == ((4, 4), 80, 9)


def test_tokens_off_any_grid_ask_for_another_probe_size():
    with pytest.raises(ValueError, match=r"found 362 for a picture of 256 x 256 .*'probe_size' to a multiple of the"):
        probe(Tokens(14, 1), ['backbone.layer'], 256)
    assert probe(Tokens(14, 1), ['backbone.layer'], 224).specs['backbone.layer'][0].stride == 14


@pytest.mark.parametrize('padded', [True, False])
def test_tokens_of_a_picture_that_patches_do_not_divide(padded):
    net = Tokens(14, 1, padded=padded)
    (spec,) = probe(net, ['backbone.layer'], 224).specs['backbone.layer']
    size = (30, 47)
    tokens = net.extract_feat(torch.zeros(2, 3, *size))
    found = as_map(tokens, spec, size)
    assert found.shape == ((2, 4, 3, 4) if padded else (2, 4, 2, 3))
    assert found[0, 0].flatten().tolist() == list(range(found[0, 0].numel()))  # row by row
    assert torch.equal(as_tokens(found, tokens, spec), tokens)


def spec(stride):
    return FeatureSpec(8, (256 // stride,) * 2, stride, True)


@pytest.mark.parametrize(
    ('student', 'teacher', 'pairs'),
    [
        ([8, 16, 32], [8, 16, 32], [(0, 0), (1, 1), (2, 2)]),
        ([8, 16], [4, 8, 16, 32], [(0, 1), (1, 2)]),  # what only the teacher has is left out
        ([16, 8], [8, 16], [(0, 1), (1, 0)]),
        ([8, 8], [8, 8, 8], [(0, 0), (1, 1)]),  # dilated stages: the order decides
        ([4, 8], [8, 16], None),
        ([8, 16, 32], [8, 16], None),
        ([8], [16], [(0, 0)]),  # the sizes are the adapter's matter
    ],
)
def test_levels_match_by_stride(student, teacher, pairs):
    assert match_levels([spec(s) for s in student], [spec(t) for t in teacher]) == pairs
