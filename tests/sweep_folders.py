"""Folders of sweeps that nobody ran: the records are made up, and written as a run and a sweep write theirs."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from distvae.evaluation.scores import Estimate, Scores
from distvae.runs import attempts
from distvae.runs.records import EpochRecord, Saving, TrainEpoch
from distvae.runs.results import Results, results_to_dict
from distvae.runs.status import write_status
from distvae.runs.trackers import Trackers
from distvae.sweeps.lineage import Generation, save_lineage
from distvae.sweeps.progress import SweepProgress, Trial, save_progress, save_trials
from distvae.sweeps.space import Seeded
from distvae.sweeps.storage import dump_sweep, load_sweep
from distvae.sweeps.sweep import Sweep
from distvae.system.files import write_json, write_text

BASE = """
data: {path: captions, train_size: 80, valid_size: 20, test_size: 20}
model: {embedding_size: 4, hidden_size: 6, latent_size: 4}
pretrain: {max_epochs: 2}
train: {max_epochs: 8}
kl: {anneal_epochs: 3, target_rate: 4.0}
"""

# Spaces of sweep files.
LAMBDA = {"kl.target_rate": {"grid": [2, 4, 8]}}
CHI = {"kl.multiplier": {"uniform": [0.1, 0.5]}}


def sweep_of(folder: Path, **content) -> Sweep:
    """A sweep over λ and χ, but for what is given of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder.parent / "base.yaml"
    base.write_text(BASE)
    space = {"kl.target_rate": {"grid": [2, 4]}, "kl.multiplier": {"log_uniform": [0.01, 0.5]}}
    tree = {"base": str(base), "run": str(folder), "space": space, "num_samples": 3}
    file = folder.parent / "file.yaml"
    file.write_text(yaml.safe_dump(tree | content, sort_keys=False))
    return load_sweep(file)


def scores(nll: float, kl: float, mi: float, units: int, gap: float = 1.0, samples: int = 50) -> Scores:
    """−ELBO is ``gap`` nats above NLL."""
    return Scores(
        sentences=20,
        tokens=200,
        re=Estimate(nll + gap - kl, 0.2),
        kl=Estimate(kl, 0.05),
        neg_elbo=Estimate(nll + gap, 0.2),
        elbo_ppl=Estimate(math.exp((nll + gap) / 10), 0.1),
        active_units=units,
        mutual_information=Estimate(mi, 0.05),
        kl_per_dimension=(kl / 4,) * 4,
        seed=0,
        importance_samples=samples,
        nll=Estimate(nll, 0.15) if samples else None,
        ppl=Estimate(math.exp(nll / 10), 0.1) if samples else None,
        effective_samples=9.0 if samples else None,
        nll_excess=Estimate(-gap, 0.05) if samples else None,
    )


def record(stage: str, epoch: int, step: int, kl_weight: float, valid: Scores, verdict: str) -> EpochRecord:
    train = TrainEpoch(
        re=valid.re.mean, kl=valid.kl.mean, neg_elbo=valid.neg_elbo.mean, objective=valid.neg_elbo.mean,
        kl_per_dimension=valid.kl_per_dimension, sentences=80, skipped=0, seconds=2.0,
    )  # fmt: skip
    saving = Saving(count=1, stall_seconds=0.25, write_seconds=0.5)
    return EpochRecord(stage, epoch, step, kl_weight, 0.5, train, valid, 1.0, verdict, saving, 1)


