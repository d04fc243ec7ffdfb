"""The training program in one process: the whole recipe, going on, and what it says to bad input."""

import gzip
import json
import math
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distvae import corpus, engine
from distvae import train as program
from distvae.batches import training_plan
from distvae.captions import generate
from distvae.checkpoint import load_export
from distvae.config import load_config
from distvae.kl_control import POLICIES
from distvae.train import main
from distvae.vocabulary import join
from tests.conftest import ROOT


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, kind="best"):
    return load_file(run / kind / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def refused(tiny, tmp_path, capsys):
    """Runs the program on input that it must refuse; returns the one line that it says."""

    def run(*overrides, config=tiny):
        folder = tmp_path / "refused"
        code = main([str(config), f"run={folder}", *overrides])
        said = capsys.readouterr()
        assert code == 2
        assert said.out == ""
        assert said.err.startswith("distvae: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


# -- The recipe --------------------------------------------------------------------------------------------------------


def test_a_run_folder_explains_its_run(finished, tiny):
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## A run's folder")[1].split("```")[1]
    assert {path.name for path in finished.iterdir()} == set(re.findall(r"^  ([\w.]+)", tree, flags=re.MULTILINE))
    assert {path.name for path in (finished / "best").iterdir()} == {
        "model.safetensors", "config.yaml", "vocabulary.json", "manifest.json",
    }  # fmt: skip
    # The precision that the launcher chose is written down with the rest.
    asked = load_config(tiny, [f"run={finished}", "optimizer.mixed_precision=no"])
    assert load_config(finished / "config.yaml") == asked
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"
    packages = json.loads((finished / "environment.json").read_text())["packages"]
    assert packages["torch"] == torch.__version__
    results = json.loads((finished / "results.json").read_text())
    assert results["vocabulary"] == load_export(finished).vocabulary.fingerprint
    assert results["floor"]["nll"]["mean"] < results["scores"]["nll"]["mean"]


def test_stages_follow_the_recipe(finished):
    rows = records(finished)
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 2), ("train", 3), ("train", 4),
    ]  # fmt: skip
    assert [row["kl_weight"] for row in rows[:4]] == [0.0, 0.0, 0.5, 1.0]
    assert [row["verdict"] for row in rows[2:4]] == ["not counted"] * 2


def test_gamma_follows_the_logged_kl(finished, tiny):
    rows = [row for row in records(finished) if row["stage"] == "train"]
    policy = POLICIES["soft_free_bits"](load_config(tiny).kl)
    for row in rows:
        assert row["kl_weight"] == policy.weight
        policy.end_epoch(row["train"]["kl"])


def test_pretraining_hands_on_the_encoder_and_not_the_decoder(tiny, tmp_path, monkeypatch):
    starts = {}
    train_epoch = program.Trainer._train_epoch

    def spy(self, stage, *others):
        starts.setdefault(stage.name, self._weights())
        return train_epoch(self, stage, *others)

    monkeypatch.setattr(program.Trainer, "_train_epoch", spy)
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "train.max_epochs=1"]) == 0
    pretrained = weights(run, "pretrained")
    for name, start in starts["train"].items():
        assert torch.equal(start, pretrained[name]) == name.startswith("encoder."), name
        bound = 1.0 if "embedding" in name else 0.3
        assert name.startswith("encoder.") or start.abs().max() <= bound


def test_the_best_weights_are_scored(tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "kl.policy=linear", "train.max_epochs=12", "optimizer.learning_rate=3"]) == 0
    rows = [row for row in records(run) if row["stage"] == "train"]
    counted = [row for row in rows if row["epoch"] > 2]
    best = min(counted, key=lambda row: row["valid"]["neg_elbo"]["mean"])
    assert best is not rows[-1]  # or the test would show nothing
    end = json.loads((run / "results.json").read_text())["stages"][-1]
    assert end["best_epoch"] == best["epoch"]
    decays = [row["verdict"] for row in counted].count("decay")
    assert decays > 0
    assert rows[-1]["learning_rate"] == 3 * 0.5 ** (decays - (rows[-1]["verdict"] == "decay"))


def test_no_best_without_a_kl_in_its_band(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "kl.target_rate=50"]) == 0
    said = capsys.readouterr().out
    assert "WARNING" in said
    assert "could be taken as the best" in said
    assert {row["verdict"] for row in records(run) if row["stage"] == "train"} == {"not counted"}
    assert json.loads((run / "results.json").read_text())["stages"][-1]["best_epoch"] is None
    # What lies in best/ are the last weights.
    last = run / "checkpoints" / "latest"
    assert equal(weights(run), load_file(last / "model.safetensors"))


