"""The training program in one process: the whole recipe, going on, and what it says to bad input."""

import gzip
import json
import os
import re
import shutil
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distvae import train as program
from distvae.config.load import load_config
from distvae.data.captions import generate
from distvae.distributed import sync
from distvae.distributed.sync import RankSync
from distvae.evaluation import scoring
from distvae.runs.checkpoints import Saver, load_export, load_state
from distvae.runs.folder import holds_run
from distvae.runs.results import load_results
from distvae.system.errors import UserError
from distvae.system.files import sha256
from distvae.system.signals import INTERRUPTED
from distvae.tokenization import BUILT_IN
from distvae.train import main
from distvae.training.step import TrainStep
from tests.compare import equal, numbers, records, weights
from tests.conftest import PATIENCE, ROOT


@pytest.fixture(scope="session")
def pretrained_only(tiny, tmp_path_factory):
    """The folder of an autoencoder's run. Tests leave it as it is."""
    run = tmp_path_factory.mktemp("runs") / "pretrained only"
    assert main([str(tiny), f"run={run}", "train.max_epochs=0"]) == 0
    return run


@pytest.fixture
def refused(tiny, tmp_path, capsys):
    """Runs the program on input that it must refuse; returns the one line that it says."""

    def run(*overrides, config=tiny):
        folder = tmp_path / "refused"
        code = main([str(config), f"run={folder}", *overrides])
        said = capsys.readouterr()
        assert code == 2
        assert all("unknown words: " in line or ": starting " in line for line in said.out.splitlines())
        assert said.err.startswith("distvae: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


# -- A run's folder ---------------------------------------------------------------------------------------------------


def test_a_run_folder_explains_its_run(finished, tiny):
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## A run's folder")[1].split("```")[1]
    listed = set(re.findall(r"^  ([\w.]+)", tree, flags=re.MULTILINE))
    # By `distvae probe`, `posterior` and `gain`, and by tracking.with.
    asked_for = {"probes.json", "posterior.json", "gain.json", "trackers.json"}
    assert asked_for < listed
    assert {path.name for path in finished.iterdir()} - asked_for == listed - asked_for
    assert {path.name for path in (finished / "best").iterdir()} == {
        "model.safetensors", "config.yaml", "vocabulary.json", "manifest.json",
    }  # fmt: skip
    # The precision that the launcher chose is written down with the rest.
    precision = ["optimizer.mixed_precision=no", "evaluation.mixed_precision=no"]
    asked = load_config(tiny, [f"run={finished}", *precision])
    assert load_config(finished / "config.yaml") == asked
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"
    packages = json.loads((finished / "environment.json").read_text())["packages"]
    assert packages["torch"] == torch.__version__
    results = json.loads((finished / "results.json").read_text())
    assert results["vocabulary"] == load_export(finished).vocabulary.fingerprint
    assert results["floor"]["nll"]["mean"] < results["scores"]["nll"]["mean"]


# -- Going on ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("stage", "epoch"), [("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 3)])
def test_a_killed_run_goes_on_to_the_same_bits(finished, tiny, tmp_path, monkeypatch, stage, epoch):
    run = tmp_path / "run"
    step = TrainStep.__call__

    def kill(self, split, batch, key, *others):
        if key == (stage, epoch, 1):
            raise Killed
        return step(self, split, batch, key, *others)

    monkeypatch.setattr(TrainStep, "__call__", kill)
    with pytest.raises(Killed):
        main([str(tiny), f"run={run}"])
    monkeypatch.undo()
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert main([str(tiny), f"run={run}"]) == 0
    assert equal(weights(run), weights(finished))
    assert numbers(run) == numbers(finished)


PLACES = {
    "within the first epoch": ("step", 3),
    "at the end of an epoch": ("step", 11),
    "within annealing": ("step", 31),
    "within the last epoch": ("step", 63),
    "in the first validation": ("_score_batch", 1),
    "in a validation": ("_score_batch", 4),
    "in the test": ("_score_batch", 7),
}


@pytest.mark.parametrize(
    ("place", "number"), [*((place, signal.SIGTERM) for place in PLACES), ("within annealing", signal.SIGINT)]
)
def test_an_interrupted_run_is_saved_and_goes_on_to_the_same_bits(
    finished, tiny, tmp_path, monkeypatch, capsys, place, number
):
    run = tmp_path / "run"
    name, count = PLACES[place]
    owner, name = (TrainStep, "__call__") if name == "step" else (scoring, name)
    real, calls = getattr(owner, name), []

    def interrupt(*arguments):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(owner, name, interrupt)
    monkeypatch.setattr(sync, "SYNC_SECONDS", PATIENCE)  # no rank sync comes before 50 steps, or the end of the epoch
    assert main([str(tiny), f"run={run}"]) == INTERRUPTED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"by {signal.Signals(number).name}; rerun the same command to resume" in said
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["start"]) == ("interrupted", 1)
    state = load_state((run / "checkpoints" / "latest").resolve())
    if name == "__call__":
        assert state.step == (count + 10) // 11 * 11
    assert main([str(tiny), f"run={run}"]) == 0
    assert f"resuming from {run}/checkpoints/start-0001-step-{state.step:09d}" in capsys.readouterr().out
    assert equal(weights(run), weights(finished))
    assert numbers(run) == numbers(finished)
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (finished, run))
    assert after == before | {"start": 2}