def records(last: Scores, epochs: int = 8, first: int = 1, pretrain: int = 0, weight: float = 0.6) -> list[EpochRecord]:
    """Of a run whose last but one epoch is its best, with the scores ``last``."""
    found = [
        record("pretrain", epoch, 10 * epoch, 0.0, scores(30 - epoch, 9, 3, 4, samples=0), "improved")
        for epoch in range(1, pretrain + 1)
    ]
    best = max(first, epochs - 1)
    for epoch in range(first, epochs + 1):
        far = abs(best - epoch)
        valid = replace(
            last,
            nll=replace(last.nll, mean=last.nll.mean + 0.7 * far),
            ppl=replace(last.ppl, mean=math.exp((last.nll.mean + 0.7 * far) / 10)),
            kl=replace(last.kl, mean=last.kl.mean * (1 + 0.4 * math.sin(far))),
            re=replace(last.re, mean=last.neg_elbo.mean - last.kl.mean * (1 + 0.4 * math.sin(far))),
            kl_per_dimension=(last.kl.mean * (1 + 0.4 * math.sin(far)) / 4,) * 4,
        )
        gamma = min(epoch / 3, 1.0) if epoch <= 3 else weight
        verdict = "not counted" if epoch < 3 and epochs > 3 else "improved" if epoch <= best else "wait"
        found.append(record("train", epoch, 10 * (pretrain + epoch), gamma, valid, verdict))
    return found


def write_run(run: Path, last: Scores, curves: bool = True, **content) -> None:
    """A finished run's records: see ``records``. ``curves``: TensorBoard's too, which take their time."""
    run.mkdir(parents=True)
    if curves:
        trackers = Trackers(run)
        for one in records(last, **content):
            trackers.epoch(one)
        trackers.close()
    else:
        lines = [json.dumps(asdict(one)) + "\n" for one in records(last, **content)]
        (run / "metrics.jsonl").write_text("".join(lines))
    write_status(run, "finished", start=1)


def results_of(found: Scores, split: str) -> Results:
    return Results(split, found, None, (), "0123456789abcdef", 400, "fedcba9876543210", 1)


def write_finalist(folder: Path, number: int, valid: Scores, test: Scores) -> None:
    (folder / "finalists").mkdir(exist_ok=True)
    content = {"valid": results_to_dict(results_of(valid, "valid")), "test": results_to_dict(results_of(test, "test"))}
    write_json(folder / "finalists" / f"{number:04d}.json", content)


def write_sweep(asked: Sweep, trials: list[Trial], progress: SweepProgress | None = None) -> None:
    folder = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    start = attempts.claim(folder)
    write_json(folder / "starts" / f"{start.number:04d}.json", asdict(replace(start, ended=True)))
    for name, text in dump_sweep(asked).items():
        write_text(folder / name, text)
    save_trials(folder, trials)
    if progress is not None:
        save_progress(folder, progress)


# λ, χ, NLL, KL, MI, AU of the validation sentences; −ELBO is NLL + MI / 4. By −ELBO number 3 is the best, by NLL of the
# right KL number 5, then 1.
SCORES = {
    0: (2, 0.03, 19.5, 2.1, 1.9, 2),
    1: (2, 0.1, 18.4, 1.9, 1.8, 3),
    3: (4, 0.02, 18.2, 0.02, 0.0, 0),
    4: (4, 0.05, 18.9, 3.0, 2.8, 2),
    5: (4, 0.3, 17.9, 4.1, 3.7, 4),
}
ORDER = [5, 1, 0, 4, 3]


def small_sweep(folder: Path) -> Sweep:
    """A finished sweep of six trials, of which number 2 failed before its first epoch."""
    asked = sweep_of(folder)
    trials = []
    for number, (rate, chi, nll, kl, mi, units) in SCORES.items():
        found = scores(nll, kl, mi, units, gap=mi / 4)
        write_run(folder / "trials" / f"{number:04d}", found, pretrain=0)
        trials.append(
            Trial(number, {"kl.target_rate": rate, "kl.multiplier": chi}, "finished", node="n1", seconds=30.0)
        )
    trials[-2] = replace(trials[-2], state="stopped", reason="ended by asha, for others do better")
    reason = "kl.multiplier = <b>0.5</b> | is no good"
    trials.append(Trial(2, {"kl.target_rate": 2, "kl.multiplier": 0.5}, "failed", reason, seconds=5.0))
    (folder / "trials" / "0002").mkdir()
    write_run(folder / "pretrained" / "0123456789ab", scores(25, 9, 3, 4), epochs=0, pretrain=2)
    for number in (5, 1):
        _, _, nll, kl, mi, units = SCORES[number]
        better = scores(nll - 0.25, kl, mi, units, samples=500)
        worse = replace(better, nll=Estimate(nll + 0.125, 0.16), ppl=Estimate(math.exp((nll + 0.125) / 10), 0.1))
        write_finalist(folder, number, better, worse)
    progress = SweepProgress("finished", None, 1e9, 2, 200.0, 20.0, 100.0, 40.0, 200.0, 2, ("n1", "n2"))
    write_sweep(asked, sorted(trials, key=lambda trial: trial.number), progress)
    return asked


