"""A record of an epoch, and what trackers wrote of it."""

import json
import math
from pathlib import Path

from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

from distvae.evaluation.scores import Estimate, Scores
from distvae.runs.records import EpochRecord, Saving, TrainEpoch

VALID = Scores(
    sentences=2000,
    tokens=20_000,
    re=Estimate(31.25, 0.5),
    kl=Estimate(4.125, 0.0625),
    neg_elbo=Estimate(35.375, 0.5),
    elbo_ppl=Estimate(math.exp(3.5375), 0.25),
    active_units=2,
    mutual_information=Estimate(3.875, 0.03125),
    kl_per_dimension=(4.0, 0.125),
    seed=3,
)
TRAIN = TrainEpoch(
    re=33.5,
    kl=3.75,
    neg_elbo=37.25,
    objective=34.5,
    kl_per_dimension=(3.5, 0.25),
    sentences=40_000,
    skipped=0,
    seconds=16.0,
)


def record(step: int = 40, **values) -> EpochRecord:
    content = {
        "stage": "train",
        "epoch": step // 10,
        "step": step,
        "kl_weight": 0.3125,
        "learning_rate": 0.0625,
        "train": TRAIN,
        "valid": VALID,
        "valid_seconds": 2.5,
        "verdict": "improved",
        "saving": Saving(count=2, stall_seconds=0.25, write_seconds=1.5),
        "start": 1,
    }
    return EpochRecord(**content | values)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(run: Path, name: str) -> list[tuple[int, str]]:
    # What TensorBoard itself shows texts by: the other one does not purge them.
    events = plugin_event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def rows(run: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]
