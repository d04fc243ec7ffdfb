"""Run LSTMs in the right precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # h and c of an LSTM, each [1, b, H]


def run(lstm: nn.LSTM, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Return the outputs and the last state of an LSTM.

    It runs under the surrounding autocast, except when training on a GPU: there it runs in the precision of its
    weights. Under autocast cuDNN always runs LSTMs in float16, whose range is too small for the gradients of a young
    encoder without loss scaling.
    """
    outputs: tuple[Tensor, State]
    if inputs.is_cuda and lstm.training:
        dtype = lstm.get_parameter("weight_hh_l0").dtype
        with torch.autocast("cuda", enabled=False):
            outputs = lstm(inputs.to(dtype), None if state is None else (state[0].to(dtype), state[1].to(dtype)))
    else:
        outputs = lstm(inputs, state)
    return outputs
