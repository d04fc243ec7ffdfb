import torch

from distvae.model.posterior import Posterior


def test_sample_is_mean_and_scaled_noise():
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.log(torch.tensor([[4.0, 0.25]])))
    assert torch.equal(posterior.sample(torch.tensor([[0.5, 2.0]])), torch.tensor([[2.0, -1.0]]))