def test_an_autoencoder_ends_after_pretraining(tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "train.max_epochs=0"]) == 0
    assert {row["stage"] for row in records(run)} == {"pretrain"}
    assert equal(weights(run), weights(run, "pretrained"))


def test_runs_share_a_pretraining(finished, tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", f"pretrained={finished}"]) == 0
    # The same encoder and the same draws: the same training as in the run that pretrained it.
    assert records(run)[0]["train"]["re"] == records(finished)[2]["train"]["re"]
    assert equal(weights(run), weights(finished))


@pytest.mark.parametrize("form", ["none", "dimension", "sentence_dimension", "sentence", "batch"])
def test_accumulation_changes_no_form_of_free_bits(tiny, tmp_path, form):
    runs = []
    for steps in (1, 3):
        run = tmp_path / str(steps)
        overrides = [f"optimizer.accumulation_steps={steps}", "pretrain.max_epochs=0", "train.max_epochs=2"]
        method = ["kl.policy=constant", f"kl.free_bits={form}", "kl.target_rate=1"]
        assert main([str(tiny), f"run={run}", *overrides, *method]) == 0
        runs.append(run)
    one, other = map(weights, runs)
    assert all(torch.allclose(one[name], other[name], atol=2e-6) for name in one)
    assert records(runs[0])[-1]["train"]["objective"] == pytest.approx(records(runs[1])[-1]["train"]["objective"])


def test_bf16_trains_close_to_float32(finished, tiny, tmp_path):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "optimizer.mixed_precision=bf16"]) == 0
    pairs = list(zip(records(run), records(finished), strict=True))
    assert all(one["train"]["re"] == pytest.approx(other["train"]["re"], rel=0.01) for one, other in pairs)
    assert any(one["train"]["re"] != other["train"]["re"] for one, other in pairs)
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


# -- Going on ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("stage", "epoch"), [("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 3)])
def test_a_killed_run_goes_on_to_the_same_bits(finished, tiny, tmp_path, monkeypatch, stage, epoch):
    run = tmp_path / "run"
    train_epoch = program.Trainer._train_epoch

    def kill(self, at, progress, under_way):
        if (at.name, progress.epoch + 1) == (stage, epoch):
            raise Killed
        return train_epoch(self, at, progress, under_way)

    monkeypatch.setattr(program.Trainer, "_train_epoch", kill)
    with pytest.raises(Killed):
        main([str(tiny), f"run={run}"])
    monkeypatch.undo()
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert main([str(tiny), f"run={run}"]) == 0
    assert equal(weights(run), weights(finished))
    kept = ("stage", "epoch", "step", "kl_weight", "learning_rate", "valid", "verdict")
    assert [{k: row[k] for k in kept} for row in records(run)] == [
        {k: row[k] for k in kept} for row in records(finished)
    ]


def test_a_longer_limit_goes_on_where_a_run_ended(tiny, tmp_path):
    straight, extended = tmp_path / "straight", tmp_path / "extended"
    assert main([str(tiny), f"run={straight}", "train.max_epochs=6"]) == 0
    assert main([str(tiny), f"run={extended}", "train.max_epochs=4"]) == 0
    assert main([str(tiny), f"run={extended}", "train.max_epochs=6"]) == 0
    assert equal(weights(straight), weights(extended))