def test_told_twice_a_run_ends_at_once(tiny, tmp_path, monkeypatch):
    run, step, save, calls = tmp_path / "run", TrainStep.__call__, Saver.save, []

    def interrupt(self, *arguments):
        calls.append(None)
        if len(calls) in (14, 15):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    def save_at_once(self, checkpoint):
        save(self, checkpoint)
        self.wait()  # a program that ends at once does not

    monkeypatch.setattr(TrainStep, "__call__", interrupt)
    monkeypatch.setattr(Saver, "save", save_at_once)
    assert main([str(tiny), f"run={run}"]) == 130
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert load_state((run / "checkpoints" / "latest").resolve()).step == 11


def test_a_run_is_saved_every_so_many_steps_and_minutes(tiny, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Saver, "save", lambda self, each: saved.append((each.state.step, each.state.batches)))
    assert main([str(tiny), f"run={tmp_path / 'steps'}", "pretrain.max_epochs=0", "checkpoint.every_steps=4"]) == 0
    ends = [(11 * epoch, 0) for epoch in range(1, 5)]
    # Step 44 ends an epoch, which is saved with its validation.
    assert saved == sorted([*((step, step % 11) for step in range(4, 44, 4)), *ends])
    saved.clear()
    monkeypatch.setattr(RankSync, "due", lambda self: True)
    clock = "checkpoint.every_minutes=1e-9"
    assert main([str(tiny), f"run={tmp_path / 'clock'}", "pretrain.max_epochs=0", "train.max_epochs=1", clock]) == 0
    assert saved == [*((step, step) for step in range(1, 11)), (11, 0)]


METHODS = {
    "soft free bits by steps": ["kl.every_steps=4", "optimizer.accumulation_steps=2"],
    "adamw": [
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.01",
        "optimizer.warmup_steps=5",
        "kl.policy=linear",
        "kl.free_bits=dimension",
    ],
    "decays": ["optimizer.on_nan=skip", "optimizer.learning_rate=2", "plateau.patience=1"],
}


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """Uninterrupted runs of the methods."""
    folder = tmp_path_factory.mktemp("straight")
    for name, method in METHODS.items():
        assert main([str(tiny), f"run={folder / name}", *method, "train.max_epochs=3"]) == 0
    return folder


@pytest.mark.parametrize("step", [13, 51])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_within_an_epoch_goes_on_to_the_same_bits(straight, tiny, tmp_path, monkeypatch, method, step):
    settings = [*METHODS[method], "checkpoint.every_steps=3", "train.max_epochs=3"]
    real, calls = TrainStep.__call__, []

    def kill(self, *arguments):
        calls.append(None)
        if len(calls) == step:
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", kill)
    with pytest.raises(Killed):
        main([str(tiny), f"run={tmp_path / 'killed'}", *settings])
    monkeypatch.undo()
    assert main([str(tiny), f"run={tmp_path / 'killed'}", *settings]) == 0
    assert equal(weights(tmp_path / "killed"), weights(straight / method))
    assert numbers(tmp_path / "killed") == numbers(straight / method)


