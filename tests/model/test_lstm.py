import torch
from torch import nn

from distvae.distributed.device import has_bf16
from distvae.model import lstm


def test_outputs_and_state_are_those_of_the_lstm_in_the_precision_around_it():
    torch.manual_seed(0)
    module, inputs = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
    state = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    for first in (None, state):
        outputs, last = lstm.run(module, inputs, first)
        expected, expected_last = module(inputs, first)
        assert torch.equal(outputs, expected)
        assert all(map(torch.equal, last, expected_last))
    if not has_bf16(torch.device("cpu")):  # oneDNN's would refuse; a run does without
        return
    with torch.autocast("cpu", torch.bfloat16):
        assert lstm.run(module, inputs)[0].dtype == module(inputs)[0].dtype
