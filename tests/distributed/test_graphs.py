"""Recorded steps. Without a GPU a stand-in takes the graph's part: it runs the step anew on the tensors it holds."""

import torch

from distvae.distributed import graphs
from distvae.distributed.graphs import GraphedSteps
from distvae.train import main
from distvae.training import trainer
from tests.compare import numbers


class Graph:
    """Does what a CUDA graph does: on the inputs it holds, into the output it holds."""

    def __init__(self, steps, compute, held, output):
        self.steps, self.compute, self.held, self.output = steps, compute, held, output

    def replay(self):
        self.output.copy_(self.steps._eager(self.compute, self.held))


class StandIn(GraphedSteps):
    def __init__(self, parameters):
        self._parameters = list(parameters)
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._recorded = {}

    def _record(self, compute, inputs):
        held = {name: value.clone() for name, value in inputs.items()}
        for _ in range(graphs.WARM_UP):
            output = self._eager(compute, held)
        return graphs._Recorded(Graph(self, compute, held, output), held, output)


def steps_of(*weights):
    parameters = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]

    def compute(x, y=None):
        loss = (parameters[0] * x).sum() + (0 if y is None else (parameters[1] * y).sum())
        loss.backward()
        return loss.detach()

    return parameters, compute


def test_a_step_that_is_played_again_takes_new_values_and_leaves_their_gradients_alone():
    parameters, compute = steps_of([1.0, 2.0], [3.0])
    steps = StandIn(parameters)
    for x, y in [([1.0, 1.0], [1.0]), ([2.0, 5.0], [7.0]), ([0.0, 1.0], [2.0])]:
        assert steps("a", compute, {"x": torch.tensor(x), "y": torch.tensor(y)}) == x[0] + 2 * x[1] + 3 * y[0]
        assert [p.grad.tolist() for p in parameters] == [x, y]
        for p in parameters:
            p.grad = None  # as the optimizer leaves them
    assert len(steps._recorded) == 1


def test_what_is_forgotten_is_recorded_anew():
    parameters, compute = steps_of([1.0], [3.0])
    steps = StandIn(parameters)
    steps("a", compute, {"x": torch.ones(1), "y": torch.ones(1)})
    steps.clear()
    assert not steps._recorded
    assert steps("a", compute, {"x": torch.tensor([5.0]), "y": torch.ones(1)}) == 8
    assert len(steps._recorded) == 1


def test_each_shape_and_key_has_a_record_of_its_own_and_all_share_the_gradients():
    parameters, compute = steps_of([1.0], [3.0])
    steps = StandIn(parameters)
    steps("a", compute, {"x": torch.ones(1), "y": torch.ones(1)})
    held = [p.grad for p in parameters]
    steps("a", compute, {"x": torch.ones(2), "y": torch.ones(1)})
    steps("b", compute, {"x": torch.ones(1), "y": torch.ones(1)})
    steps("a", compute, {"x": torch.ones(1)})
    assert len(steps._recorded) == 4
    assert all(p.grad is gradient for p, gradient in zip(parameters, held, strict=True))
    assert [p.grad.item() for p in parameters] == [1, 0]


def test_shapes_beyond_the_limit_run_without_a_record(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 1)
    parameters, compute = steps_of([1.0], [3.0])
    steps = StandIn(parameters)
    for size in (1, 2, 2, 1):
        assert steps("a", compute, {"x": torch.full((size,), 2.0), "y": torch.ones(1)}) == 2 * size + 3
        assert parameters[0].grad.item() == 2 * size
    assert len(steps._recorded) == 1


def test_a_training_of_recorded_steps_is_the_training(tiny, tmp_path, monkeypatch):
    plain, played = tmp_path / "plain", tmp_path / "played"
    method = ["kl.free_bits=dimension", "model.word_dropout=0.2", "speed.embedding_gradients=dense"]
    assert main([str(tiny), f"run={plain}", *method]) == 0
    used = []

    def stand_in(runtime, parameters, accumulation_steps):
        used.append(StandIn(parameters))
        return used[-1]

    monkeypatch.setattr(trainer, "graphed_steps", stand_in)
    assert main([str(tiny), f"run={played}", *method, "speed.cuda_graphs=true"]) == 0
    assert len(used[0]._recorded) > 2
    assert numbers(played) == numbers(plain)


def test_graphs_are_refused_where_there_is_no_gpu(tiny, tmp_path, capsys):
    assert main([str(tiny), f"run={tmp_path / 'run'}", "speed.cuda_graphs=true"]) == 2
    assert "speed.cuda_graphs needs a single process on a GPU" in capsys.readouterr().err