def pbt_sweep(folder: Path) -> Sweep:
    """Population-based training of two trials, of which the second went on from the first after its fourth epoch."""
    asked = sweep_of(
        folder,
        space={"kl.target_rate": {"uniform": [2, 6]}},
        num_samples=2,
        scheduler={"name": "pbt", "grace_epochs": 2, "interval_epochs": 2},
    )
    write_run(folder / "trials" / "0000", scores(18, 4, 3.5, 3, gap=0.9))
    write_run(folder / "trials" / "0001", scores(20, 2, 1.5, 1), epochs=4)
    write_run(folder / "trials" / "0001.1", scores(17.5, 4.6, 4.0, 4), epochs=8, first=5)
    later = Generation(folder / "trials" / "0001.1", folder / "trials" / "0000", 40, {"kl.target_rate": 4.8})
    save_lineage(later)
    trials = [
        Trial(0, {"kl.target_rate": 4.0}, "finished", seconds=60.0),
        Trial(1, {"kl.target_rate": 4.8}, "finished", seconds=62.0),
    ]
    write_sweep(asked, trials, SweepProgress("finished", None, 1e9, 1, 80.0, 0.0, 70.0, 0.0, 140.0, 2, ("n1",)))
    return asked


def large_sweep(folder: Path, count: int = 24) -> Sweep:
    """A sweep of many keys, some of which have conditions, on numbers of a simple law."""
    asked = sweep_of(
        folder,
        space={
            "kl.policy": {"choice": ["soft_free_bits", "linear"]},
            "kl.target_rate": {"choice": [2, 4, 8], "when": {"kl.policy": "soft_free_bits"}},
            "kl.multiplier": {"log_uniform": [0.02, 0.4], "when": {"kl.policy": "soft_free_bits"}},
            "optimizer.learning_rate": {"log_uniform": [0.05, 2.0]},
            "model.dropout": {"uniform": [0.0, 0.5]},
        },
        search="optuna",
        num_samples=count + 2,
        objective={"second": "mutual_information"},
    )
    trials = []
    for number in range(count):
        values = asked.draw(Seeded(7, number))
        dead = values["kl.policy"] == "linear"
        rate = values.get("kl.target_rate", 4)
        off = math.log(values["optimizer.learning_rate"] / 0.4) * (0.3 if number % 3 else 0.02)
        kl = 0.05 if dead else rate * (1 + 0.2 * off)
        nll = 18.5 - 0.1 * kl + 0.6 * off**2 + values["model.dropout"]
        found = scores(nll, kl, 0.85 * kl, round(min(4, kl)), gap=0.2 * kl + 0.05)
        write_run(folder / "trials" / f"{number:04d}", found, curves=False, epochs=8 if number % 4 else 5)
        state, reason = ("finished", None) if number % 7 else ("stopped", "stop.hours = 1 have passed")
        trials.append(Trial(number, values, state, reason, "n1", 1e9, 25.0 + number, 1))
    trials[4] = replace(trials[4], state="failed", reason="the loss or gradient of step 12 is not finite")
    trials[5] = replace(trials[5], state="running")
    trials.append(Trial(count, asked.draw(Seeded(7, count)), "waiting"))
    write_sweep(
        asked, trials, SweepProgress("interrupted", "interrupted by SIGTERM", 1e9, 1, 500.0, 0.0, 400.0, 0.0, 1200.0, 3)
    )
    return asked
