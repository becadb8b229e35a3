"""KCD's channel matching against numpy.corrcoef and against all permutations; when it looks, and what it keeps."""

import copy

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from mmsokd.adapters import ChannelMatching
from mmsokd.adapters.matching import best_match, correlation, moments
from tests.losses.common import assert_agrees, feats, relative_error
from tests.reference import matching as reference
from tests.two_ranks import assert_same, on_two_ranks


@pytest.fixture(autouse=True)
def at():
    """Sets the training's clock, which is put right afterwards."""
    hub = MessageHub.get_current_instance()
    before = hub.runtime_info.get('iter', 0)
    yield lambda iteration: hub.update_info('iter', iteration)
    hub.update_info('iter', before)


def permuted(order, channels, seed=0, noise=0.3, shape=(4, 6, 5)):
    """A student at random, and a teacher whose channel ``order[c]`` is the student's c, scaled, shifted and noisy."""
    n, h, w = shape
    student = feats(seed, (n, len(order), h, w))
    teacher = feats(seed + 50, (n, channels, h, w))
    for c, place in enumerate(order):
        teacher[:, place] = (1 + c) * student[:, c] - c + noise * (1 + c) * teacher[:, place]
    return student, teacher


def total(student, teacher):
    """The sum of the correlations channel by channel."""
    return np.trace(reference.correlation(student, teacher))


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_correlation_against_the_slow_twin():
    errors = []
    for seed, channels in enumerate([(3, 3), (2, 5), (1, 1)]):
        s, t = (feats(10 * seed + i, (4, c, 3, 5)) for i, c in enumerate(channels))
        t[:, :1] += 2 * s[:, :1] + 1000  # far from 0, as sums of products do not like it
        expected = reference.correlation(s, t)
        errors.append(relative_error(correlation(*moments(s, t)), expected))
    assert_agrees('channel correlation', errors, 1e-9)


def test_batches_of_any_size_add_up():
    s, t = feats(1, (7, 3, 4, 4)), feats(2, (7, 4, 4, 4))
    parts = [moments(s[i:j], t[i:j]) for i, j in ((0, 1), (1, 4), (4, 7))]
    found = correlation(*(sum(part) for part in zip(*parts, strict=True)))
    assert_agrees('in three batches', [relative_error(found, reference.correlation(s, t))])


def test_half_precision_is_widened():
    s, t = (x.to(torch.bfloat16) for x in (feats(1), feats(2)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = correlation(*moments(s, t))
    expected = reference.correlation(s.double(), t.double())
    assert_agrees('bf16', [relative_error(found, expected)])


@pytest.mark.parametrize('value', [0.0, 0.1, 1e4, torch.nan, torch.inf])
def test_a_channel_that_tells_nothing_correlates_with_nothing(value):
    s, t = feats(1), feats(2)
    s[:, 1] = value
    found = correlation(*moments(s, t))
    assert found.isfinite().all()
    assert (found[1] == 0).all()
    rest = [0, 2]
    expected = reference.correlation(s[:, rest], t)
    assert_agrees('the others', [relative_error(found[rest], expected)])
    assert sorted(best_match(found).tolist()) == [0, 1, 2]


@pytest.mark.parametrize('shape', [(4, 4), (3, 6), (1, 5), (5, 5)])
def test_match_against_all_permutations(shape):
    for seed in range(5):
        table = feats(seed, shape)
        expected, way = reference.best_total(table.numpy())
        found = best_match(table)
        assert tuple(found.tolist()) == way
        assert table.gather(1, found[:, None]).sum().item() == pytest.approx(expected, rel=1e-12)


# ---- the adapter ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('order', 'channels'), [([2, 0, 3, 1], 4), ([5, 0, 3], 6)])
def test_a_known_permutation_is_recovered(order, channels, at):
    at(0)
    student, teacher = permuted(order, channels)
    adapter = ChannelMatching(len(order), channels).train()
    found = adapter.match(adapter(student, student.shape[-2:]), teacher)
    assert adapter.order.tolist() == order
    assert torch.equal(found, teacher[:, order])
    assert total(student, found) == pytest.approx(reference.best_total(reference.correlation(student, teacher))[0])


@pytest.mark.parametrize('channels', [4, 6])
def test_the_total_correlation_never_falls(channels, at):
    at(0)
    for seed in range(10):
        student, teacher = feats(seed, (2, 4, 3, 3)), feats(seed + 20, (2, channels, 3, 3))
        adapter = ChannelMatching(4, channels).train()
        assert total(student, adapter.match(student, teacher)) >= total(student, teacher[:, :4])


def test_it_rests_in_eval_mode(at):
    at(0)
    adapter = ChannelMatching(4, 4).eval()
    before = copy.deepcopy(adapter.state_dict())
    student, teacher = permuted([2, 0, 3, 1], 4)
    assert torch.equal(adapter.match(student, teacher), teacher)
    assert all(torch.equal(before[name], value) for name, value in adapter.state_dict().items())


def test_the_student_alone_learns(at):
    at(0)
    student, teacher = permuted([1, 0], 2)
    student.requires_grad_()
    adapter = ChannelMatching(2, 2).train()
    assert not list(adapter.parameters())
    loss = (adapter(student, (6, 5)) - adapter.match(student, teacher)).square().sum()
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - teacher[:, [1, 0]]))


ORDERS = [[1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0]]