def test_a_damaged_checkpoint_is_passed_over(finished, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    (run / "results.json").unlink()
    newest = (run / "checkpoints" / "latest").resolve() / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert main([str(tiny), f"run={run}"]) == 0
    said = capsys.readouterr()
    assert f"WARNING {newest}: does not match manifest.json" in said.err
    assert "step 55, train epoch 3" in said.out
    assert equal(weights(run), weights(finished))
    assert numbers(run) == numbers(finished)


def test_a_run_goes_back_to_a_named_checkpoint_or_branches_off_from_it(finished, tiny, tmp_path, capsys):
    run, branch = tmp_path / "run", tmp_path / "branch"
    shutil.copytree(finished, run, symlinks=True)
    for folder, whose in ((branch, finished), (run, run)):
        earlier = sorted((whose / "checkpoints").glob("start-*"))[0]
        assert main([str(tiny), f"run={folder}", f"resume={earlier}"]) == 0
        assert f"resuming from {earlier}: step 55" in capsys.readouterr().out
        assert equal(weights(folder), weights(finished))
    assert numbers(run) == numbers(finished)
    assert numbers(branch) == numbers(finished)[-1:]
    # What is there already is not another run's to go on with, nor under another config.
    for overrides, words in [
        ([f"run={finished}"], "belongs to another run than the one in"),
        ([f"run={tmp_path / 'new'}", "seed=1"], "seed (0 there, 1 here)"),
    ]:
        assert main([str(tiny), f"resume={branch / 'checkpoints' / 'latest'}", *overrides]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_pretraining_that_has_ended_has_the_length_it_had(finished, tiny, capsys):
    assert main([str(tiny), f"run={finished}", "pretrain.max_epochs=3"]) == 2
    assert "its pretraining ended at pretrain.max_epochs=2, not 3" in capsys.readouterr().err


def test_the_place_of_sentences_and_the_work_of_processes_do_not_matter(tiny, tmp_path):
    text, moved, run = tmp_path / "text.txt", tmp_path / "moved.txt", tmp_path / "run"
    text.write_text("\n".join(BUILT_IN["words"].join(tokens) for tokens in generate(60, 1)))
    settings = [str(tiny), f"run={run}", "data.train_size=null", "train.max_epochs=0"]
    assert main([*settings, f"data.path={text}", "pretrain.max_epochs=1"]) == 0
    text.rename(moved)
    assert main([*settings, f"data.path={moved}", "pretrain.max_epochs=2", "optimizer.accumulation_steps=2"]) == 0
    assert [row["epoch"] for row in records(run)] == [1, 2]


def test_a_longer_limit_goes_on_where_a_run_ended(tiny, tmp_path):
    straight, extended = tmp_path / "straight", tmp_path / "extended"
    assert main([str(tiny), f"run={straight}", "train.max_epochs=6"]) == 0
    assert main([str(tiny), f"run={extended}", "train.max_epochs=4"]) == 0
    assert main([str(tiny), f"run={extended}", "train.max_epochs=6"]) == 0
    assert equal(weights(straight), weights(extended))


def test_a_run_goes_on_by_other_ways_to_the_same_numbers(finished, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    again = [
        str(tiny),
        f"run={run}",
        "speed.output_layer=plain",
        "speed.embedding_gradients=dense",
        "speed.keep_memory=false",
    ]
    assert main(again) == 0
    assert equal(weights(run), weights(finished))  # it had finished
    assert main([*again, "train.max_epochs=5"]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert load_config(run / "config.yaml").speed.output_layer == "plain"
    assert numbers(run)[:6] == numbers(finished)
    assert records(run)[6]["train"]["re"] < records(run)[0]["train"]["re"]


def test_a_run_that_goes_on_has_no_results_until_it_ends(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert main([str(tiny), f"run={run}", "train.max_epochs=3"]) == 0
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
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


def test_a_run_killed_between_its_results_and_its_status_is_finished(finished, tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    for said in ('{"state": "running"}', "half of it", None):
        (run / "status.json").unlink()
        if said is not None:
            (run / "status.json").write_text(said)
        assert main([str(tiny), f"run={run}"]) == 0
        assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_what_an_overtaken_start_has_written_last_is_not_taken_for_the_runs(finished, tiny, tmp_path):
    """It may have been held up between its look at who goes on and its write."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    again = [str(tiny), f"run={run}", f"resume={run / 'checkpoints' / 'latest'}"]
    assert main(again) == 0
    assert load_results(run).start == 2
    load_export(run)
    shutil.rmtree(run / "best")
    shutil.copytree(finished / "best", run / "best")
    with pytest.raises(UserError, match="best: was written by attempt 1 at the run"):
        load_export(run)
    shutil.copy(finished / "results.json", run)
    with pytest.raises(UserError, match="results.json: was written by attempt 1"):
        load_results(run)
    assert main(again) == 0
    assert load_results(run).start == 3
    load_export(run)


# -- What a launcher is told -------------------------------------------------------------------------------------------


def test_the_exit_code_stands_in_a_file_for_who_asked(tiny, tmp_path, monkeypatch):
    told = tmp_path / "told"
    monkeypatch.setenv("DISTVAE_EXIT_FILE", str(told))
    assert main([str(tiny), f"run={tmp_path / 'run'}", "data.path=nowhere"]) == 2
    assert told.read_text() == "2\n"
    told.unlink()
    monkeypatch.setenv("RANK", "1")
    assert main([str(tiny), "kl.threshold=7"]) == 2
    assert not told.exists()


# -- Bad input ---------------------------------------------------------------------------------------------------------


def test_a_run_with_an_option_that_nothing_read_is_shown_without_it(tiny, tmp_path, capsys):
    """An older version accepted it, and the command that is mended asks for the same run."""
    run = tmp_path / "run"
    command = [str(tiny), f"run={run}", "kl={policy: linear, anneal_epochs: 1}", "pretrain.max_epochs=0"]
    command += ["train.max_epochs=1", "evaluation.importance_samples=1"]
    assert main(command) == 0
    stored = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(stored.replace("threshold: 0.05", "threshold: 0.9"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "status.json"}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in before} == before
    capsys.readouterr()
    assert main([*command, "kl.threshold=0.9"]) == 2
    assert "kl.threshold = 0.9 belongs to kl.policy=soft_free_bits" in capsys.readouterr().err


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
        (["optimizer.batch_size=2", "optimizer.accumulation_steps=3"], ["smaller than 1 process × 3"]),
        (["data.path=nowhere"], ["nowhere"]),
        (["pretrained=nowhere"], ["nowhere"]),
        (["data.columns=[]"], ["data.columns"]),
        (["kl.weight=0.5"], ["kl.weight = 0.5 belongs to kl.policy=constant, linear"]),
        (
            ["optimizer.name=adamw", "speed.embedding_gradients=rows"],
            ["speed.embedding_gradients=rows needs optimizer.name=sgd", "not adamw and 1 process on cpu"],
        ),
    ],
)
def test_bad_settings_get_one_line_and_a_status(refused, tmp_path, overrides, words):
    said = refused(*overrides)
    assert all(word in said for word in words), said
    status = json.loads((tmp_path / "refused" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"] in said
    # The folder is free for the next try, which needs no clearing up.
    assert not holds_run(tmp_path / "refused")


def test_a_start_that_failed_leaves_its_folder_free(refused, tiny, tmp_path):
    refused("data.path=nowhere")
    assert main([str(tiny), f"run={tmp_path / 'refused'}"]) == 0


def test_sizes_beyond_memory_are_one_line(refused):
    assert "out of memory: " in refused("model.hidden_size=1000000")


def test_every_process_tells_of_its_own_want_of_memory(tiny, capsys, monkeypatch):
    """The last one has the longest sentences of each batch."""

    def train(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(program, "train", train)
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main([str(tiny)]) == 2
    assert capsys.readouterr().err.startswith("distvae: rank 3 is out of memory: CUDA")


def test_a_run_whose_name_is_too_long_is_one_line(tiny, capsys):
    for overrides in (["seed=-1"], []):
        assert main([str(tiny), f"run=runs/{'x' * 300}", *overrides]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_config_file_is_named(refused, tmp_path):
    assert "nothing.yaml" in refused(config=tmp_path / "nothing.yaml")


def test_a_pretraining_of_another_size_or_vocabulary_is_refused(finished, refused, tmp_path):
    assert "model.hidden_size is 16 there and 24 here" in refused(f"pretrained={finished}", "model.hidden_size=24")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(BUILT_IN["words"].join(tokens) for tokens in generate(60, 1)))
    assert "vocabulary" in refused(f"pretrained={finished}", f"data.path={text}", "data.train_size=null")


def test_sentences_that_changed_since_a_checkpoint_are_refused(tiny, tmp_path, capsys):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("\n".join(BUILT_IN["words"].join(tokens) for tokens in generate(60, 1)))
    overrides = [str(tiny), f"run={run}", f"data.path={text}", "data.train_size=null", "train.max_epochs=0"]
    assert main(overrides) == 0
    text.write_text("\n".join(BUILT_IN["words"].join(tokens) for tokens in generate(60, 2)))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*overrides, "evaluation.samples=3"]) == 2
    assert "was trained on other sentences" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_finished_run_answers_for_its_own_sentences_alone(tiny, tmp_path, capsys):
    text, same, other = tmp_path / "a.txt", tmp_path / "same.txt", tmp_path / "b.txt"
    for path, seed in ((text, 1), (same, 1), (other, 2)):
        path.write_text("\n".join(BUILT_IN["words"].join(tokens) for tokens in generate(60, seed)), encoding="utf-8")
    run = tmp_path / "run"
    command = [str(tiny), f"run={run}", "data.train_size=null", "train.max_epochs=0", "pretrain.max_epochs=1"]
    assert main([*command, f"data.path={text}"]) == 0
    table = capsys.readouterr().out.partition("test sentences")[2]
    before = contents(run)
    for path in (text, same):
        assert main([*command, f"data.path={path}"]) == 0
        said = capsys.readouterr().out
        assert f"{run}: finished 20" in said
        assert f"trained on data.path={text}" in said
        assert said.partition("test sentences")[2] == table
    text.write_text(text.read_text(encoding="utf-8") + "\na b", encoding="utf-8")
    for path, words in [
        (text, "was trained on other sentences"),
        (other, "was trained on other sentences"),
        (tmp_path / "nowhere.txt", "no such file"),
    ]:
        assert main([*command, f"data.path={path}"]) == 2
        said = capsys.readouterr()
        assert said.out.startswith(f"{run}: starting ")
        assert said.out.count("\n") == 1
        assert said.err.count("\n") == 1
        assert words in said.err
        assert f"this run has finished: distvae compare {run} prints its results" in said.err
    assert contents(run) == before


def test_unknown_words_are_told_of_beside_the_perplexity(tiny, tmp_path, capsys):
    """Sentences without spaces are a word each: what looks like a perfect model has seen none of the test's words."""
    text, run = tmp_path / "unsegmented.txt", tmp_path / "run"
    text.write_text("\n".join(chr(0x4E00 + i) * 5 + chr(0x5000 + i) for i in range(60)), encoding="utf-8")
    command = [str(tiny), f"run={run}", f"data.path={text}", "data.train_size=null", "pretrain.max_epochs=0"]
    assert main([*command, "kl.anneal_epochs=0", "train.max_epochs=1"]) == 0
    at_start, _, table = capsys.readouterr().out.partition("test sentences")
    assert "WARNING: unknown words: 100.00% of train, 100.00% of valid, 100.00% of test." in at_start
    assert re.search(r"^unknown words +100.00%$", table, re.MULTILINE)
    assert "WARNING run: 100.00% of the words are unknown" in table
    assert json.loads((run / "results.json").read_text())["unknown"] == 1.0


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "environment.json", "vocabulary.json", "status.json", "metrics.jsonl", "best/x", "checkpoints/x"],
)
def test_only_what_a_run_wrote_is_a_runs(refused, tmp_path, tiny, name):
    theirs = tmp_path / "refused" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text(tiny.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "refused" / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path / "refused")
    assert f"holds {name.partition('/')[0]}, which no run wrote" in refused()
    assert f"holds {name.partition('/')[0]}, which no run wrote" in refused("resume=never")
    refused("kl.threshold=2")  # whose status would be written there
    assert contents(tmp_path / "refused") == before


def test_a_run_trains_beside_files_that_it_does_not_touch(tiny, tmp_path):
    notes = tmp_path / "run" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine", encoding="utf-8")
    for _ in range(2):
        assert main([str(tiny), f"run={notes.parent}", "pretrain.max_epochs=1", "train.max_epochs=0"]) == 0
    assert notes.read_text(encoding="utf-8") == "mine"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_collapsed_run_says_so_wherever_one_looks(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    settings = ["pretrain.max_epochs=0", "kl={policy: linear, weight: 50, anneal_epochs: 0}", "train.max_epochs=5"]
    assert main([str(tiny), f"run={run}", *settings]) == 0
    said = capsys.readouterr().out
    epochs = [line for line in said.splitlines() if line.startswith("train ")]
    assert all("dead" in line.split() for line in epochs[-3:])
    while_training, _, table = said.partition("test sentences")
    for text, opening in (
        (while_training, "WARNING run: for 3 epochs of train the latent has been dead: "),
        (table, "WARNING run: the latent is dead: "),
    ):
        warnings = [line for line in text.splitlines() if line.startswith(opening)]
        assert len(warnings) == 1
        assert "kl.policy=from_above" in warnings[0]
    for name in ("status.json", "results.json"):
        latent = json.loads((run / name).read_text())["latent"]
        assert latent["state"] == "dead"
        assert "kl.policy=from_above" in latent["advice"]
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("latent/alive")][-1] == 0
    assert board.Tags()["tensors"].count("warnings/text_summary") == 1


def test_a_warning_of_a_latent_survives_an_interruption(tiny, tmp_path, capsys, monkeypatch):
    """It comes once: after the third epoch in a row, whichever attempt trained the others."""
    run = tmp_path / "run"
    settings = ["pretrain.max_epochs=0", "kl={policy: linear, weight: 50, anneal_epochs: 0}"]
    for epochs, warnings in ((2, 0), (3, 1), (5, 0)):
        assert main([str(tiny), f"run={run}", *settings, f"train.max_epochs={epochs}"]) == 0
        assert capsys.readouterr().out.count("WARNING run: for 3 epochs") == warnings


def test_an_interrupted_run_says_so(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainStep, "__call__", interrupt)
    assert main([str(tiny), f"run={run}"]) == 75
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "metrics.jsonl", "config.yaml", "starts", "best"])
def test_a_run_folder_that_leads_elsewhere_is_refused(finished, tiny, tmp_path, capsys, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished, run, symlinks=True)
    (run / "results.json").unlink()
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([str(tiny), f"run={run}"]) == 2
    said = capsys.readouterr().err
    assert f"{run / name}: leads out of {run}" in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("section", "content"),
    [
        ("plateau", {}), ("plateau", {"best": "low"}), ("policy", {}), ("policy", {"weight": "x"}), ("ended", [{}]),
        ("best", None), ("best", {"epoch": 1}), ("ended", [{"stage": 1}]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_was_made_up_is_one_line(pretrained_only, tiny, tmp_path, capsys, section, content):
    run = tmp_path / "run"
    shutil.copytree(pretrained_only, run, symlinks=True)
    folder = (run / "checkpoints" / "latest").resolve()
    state = json.loads((folder / "state.json").read_text()) | {section: content}
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    size, digest = (folder / "state.json").stat().st_size, sha256(folder / "state.json")
    manifest["files"]["state.json"] = {"size": size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(tiny), f"run={run}", "train.max_epochs=0", "pretrain.max_epochs=3"]) == 2
    said = capsys.readouterr().err
    assert "is not the state of a run" in said
    assert said.count("\n") == 1


def test_a_run_cannot_be_a_file(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main([str(tiny), f"run={tmp_path / 'file'}"]) == 2
    assert "cannot be a run folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


# -- Sentences of one's own --------------------------------------------------------------------------------------------


def test_sentences_in_the_form_of_snli_train_the_whole_recipe(tiny, tmp_path, capsys):
    """Split files of jsonl.gz with a premise and a hypothesis each: pooled, counted, trained, scored."""
    folder = tmp_path / "snli"
    folder.mkdir()
    captions = [BUILT_IN["words"].join(tokens) for tokens in generate(240, 3)]
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
    text.write_text("\n".join(BUILT_IN["words"].join(tokens) for tokens in generate(100, 5)))
    small = ["model.hidden_size=8", "train.max_epochs=1", "evaluation.importance_samples=2"]
    cache = load_config(tiny).data.cache
    own = str(ROOT / "configs" / "own.yaml")
    assert main([own, f"data.path={text}", f"run={run}", f"data.cache={cache}", "cpu_threads=1", *small]) == 0
    assert json.loads((run / "results.json").read_text())["scores"]["sentences"] == 10


def test_the_rows_of_the_papers_table_differ_in_their_method_alone():
    names = ("ae", "kla", "pt_kla", "pt_kla_fb", "pt_kla_sfb")
    rows = {name: load_config(ROOT / "configs" / "snli" / f"{name}.yaml") for name in names}
    own = {"run", "pretrain", "train", "kl"}
    shared = [{key: value for key, value in vars(row).items() if key not in own} for row in rows.values()]
    assert all(other == shared[0] for other in shared)
    assert rows["kla"].pretrain.max_epochs == 0
    assert rows["ae"].train.max_epochs == 0
    assert rows["pt_kla_fb"].kl.free_bits.name == "dimension"


def test_a_run_folder_can_move(finished, tmp_path):
    """Nothing in an export points outside it."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished / "best", moved)
    assert equal(load_export(moved).weights, weights(finished))