def test_a_run_that_goes_on_has_no_results_until_it_ends(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "train.max_epochs=3"]) == 0
    monkeypatch.setattr(program.Trainer, "_train_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    longer = [str(tiny), f"run={run}", "train.max_epochs=4"]
    assert main(longer) == 75
    assert not (run / "results.json").exists()
    monkeypatch.undo()
    assert main(longer) == 0
    assert json.loads((run / "results.json").read_text())["stages"][-1]["epochs"] == 4


def test_a_finished_run_is_not_run_again(finished, tiny, capsys):
    before = (finished / "metrics.jsonl").read_text()
    assert main([str(tiny), f"run={finished}"]) == 0
    assert "NLL" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_text() == before


# -- Bad input ---------------------------------------------------------------------------------------------------------


def test_an_existing_run_is_left_alone(finished, tiny, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for overrides, words in [
        (["resume=never"], ("resume=auto", "run=FOLDER")),
        (["resume=nowhere"], ("resume=nowhere", "neither auto nor never")),
        (["kl.target_rate=9"], ("kl.target_rate", "0.3 there, 9.0 here")),
        (["kl.threshold=7"], ("kl.threshold",)),
        (["kl.treshold=0.1"], ("did you mean kl.threshold?",)),
    ]:
        assert main([str(tiny), f"run={finished}", *overrides]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(word in said for word in words), said
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["kl.target_rate=-1"], ["kl.target_rate = -1", "greater than or equal to 0"]),
        (["kl.threshold=1"], ["kl.threshold = 1", "less than 1"]),
        (["kl.multiplier=0"], ["kl.multiplier = 0", "greater than 0"]),
        (["model.dropout=1"], ["model.dropout = 1"]),
        (["optimizer.batch_sise=1"], ["unknown key optimizer.batch_sise", "did you mean optimizer.batch_size?"]),
        (["optimizer.batch_size=2", "optimizer.accumulation_steps=3"], ["smaller than 1 processes × 3"]),
        (["data.path=nowhere"], ["nowhere"]),
        (["pretrained=nowhere"], ["nowhere"]),
        (["data.columns=[]"], ["data.columns"]),
        (["kl.weight=0.5"], ["kl.weight belongs to policies constant and linear"]),
    ],
)
def test_bad_settings_get_one_line_and_a_status(refused, tmp_path, overrides, words):
    said = refused(*overrides)
    assert all(word in said for word in words), said
    status = json.loads((tmp_path / "refused" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"] in said
    # The folder is free for the next try, which needs no clearing up.
    assert not program.holds_run(tmp_path / "refused")


def test_a_start_that_failed_leaves_its_folder_free(refused, tiny, tmp_path):
    refused("data.path=nowhere")
    assert main([str(tiny), f"run={tmp_path / 'refused'}"]) == 0


def test_a_missing_config_file_is_named(refused, tmp_path):
    assert "nothing.yaml" in refused(config=tmp_path / "nothing.yaml")


def test_a_pretraining_of_another_size_or_vocabulary_is_refused(finished, refused, tmp_path):
    assert "model.hidden_size is 16 there and 24 here" in refused(f"pretrained={finished}", "model.hidden_size=24")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(join(tokens) for tokens in generate(60, 1)))
    assert "vocabulary" in refused(f"pretrained={finished}", f"data.path={text}", "data.train_size=null")


def test_numbers_that_are_not_finite_stop_the_run_at_their_step(tiny, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    step = program.Trainer._step

    def poison(self, stage, place, sentences, sums):
        if self.step == 15:  # in the second epoch of 11 steps
            with torch.no_grad():
                self.model.decoder.output.weight[7, 3] = math.inf
        return step(self, stage, place, sentences, sums)

    monkeypatch.setattr(program.Trainer, "_step", poison)
    assert main([str(tiny), f"run={run}"]) == 2
    said = capsys.readouterr().err
    assert "the loss or gradient of step 15, on sentences" in said
    assert "is not finite (pretrain, epoch 2)" in said
    checkpoint = run / "checkpoints" / "start-0001-step-000000011-epoch-0001"
    assert str(checkpoint) in said
    batch = json.loads((run / "not_finite.json").read_text())
    assert (batch["step"], batch["stage"], batch["epoch"], batch["kl_weight"]) == (15, "pretrain", 2, 0.0)
    config = load_config(tiny)
    sentences = corpus.load(corpus.prepare(config.data, progress=False)).train
    plan = training_plan(sentences.lengths, 8, (config.seed, 0, 2))
    assert batch["sentences"] == plan[3].tolist()
    assert batch["lengths"] == sentences.lengths[plan[3]].tolist()
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert "step 15" in json.loads((run / "status.json").read_text())["reason"]


def test_a_score_that_is_not_finite_stops_the_run(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "optimizer.learning_rate=1e5", "optimizer.clip_norm=1e5"]) == 2
    said = capsys.readouterr().err
    assert "is not finite" in said
    assert said.count("\n") == 1


def test_a_step_that_is_not_finite_moves_no_weight(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    seen = {}
    train_epoch, step = program.Trainer._train_epoch, engine.Replicated.step

    def remember(self, *arguments):
        seen["trainer"] = self
        return train_epoch(self, *arguments)

    def poison(self):
        trainer = seen["trainer"]
        if trainer.step == 5:
            next(iter(trainer.model.parameters())).grad[0, 0] = math.nan
            seen["before"] = trainer._weights()
        if trainer.step == 6:
            seen["after"] = trainer._weights()
        return step(self)

    monkeypatch.setattr(program.Trainer, "_train_epoch", remember)
    monkeypatch.setattr(engine.Replicated, "step", poison)
    assert main([str(tiny), f"run={run}"]) == 2
    assert equal(seen["before"], seen["after"])


def test_sentences_that_changed_since_a_checkpoint_are_refused(tiny, tmp_path, capsys):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("\n".join(join(tokens) for tokens in generate(60, 1)))
    overrides = [str(tiny), f"run={run}", f"data.path={text}", "data.train_size=null", "train.max_epochs=0"]
    assert main(overrides) == 0
    text.write_text("\n".join(join(tokens) for tokens in generate(60, 2)))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*overrides, "evaluation.samples=3"]) == 2
    assert "was trained on other sentences" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_says_so(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program.Trainer, "_train_epoch", interrupt)
    assert main([str(tiny), f"run={run}"]) == 75
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