def run(adapter, at, iterations, pictures=lambda i: permuted(ORDERS[i // 3 % 4], 3, seed=i)):
    """The order after each of ``iterations``; each three of them have a permutation of their own."""
    found = []
    for i in iterations:
        at(i)
        adapter.match(*pictures(i))
        found.append(adapter.order.tolist())
    return found


def test_when_it_looks_and_when_it_matches(at):
    """Of each six iterations the first three are looked at; the second three's permutation is never seen."""
    adapter = ChannelMatching(3, 3, interval=6, batches=3).train()
    found = run(adapter, at, range(18))
    assert found[:6] == [ORDERS[0]] * 6  # from the first step on
    assert found[6:8] == [ORDERS[0]] * 2  # until the look is complete
    assert found[8:14] == [ORDERS[2]] * 6
    assert found[14:] == [ORDERS[0]] * 4


def test_a_match_is_made_from_all_batches_of_the_look(at):
    adapter = ChannelMatching(4, 6, interval=10, batches=3).train()
    batches = [(feats(100 + i, (2, 4, 3, 3)), feats(100 + i + 30, (2, 6, 3, 3))) for i in range(13)]

    def best(first, last):
        return list(
            reference.best_total(reference.correlation(*map(torch.cat, zip(*batches[first:last], strict=True))))[1]
        )

    wanted = [best(0, 1), best(0, 2), *[best(0, 3)] * 10, best(10, 13)]
    assert run(adapter, at, range(13), lambda i: batches[i]) == wanted
    assert len({*map(tuple, wanted)}) == 4


def test_a_term_that_begins_late_is_matched_on_its_first_batch(at):
    adapter = ChannelMatching(3, 3, interval=6, batches=2).train()
    assert run(adapter, at, [4, 5, 6, 7]) == [ORDERS[1]] * 3 + [ORDERS[2]]


def test_a_look_has_nothing_of_a_former_one(at):
    """The term rests for a while, and goes on amid another look."""
    adapter = ChannelMatching(3, 3, interval=6, batches=3).train()
    run(adapter, at, [0, 1, 2], lambda i: permuted(ORDERS[0], 3, seed=i))
    assert adapter.products[-1, -1] == 3 * 4 * 6 * 5
    assert run(adapter, at, [602], lambda i: permuted(ORDERS[1], 3, seed=i)) == [ORDERS[1]]
    assert adapter.products[-1, -1] == 4 * 6 * 5
    adapter.look.fill_(0)  # as a former training's checkpoint has it
    assert run(adapter, at, [0], lambda i: permuted(ORDERS[2], 3, seed=i)) == [ORDERS[2]]
    assert adapter.products[-1, -1] == 4 * 6 * 5


def test_it_is_matched_anew_where_the_buffers_are_restored(at):
    """As after the extra passes of the policy's search, which come before the step."""
    adapter = ChannelMatching(3, 3, interval=6, batches=2).train()
    start = copy.deepcopy(adapter.state_dict())
    for i in (4, 5):  # neither is one that is looked at
        run(adapter, at, [i], lambda i: permuted(ORDERS[3], 3, seed=i))
        with torch.no_grad():
            for name, buffer in adapter.named_buffers():
                buffer.copy_(start[name])
    assert run(adapter, at, [5, 6]) == [ORDERS[1]] * 2


@pytest.mark.parametrize('cut', [1, 2, 4, 7, 8])
def test_resume_continues_exactly(cut, at):
    def made():
        return ChannelMatching(4, 6, interval=6, batches=3).train()

    def noise(i):
        return feats(i, (1, 4, 3, 3)), feats(i + 40, (1, 6, 3, 3))

    whole, first, second = made(), made(), made()
    expected = run(whole, at, range(12), noise)
    before = run(first, at, range(cut), noise)
    second.load_state_dict(copy.deepcopy(first.state_dict()), strict=True)
    assert before + run(second, at, range(cut, 12), noise) == expected
    assert len({tuple(order) for order in expected}) > 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def of_ranks():
    """Each rank's own pictures, and not as many."""
    return [(feats(2 + i, (1 + i, 4, 3, 3)), feats(42 + i, (1 + i, 6, 3, 3))) for i in range(2)]


def worker(rank, folder):
    adapter = ChannelMatching(4, 6).train()
    adapter.match(*of_ranks()[rank])
    for name, buffer in adapter.named_buffers():
        assert_same(buffer, name)
    (folder / f'order_{rank}').write_text(str(adapter.order.tolist()))


@pytest.mark.slow
def test_two_ranks_match_as_one(tmp_path):
    on_two_ranks(worker, tmp_path)
    apart = [reference.best_total(reference.correlation(*sides))[1] for sides in of_ranks()]
    _, expected = reference.best_total(reference.correlation(*map(torch.cat, zip(*of_ranks(), strict=True))))
    assert expected not in apart
    assert [(tmp_path / f'order_{rank}').read_text() for rank in range(2)] == [str(list(expected))] * 2


def test_resize():
    feat = torch.randn(1, 2, 4, 4)
    assert ChannelMatching(2, 3, resize='bilinear')(feat, (8, 8)).shape == (1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"ChannelMatching\.resize: expected equal sizes .*give resize='bilinear'"):
        ChannelMatching(2, 3)(feat, (8, 8))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(in_channels=3, out_channels=2),
            r': expected a teacher of at least the 3 channels .*found 2; .*ConvAdapter',
        ),
        (dict(interval=0), r'\.interval: expected an integer >= 1, found 0'),
        (dict(batches=1.5), r'\.batches: expected an integer >= 1, found 1\.5'),
        (dict(interval=5, batches=6), r'\.batches: expected at most the interval 5, found 6'),
        (dict(resize='conv'), r"\.resize: expected one of .*'bilinear'.*found 'conv'"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=f'^ChannelMatching{message}'):
        ChannelMatching(**{**dict(in_channels=2, out_channels=3), **kwargs})
