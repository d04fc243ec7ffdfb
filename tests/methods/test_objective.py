"""The objective, against RE + γ·KL̃ written out."""

import pytest
import torch

from distvae.methods.annealing import Constant, Linear
from distvae.methods.free_bits import BatchBits, NoFreeBits, SentenceBits
from distvae.methods.objective import Objective

CPU = torch.device("cpu")
RE = torch.tensor([10.0, 20.0, 30.0])
KL = torch.tensor([[1.0, 0.5], [2.0, 4.0], [0.0, 0.25]])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_loss_is_re_plus_the_weighted_kl(weight):
    re, kl = RE.clone().requires_grad_(), KL.clone().requires_grad_()
    loss, measured = Objective(Constant(weight=weight), NoFreeBits(), CPU).loss(re, kl)
    assert loss.item() == pytest.approx(60 + weight * 7.75)
    assert measured.tolist() == pytest.approx([3, 60, loss.item(), 3.0, 4.75])
    assert not measured.requires_grad
    loss.backward()
    assert torch.equal(re.grad, torch.ones(3))
    assert torch.equal(kl.grad, torch.full((3, 2), weight))


def test_free_bits_replace_the_kl_term_and_not_what_is_measured():
    objective = Objective(Constant(weight=0.5), SentenceBits(target_rate=4.0), CPU)
    loss, measured = objective.loss(RE, KL)
    assert loss.item() == 60 + 0.5 * (4 + 6 + 4)
    assert measured[3:].tolist() == [3.0, 4.75]


def test_it_says_what_it_needs_of_the_global_batch():
    needs = [Objective(Constant(), form, CPU).needs_batch_mean for form in (NoFreeBits(), SentenceBits(), BatchBits())]
    assert needs == [False, False, True]
    objective = Objective(Constant(), BatchBits(target_rate=100.0), CPU)
    loss, _ = objective.loss(RE, KL, batch_mean=KL.mean(dim=0))
    assert loss.item() == 60 + 3 * 100


def test_no_sentence_is_a_loss_of_zero():
    loss, measured = Objective(Constant(), NoFreeBits(), CPU).loss(RE[:0], KL[:0])
    assert (loss.item(), measured.tolist()) == (0, [0] * 5)


def test_gamma_moves_where_a_step_reads_it():
    objective = Objective(Linear(anneal_epochs=2), NoFreeBits(), CPU)
    weight = objective.gamma.weight
    assert objective.loss(RE, KL)[0].item() == 60 + 0.5 * 7.75
    objective.gamma.end_epoch(3.0)
    assert objective.gamma.weight is weight
    assert objective.loss(RE, KL)[0].item() == 60 + 7.75


def test_it_resumes_from_its_state():
    first, second = (Objective(Linear(anneal_epochs=4), NoFreeBits(), CPU) for _ in range(2))
    first.gamma.end_epoch(3.0)
    second.load_state_dict(first.state_dict())
    assert (second.gamma.value, second.gamma.epochs) == (0.5, 1)
