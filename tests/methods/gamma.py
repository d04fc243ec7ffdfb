"""Policies before their first step, on the CPU."""

import torch

from distvae.methods.policy import Gamma, PolicyOptions


def gamma_of(options: PolicyOptions) -> Gamma:
    return options.start(torch.zeros((), dtype=torch.float64))


def steps(policy: Gamma, kls: list[float]) -> list[float]:
    """γ after each step."""
    seen = []
    for kl in kls:
        policy.end_step(torch.tensor(kl))
        seen.append(policy.value)
    return seen
