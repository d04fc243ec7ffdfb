"""Folders of methods, the paper's and others, that nobody ran: the scores are made up, and written as by a run."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from distvae.config.load import dump_config, parse_config
from distvae.config.schema import CAPTIONS, Config
from distvae.data import captions
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.scores import SentenceScores, mean_estimate, perplexity
from distvae.model.vae import model_of
from distvae.runs import checkpoints
from distvae.runs.results import Results, StageEnd, save_results, save_sentence_scores
from distvae.system.files import write_json, write_text
from tests.sweep_folders import record, scores

N = 200
TOKENS = np.arange(N) % 5 + 8

SIZES = {"embedding_size": 4, "hidden_size": 6, "latent_size": 4}
TREES = {
    "ae": {"train": {"max_epochs": 0}},
    "kla": {"pretrain": {"max_epochs": 0}, "kl": {"policy": "linear"}},
    "pt_kla": {"pretrained": "runs/ae", "kl": {"policy": "linear"}},
    "pt_kla_fb": {"pretrained": "runs/ae", "kl": {"policy": "linear", "free_bits": "dimension"}},
    "pt_kla_sfb": {"pretrained": "runs/ae"},
    # Rows of the field's table.
    "lstm_lm": {
        "model": SIZES | {"latent_size": 0},
        "pretrain": {"max_epochs": 0},
        "kl": {"policy": "constant"},
    },
    "cyclical": {"pretrain": {"max_epochs": 0}, "kl": {"policy": "cyclical"}},
    "beta": {"pretrain": {"max_epochs": 0}, "kl": {"policy": "constant", "weight": 0.4}},
    "mdr": {"pretrain": {"max_epochs": 0}, "kl": {"policy": "lagrangian"}},
}

# RE, KL, NLL, MI, AU as the paper would have them.
PAPER = {
    "ae": (6.8, 90.0, None, 8.0, 4),
    "kla": (36.0, 0.02, 35.9, 0.01, 0),
    "pt_kla": (36.2, 0.01, 36.1, 0.0, 0),
    "pt_kla_fb": (32.0, 4.8, 35.1, 4.0, 4),
    "pt_kla_sfb": (32.4, 4.2, 35.4, 3.8, 4),
}

# Further rows: the language model; one that pays, one that does not, and one that cannot be told apart from the model.
FIELD = {
    "lstm_lm": (36.0, 0.0, 36.0, 0.0, 0),
    "cyclical": (33.0, 3.0, 35.2, 2.5, 3),
    "beta": (30.0, 9.0, 36.5, 1.0, 4),
    "mdr": (36.2, 0.1, 36.005, 0.1, 1),
}


def config_of(row: str, run: Path, seed: int = 0, **more) -> Config:
    tree = {"run": str(run), "seed": seed, "model": SIZES} | TREES[row]
    return parse_config(tree | more, row)


def sentence_scores(row: str, seed: int = 0, shift: float = 0.0) -> SentenceScores:
    """Scores around those of ``PAPER``, whose noise is that of the sentence but for a little of the run's own."""
    re, kl, nll, information, _ = (PAPER | FIELD)[row]
    shared = np.random.default_rng(5).normal(0, 6, N)
    own = np.random.default_rng([list(PAPER | FIELD).index(row), seed]).normal(0, 0.2, (3, N))
    shared -= shared.mean()
    return SentenceScores(
        TOKENS.astype(np.float64),
        re + shared + own[0] + shift,
        np.full(N, kl) + own[1] * min(kl, 1),
        np.full(N, information),
        None if nll is None else nll + shared + own[0 if row == "lstm_lm" else 2] + shift,
    )


def write_run(
    run: Path,
    row: str,
    seed: int = 0,
    shift: float = 0.0,
    finished: bool = True,
    corpus: str = "fedcba9876543210",
    **more,
) -> Config:
    """A run of a row. ``more``: of its config."""
    run.mkdir(parents=True)
    config = config_of(row, run, seed, **more)
    write_text(run / "config.yaml", dump_config(config))
    environment = {"python": "3.11.7", "device": "a CPU", "processes": "1 process", "commit": "0123456789abcdef"}
    packages = {"distvae": "0.1.0", "torch": "2.13.0"}
    write_json(run / "environment.json", environment | {"packages": packages})
    re, kl, _, information, units = (PAPER | FIELD)[row]
    stage = "pretrain" if row == "ae" else "train"
    lines = []
    for epoch in range(1, 17):
        weight = 0.0 if row == "ae" else min(epoch / 10, 1.0)
        # Free bits swing more than soft ones, which swing more than what is dead.
        swing = {"pt_kla_fb": 0.6, "pt_kla_sfb": 0.2}.get(row, 0.0) * (-1) ** epoch
        valid = scores(re + kl + 16 - epoch, kl + swing, information, units, samples=0)
        lines.append(json.dumps(asdict(record(stage, epoch, 10 * epoch, weight, valid, "improved"))) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))
    if finished:
        each = sentence_scores(row, seed, shift)
        save_sentence_scores(run, each)
        counts = dict.fromkeys(captions.words(), 9)
        closed = config.data.path == CAPTIONS
        vocabulary = Vocabulary.closed(counts) if closed else Vocabulary.build(counts, 2, "classes", "words")
        write_results(run, row, each, stage, vocabulary, corpus)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # what an untrained model decodes is the same each time
            model = model_of(config, len(vocabulary), vocabulary.pad, vocabulary.unknown)
        checkpoints.export(run / "best", model.state_dict(), config, vocabulary, 1, 160)
    return config


def write_results(run: Path, row: str, each: SentenceScores, stage: str, vocabulary: Vocabulary, corpus: str) -> None:
    neg_elbo, has_nll = each.re + each.kl, each.nll is not None
    weighted = has_nll and row != "lstm_lm"
    made = scores(0, 0, 0, (PAPER | FIELD)[row][4], samples=500 if weighted else 0)
    found = replace(
        made,
        sentences=N,
        tokens=int(TOKENS.sum()),
        re=mean_estimate(each.re),
        kl=mean_estimate(each.kl),
        kl_per_dimension=() if row == "lstm_lm" else (float(each.kl.mean()) / 4,) * 4,
        neg_elbo=mean_estimate(neg_elbo),
        elbo_ppl=perplexity(neg_elbo, each.tokens),
        mutual_information=mean_estimate(each.mutual_information),
        nll=mean_estimate(each.nll) if has_nll else None,
        ppl=perplexity(each.nll, each.tokens) if has_nll else None,
        nll_excess=mean_estimate(each.nll - neg_elbo) if weighted else None,
    )
    ends = (StageEnd(stage, 16, True, 14),)
    results = Results("test", found, None, ends, vocabulary.fingerprint, len(vocabulary), corpus, 1)
    save_results(run, results)


def write_table(folder: Path, seeds: int = 1, rows=tuple(PAPER)) -> list[Path]:
    """Runs of all rows, those of a seed lying a little off the others."""
    runs = []
    for seed in range(seeds):
        for row in rows:
            runs.append(folder / f"seed-{seed}" / row)
            write_run(runs[-1], row, seed, shift=0.1 * seed)
    return runs
