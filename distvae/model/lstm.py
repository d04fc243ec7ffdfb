"""Run LSTMs in the right precision, and without repeating products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def run_draws(lstm: nn.LSTM, words: Tensor, z: Tensor, sentence: Tensor, state: State) -> Tensor:
    """Return the outputs of an LSTM whose input at each step is a word of a sentence and a z that stays the same.

    What the words add to the gates is computed once for all draws of a sentence, and what z adds once for all steps.

    Args:
        words: embedded, [b, T, E].
        z: [n, m].
        sentence: of each z, [n].
        state: the first one, of n rows.

    Returns:
        [n, T, H].
    """
    weight, recurrent, *biases = (
        lstm.get_parameter(name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )
    of_words = F.linear(words, weight[:, : words.shape[2]], biases[0] + biases[1])
    of_z = F.linear(z, weight[:, words.shape[2] :])
    h, c = (each.squeeze(0) for each in state)
    outputs = h.new_empty(len(z), words.shape[1], lstm.hidden_size)
    for step in range(words.shape[1]):
        gates = of_words[sentence, step].add_(of_z).addmm_(h, recurrent.t())
        take, keep, new, show = gates.chunk(4, dim=1)
        c = (c * keep.sigmoid_()).addcmul_(take.sigmoid_(), new.tanh_())
        h = torch.mul(show.sigmoid_(), c.tanh(), out=outputs[:, step])
    return outputs
