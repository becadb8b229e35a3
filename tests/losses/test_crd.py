"""CRD: the estimation, the banks, and what is resumed."""

import copy
import math

import pytest
import torch
from mmdet.structures import DetDataSample
from mmpretrain.structures import DataSample

from mmsokd.registry import MODELS
from tests.reference import crd as reference
from tests.two_ranks import on_two_ranks


def crd(num_samples=20, **kwargs):
    torch.manual_seed(3)
    cfg = dict(
        type='mmsokd.CRDLoss', student_channels=3, teacher_channels=5, num_samples=num_samples, feat_dim=4, nce_k=7
    )
    return MODELS.build({**cfg, **kwargs}).double()


def samples(index):
    return [DataSample(metainfo=dict(sample_idx=i)) for i in index]


def feats(seed, n, channels, dtype=torch.float64):
    return torch.randn(n, channels, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


INDEX = [4, 19, 0]
S, T = feats(1, 3, 3), feats(2, 3, 5)


def replay(loss, index, seed=0):
    """The slow twin's loss on the draws that ``seed`` gives, and both sides' embeddings."""
    torch.manual_seed(seed)
    keys = loss._draw(torch.tensor(index)).tolist()
    linear = loss.student_embedding, loss.teacher_embedding
    sides = [
        reference.embed(x.numpy(), m.weight.detach().numpy(), m.bias.detach().numpy())
        for x, m in zip((S, T), linear, strict=True)
    ]
    banks = loss.teacher_bank.numpy(), loss.student_bank.numpy()
    kept = loss.log_z.exp().tolist() if loss.has_z else [0.0, 0.0]
    z = [z or reference.normalizer(q, b, keys, 0.07) for q, b, z in zip(sides, banks, kept, strict=True)]
    total = sum(reference.nce(q, b, keys, 0.07, c) for q, b, c in zip(sides, banks, z, strict=True))
    return total, sides, z


def run(loss, index=INDEX, seed=0):
    torch.manual_seed(seed)
    return loss(S, T, samples=samples(index))


def test_banks_follow_and_z_stays():
    loss = crd()
    expected, sides, z = replay(loss, INDEX)
    before = loss.student_bank.clone(), loss.teacher_bank.clone()
    torch.testing.assert_close(run(loss).item(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.log_z.exp(), torch.tensor(z).double())
    for bank, old, side in zip((loss.student_bank, loss.teacher_bank), before, sides, strict=True):
        torch.testing.assert_close(bank, torch.from_numpy(reference.remember(old.numpy(), INDEX, side, 0.5)))
    first = loss.log_z.clone()
    expected, _, _ = replay(loss, [1, 2, 4], seed=1)  # Z of the first batch, banks of the second
    torch.testing.assert_close(run(loss, [1, 2, 4], seed=1).item(), expected, rtol=1e-12, atol=0)
    assert torch.equal(loss.log_z, first)


def test_banks_rest_in_eval_mode():
    loss = crd().eval()
    before = copy.deepcopy(loss.state_dict())
    run(loss)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_backward_after_the_banks_have_moved():
    loss, twin = crd(), crd().eval()
    run(loss).backward()
    run(twin).backward()
    for (name, p), q in zip(loss.named_parameters(), twin.parameters(), strict=True):
        assert p.grad.abs().sum() > 0, name
        torch.testing.assert_close(p.grad, q.grad)


def test_negatives_are_the_others_and_equally_often():
    loss = crd(num_samples=5, nce_k=20000)
    keys = loss._draw(torch.tensor([0, 2, 4]))
    assert keys[:, 0].tolist() == [0, 2, 4]
    for own, row in zip((0, 2, 4), keys[:, 1:], strict=True):
        counts = torch.bincount(row, minlength=5)
        assert counts[own] == 0
        others = counts[counts > 0]
        assert len(others) == 4
        assert (others - 5000).abs().max() < 300  # 5 standard deviations of a fair draw


def test_resume_continues_exactly():
    loss = crd()
    run(loss)
    other = crd(num_samples=20)
    torch.manual_seed(9)
    for p in other.parameters():
        torch.nn.init.normal_(p)
    other.load_state_dict(copy.deepcopy(loss.state_dict()), strict=True)
    assert loss.log_z.isfinite().all()
    for seed, index in ((1, [5, 6, 7]), (2, [4, 0, 5])):
        assert torch.equal(run(loss, index, seed), run(other, index, seed))
    assert torch.equal(loss.student_bank, other.student_bank)


def test_pictures_without_a_number_are_refused():
    loss = crd()
    with pytest.raises(
        ValueError, match=r"expected 'sample_idx' .*found none; add it to the 'meta_keys' .*PackDetInputs"
    ):
        loss(S, T, samples=[DetDataSample(metainfo=dict(img_id=i)) for i in range(3)])
    with pytest.raises(ValueError, match="'sample_idx'"):
        loss(S, T)
    with pytest.raises(ValueError, match=r'CRDLoss\.num_samples: .*found 20 and a picture of sample_idx 20'):
        run(loss, [0, 20, 1])


def test_cold_scores_keep_z_finite():
    """At a temperature of 0.01 a similarity of 1 is exp(100), more than fp32 holds."""
    loss = crd(temperature=0.01).float()
    with torch.no_grad():
        for bank, linear in ((loss.student_bank, loss.student_embedding), (loss.teacher_bank, loss.teacher_embedding)):
            bank.fill_(0.5)
            linear.weight.zero_()
            linear.bias.fill_(1.0)  # embeddings and banks are all one vector
    value = loss(S.float(), T.float(), samples=samples(INDEX))
    torch.testing.assert_close(loss.log_z, torch.full((2,), 100 + math.log(20)))
    assert value.isfinite()


def test_z_is_estimated_anew_where_the_buffers_are_restored():
    """As after the extra passes of the policy's search, which come before the first step."""
    loss, fresh = crd(), crd()
    start = copy.deepcopy(loss.state_dict())
    run(loss, [1, 2, 4], seed=1)
    with torch.no_grad():
        for name, buffer in loss.named_buffers():
            buffer.copy_(start[name])
    assert torch.equal(run(loss), run(fresh))
    assert torch.equal(loss.log_z, fresh.log_z)


@pytest.mark.parametrize('n', [1, 4])  # fewer keys than the bank has rows, and more
def test_scores_and_their_gradient_outlive_the_bank(n):
    loss, bank, keys = crd(nce_k=7), feats(0, 20, 4)[..., 0, 0], torch.randint(20, (n, 8))
    query = feats(1, n, 4)[..., 0, 0].requires_grad_()
    kept = bank.clone()
    scores = loss._score(query, bank, keys)
    bank.zero_()
    scores.square().sum().backward()
    expected = torch.stack([(query[i] * kept[k]).sum() / 0.07 for i in range(n) for k in keys[i]]).view(n, 8)
    torch.testing.assert_close(scores, expected)
    (gradient,) = torch.autograd.grad(expected.square().sum(), query)
    torch.testing.assert_close(query.grad, gradient)


def test_a_picture_twice_in_a_batch_counts_once():
    loss = crd()
    _, sides, _ = replay(loss, [4, 19, 4])
    expected = reference.remember(loss.student_bank.numpy(), [4, 19], sides[0][:2], 0.5)
    run(loss, [4, 19, 4])
    torch.testing.assert_close(loss.student_bank, torch.from_numpy(expected))


def test_training_brings_each_picture_to_its_own_teacher():
    """A linear student of other inputs than the teacher's: its embedding must find the right one among 12."""
    torch.manual_seed(0)
    n = 12
    pictures = torch.randn(n, 16)
    teacher = torch.tanh(pictures @ torch.randn(16, 5))
    student = torch.nn.Linear(16, 3)
    loss = crd(num_samples=n, nce_k=11).float()
    parameters = [*student.parameters(), *loss.parameters()]
    assert len(parameters) == 6  # the teacher's embedding learns too
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    values = []
    for _ in range(100):
        batch = torch.randperm(n)[:6]
        value = loss(student(pictures[batch]), teacher[batch], samples=samples(batch.tolist()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.6 * sum(values[:10])
    with torch.no_grad():
        s = torch.nn.functional.normalize(loss.student_embedding(student(pictures)))
        t = torch.nn.functional.normalize(loss.teacher_embedding(teacher))
    similar = s @ t.t()
    others = (similar.sum(1) - similar.diagonal()) / (n - 1)
    assert (similar.diagonal() - others).min() > 0.3
    assert (similar.argmax(1) == torch.arange(n)).float().mean() > 0.8


SHARES = [0, 1, 2], [1, 3, 3]  # pictures of both ranks; two of them come twice


def worker(rank, folder):
    loss = crd()  # of one seed, as DDP makes it
    torch.manual_seed(rank)
    value = loss(S + rank, T - rank, samples=samples(SHARES[rank]))
    torch.save(dict(loss.state_dict(), value=value.detach()), folder / f'{rank}.pth')


@pytest.mark.slow
def test_ranks_keep_one_bank(tmp_path):
    on_two_ranks(worker, tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert first.pop('value') != second.pop('value')
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = crd()
    linear = start.student_embedding
    weights = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    seen = [row for rank in range(2) for row in reference.embed((S + rank).numpy(), *weights)]
    index = [*SHARES[0], *SHARES[1]]
    once = [i for i in range(6) if index[i] not in index[:i]]
    expected = reference.remember(start.student_bank.numpy(), [index[i] for i in once], [seen[i] for i in once], 0.5)
    torch.testing.assert_close(first['student_bank'], torch.from_numpy(expected))


def test_a_bank_that_nobody_has_filled_is_a_good_checkpoint():
    """GuardHook refuses what is not finite, and a term may rest at first."""
    loss = crd()
    assert all(value.isfinite().all() for value in loss.state_dict().values())
