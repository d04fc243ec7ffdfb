"""Policies before their first step, on the CPU."""

import torch

from distvae.methods.policy import Gamma, PolicyOptions


def gamma_of(options: PolicyOptions) -> Gamma:
    return options.start(torch.zeros((), dtype=torch.float64))
