"""When two runs have the same numbers, whatever number of processes each had."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Keys that tell the time or the memory, or which start of a run wrote what they stand in.
TIMES = {"seconds", "valid_seconds", "saving", "start", "peak_memory_mb"}


def timeless(content: Any) -> Any:
    """What two runs with the same numbers have in common, of what JSON holds: all but ``TIMES``."""
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key not in TIMES}
    return [timeless(value) for value in content] if isinstance(content, list) else content


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict[str, Any]]:
    """``records`` without times, and without which start of the run wrote them."""
    return timeless(records(run))


def assert_same_numbers(alone: Path, run: Path, world_size: int) -> None:
    """See that a run by ``world_size`` processes has the numbers of one by a single process."""
    expected, found = records(alone), records(run)
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        # Decisions are equal exactly …
        for key in ("stage", "epoch", "step", "kl_weight", "learning_rate", "verdict"):
            assert other[key] == one[key]
        assert other["train"]["sentences"] == one["train"]["sentences"]
        # … and sums to what rounding leaves.
        for key in ("re", "kl", "neg_elbo", "objective", "kl_per_dimension"):
            assert other["train"][key] == pytest.approx(one["train"][key], rel=2e-5, abs=1e-6)
        for key in ("re", "kl", "neg_elbo", "mutual_information"):
            assert other["valid"][key]["mean"] == pytest.approx(one["valid"][key]["mean"], rel=2e-5, abs=1e-5)

    here, there = weights(alone), weights(run)
    for name, value in here.items():
        assert there[name].sub(value).abs().max() < 2e-5, name

    one, other = (json.loads((folder / "results.json").read_text()) for folder in (alone, run))
    assert other["world_size"] == world_size
    assert other["scores"]["nll"]["mean"] == pytest.approx(one["scores"]["nll"]["mean"], rel=2e-5)
    assert other["scores"]["sentences"] == 20
    assert other["scores"]["tokens"] == one["scores"]["tokens"]


def weights(run: Path, kind: str = "best") -> dict[str, torch.Tensor]:
    """The weights that a run exported."""
    return load_file(run / kind / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