def test_a_run_cannot_be_a_file(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main([str(tiny), f"run={tmp_path / 'file'}"]) == 2
    assert "cannot be a run's folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


# -- Sentences of one's own --------------------------------------------------------------------------------------------


def test_sentences_in_the_form_of_snli_train_the_whole_recipe(tiny, tmp_path, capsys):
    """Split files of jsonl.gz with a premise and a hypothesis each: pooled, counted, trained, scored."""
    folder = tmp_path / "snli"
    folder.mkdir()
    captions = [join(tokens) for tokens in generate(240, 3)]
    for split, start, stop in (("train", 0, 160), ("dev", 160, 200), ("test", 200, 240)):
        rows = [
            {"gold_label": "neutral", "sentence1": one, "sentence2": two}
            for one, two in zip(captions[start:stop:2], captions[start + 1 : stop : 2], strict=True)
        ]
        rows.append({"gold_label": "-", "sentence1": "", "sentence2": "word " * 30})
        with gzip.open(folder / f"snli_1.0_{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    run = tmp_path / "run"
    data = [f"data.path={folder}", "data.columns=[sentence1,sentence2]", "data.max_words=20", "data.train_size=null"]
    assert main([str(tiny), f"run={run}", *data, "data.min_count=2"]) == 0
    said = capsys.readouterr().out
    assert "empty line" in said
    assert "more than 20 words" in said
    results = json.loads((run / "results.json").read_text())
    assert results["floor"] is None
    assert results["scores"]["sentences"] == 20


def test_sentences_of_ones_own_need_no_more_than_their_path(tiny, tmp_path):
    """As the README says, with a small model."""
    text, run = tmp_path / "mine.txt", tmp_path / "run"
    text.write_text("\n".join(join(tokens) for tokens in generate(100, 5)))
    small = ["model.hidden_size=8", "pretrain.max_epochs=1", "train.max_epochs=1", "evaluation.importance_samples=2"]
    cache = load_config(tiny).data.cache
    own = str(ROOT / "configs" / "own.yaml")
    assert main([own, f"data.path={text}", f"run={run}", f"data.cache={cache}", "cpu_threads=1", *small]) == 0
    assert json.loads((run / "results.json").read_text())["scores"]["sentences"] == 10


def test_the_rows_of_the_papers_table_differ_in_their_method_alone():
    rows = {}
    for name in ("ae", "kla", "pt_kla", "pt_kla_fb", "pt_kla_sfb"):
        with open(ROOT / "configs" / "snli" / f"{name}.yaml") as file:
            rows[name] = yaml.safe_load(file)
    assert all(row["data"] == rows["ae"]["data"] for row in rows.values())
    assert all(set(row) <= {"data", "pretrain", "train", "kl"} for row in rows.values())
    assert rows["kla"]["pretrain"]["max_epochs"] == 0
    assert rows["ae"]["train"]["max_epochs"] == 0
    assert rows["pt_kla_fb"]["kl"]["free_bits"] == "dimension"


def test_a_run_folder_can_move(finished, tmp_path):
    """Nothing in an export points outside it."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished / "best", moved)
    assert equal(load_export(moved).weights, weights(finished))
