import io
import json
import os
import pickle
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch

from distvae.config.kl import KLConfig
from distvae.config.schema import Config, DataConfig, ModelConfig
from distvae.data.vocabulary import Vocabulary
from distvae.methods import POLICIES
from distvae.methods.policy import LatentState
from distvae.model.draws import generator
from distvae.model.vae import TextVAE, initialise
from distvae.runs import checkpoints
from distvae.runs.checkpoints import (
    Checkpoint,
    RunState,
    Weights,
    export,
    list_checkpoints,
    load_checkpoint,
    load_export,
    load_state,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from distvae.system.errors import UserError
from distvae.system.files import MANIFEST, inside, read_json, sha256, sweep, write_json
from tests.methods.gamma import gamma_of

CONFIG = Config(
    run="runs/ä",
    data=DataConfig(path="ä.csv", columns=("a", "b")),
    model=ModelConfig(embedding_size=3, hidden_size=4, latent_size=2),
)
VOCABULARY = Vocabulary.closed(["a", "naïve", "dog"])
BEST = {"best", *(f"best/{name}" for name in ("model.safetensors", "config.yaml", "vocabulary.json", MANIFEST))}
MOMENTS = {"step": torch.tensor([3.0]), "exp_avg.encoder.embedding.weight": torch.tensor([[0.5, -1e-8]])}
STATE = RunState(
    stage="train",
    epoch=2,
    batches=3,
    seconds=0.125,
    step=7,
    converged=False,
    plateau={"best": 1e-300},
    policy={"weight": 0.1 + 0.2, "ä": None},
    best=None,
    ended=[{"epochs": 3}],
    data="0123",
)


SUMS = torch.tensor([[0.1 + 0.2, 1e-300], [3.0, -0.0]], dtype=torch.float64)


def tiny_model(seed: int = 1) -> TextVAE:
    model = TextVAE(CONFIG.model, len(VOCABULARY), VOCABULARY.pad, VOCABULARY.unknown)
    initialise(model, CONFIG.model, generator("cpu", seed))
    return model.eval()


def weights(seed: int = 1) -> Weights:
    return tiny_model(seed).state_dict()


def save(
    run: Path, now: Weights, best: Weights | None, optimizer: Weights, state: RunState, start: int = 1, keep: int = 2
) -> Path:
    whole = Checkpoint(now, best, optimizer, {"sums": SUMS}, state, CONFIG, world_size=2)
    return save_checkpoint(run, whole, start, keep)


def forge(folder: Path) -> None:
    """Give a folder the manifest of what it holds now, as an attacker would."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    names = [each.name for each in folder.iterdir() if each.is_file() and each != path]
    content["files"] = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names
    }
    path.write_text(json.dumps(content))


def assert_same_bits(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].view(torch.uint8), value.contiguous().view(torch.uint8)), name


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def save_half(tensors: Weights, path: Path) -> None:
    Path(path).write_bytes(b"half of it")
    raise OSError("No space left on device")


class Malice:
    """What creates a file as soon as it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# -- Checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    odd = {
        "float": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 1e-45]),
        "double": torch.randn(3, 2, generator=generator("cpu", 1), dtype=torch.float64),
        "bf16": torch.tensor([[1.1, -3.3]], dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
    }
    save(tmp_path, odd, weights(2), MOMENTS, STATE)
    folder = newest_checkpoint(tmp_path)
    assert folder == tmp_path / "checkpoints" / "start-0001-step-000000007-epoch-0002"
    assert (tmp_path / "checkpoints" / "latest").resolve() == folder
    found = load_checkpoint(folder)
    assert_same_bits(found.weights, odd)
    assert_same_bits(found.best_weights, weights(2))
    assert_same_bits(found.optimizer, MOMENTS)
    assert_same_bits(found.ranks, {"sums": SUMS})
    assert (found.state, found.config, found.world_size) == (STATE, CONFIG, 2)
    assert found.state.recorded_step == 4


def test_without_a_best_or_an_optimizer_that_knows_there_is_no_file(tmp_path):
    save(tmp_path, weights(), None, {}, replace(STATE, batches=0))
    found = load_checkpoint(newest_checkpoint(tmp_path))
    assert (found.best_weights, found.optimizer) == (None, {})
    assert {path.name for path in newest_checkpoint(tmp_path).iterdir()} == {
        "model.safetensors", "ranks.safetensors", "config.yaml", "state.json", MANIFEST,
    }  # fmt: skip


def test_the_latest_is_found_and_older_ones_are_pruned(tmp_path):
    for step in (2, 9, 10, 99, 100_000_000):
        save(tmp_path, weights(step), None, MOMENTS, replace(STATE, step=step))
        assert load_checkpoint(newest_checkpoint(tmp_path)).state == replace(STATE, step=step)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["latest", "start-0001-step-000000099-epoch-0002", "start-0001-step-100000000-epoch-0002"]
    assert_same_bits(load_checkpoint(tmp_path / "checkpoints" / kept[1]).weights, weights(99))


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_are_asked_for(tmp_path, keep):
    for step in range(5):
        save(tmp_path, weights(step), None, MOMENTS, replace(STATE, step=step), keep=keep)
    assert [load_checkpoint(folder).state.step for folder in list_checkpoints(tmp_path)] == [*range(5 - keep, 5)]


def test_a_later_start_goes_before_a_later_step(tmp_path):
    """A process that was thought dead writes on: that counts less, and it prunes nothing of its successor's."""
    save(tmp_path, weights(1), None, MOMENTS, replace(STATE, step=5), start=1)
    save(tmp_path, weights(2), None, MOMENTS, replace(STATE, step=6), start=2)
    for step in (7, 8, 9):
        save(tmp_path, weights(3), None, MOMENTS, replace(STATE, step=step), start=1)
    assert newest_checkpoint(tmp_path).name == "start-0002-step-000000006-epoch-0002"
    assert [folder.name[:25] for folder in list_checkpoints(tmp_path)] == [
        "start-0001-step-000000008", "start-0001-step-000000009", "start-0002-step-000000006",
    ]  # fmt: skip


def test_the_end_of_an_epoch_is_newer_than_its_last_step(tmp_path):
    save(tmp_path, weights(1), None, {}, replace(STATE, epoch=2, batches=7))
    save(tmp_path, weights(2), None, {}, replace(STATE, epoch=3, batches=0))
    assert load_checkpoint(newest_checkpoint(tmp_path)).state.epoch == 3


def test_a_start_that_is_overtaken_puts_nothing_in_place(tmp_path):
    def overtaken() -> None:
        raise UserError("start 2 goes on")

    whole = Checkpoint(weights(), None, {}, {"sums": SUMS}, replace(STATE, batches=0), CONFIG, world_size=1)
    with pytest.raises(UserError, match="start 2 goes on"):
        save_checkpoint(tmp_path, whole, 1, 2, overtaken)
    assert listing(tmp_path) == set()


def test_what_killed_processes_had_begun_is_swept_away(tmp_path, monkeypatch):
    save(tmp_path, weights(), None, {}, STATE)
    before = listing(tmp_path)

    class KilledError(BaseException):
        pass

    def kill(*_):
        raise KilledError

    for name in ("rename", "replace", "fsync"):
        monkeypatch.setattr(os, name, kill)
        monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # no time left to clear up
        with pytest.raises(KilledError):
            save(tmp_path, weights(), None, {}, replace(STATE, step=8))
        monkeypatch.undo()
    assert len(listing(tmp_path)) > len(before)
    assert newest_checkpoint(tmp_path) is not None
    sweep(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / ".mine").touch()
    found = {name for name in listing(tmp_path) if "step-000000008" not in name}
    assert found == before | {"checkpoints/.mine"}
    sweep(tmp_path / "none")


def test_a_folder_without_checkpoints_has_no_latest(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_step_saved_again_takes_the_place_of_the_first(tmp_path):
    save(tmp_path, weights(1), weights(1), MOMENTS, STATE)
    save(tmp_path, weights(2), None, MOMENTS, replace(STATE, stage="other"))
    found = load_checkpoint(newest_checkpoint(tmp_path))
    assert_same_bits(found.weights, weights(2))
    assert (found.best_weights, found.state.stage) == (None, "other")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["start-0001-step-000000007-epoch-0002"]


@pytest.mark.parametrize("failing", ["model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("step", [7, 8])
def test_a_failing_save_leaves_the_former_checkpoint_and_nothing_else(tmp_path, monkeypatch, failing, step):
    save(tmp_path, weights(1), weights(2), MOMENTS, STATE)
    before = listing(tmp_path)
    state = replace(STATE, step=step, policy={"what": object() if failing == "state.json" else None})
    save_file = checkpoints.save_file

    def fail(tensors, path):
        (save_half if path.name == failing else save_file)(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises((OSError, TypeError)):
        save(tmp_path, weights(3), weights(4), MOMENTS, state)
    assert listing(tmp_path) == before
    found = load_checkpoint(newest_checkpoint(tmp_path))
    assert_same_bits(found.weights, weights(1))
    assert_same_bits(found.best_weights, weights(2))
    assert found.state == STATE


def test_a_folder_is_there_only_when_it_is_whole(tmp_path, monkeypatch):
    save_file, folders = checkpoints.save_file, []

    def watch(tensors, path):
        save_file(tensors, path)
        assert newest_checkpoint(tmp_path) is None
        folders.append(path.parent.stat().st_ino)

    monkeypatch.setattr(checkpoints, "save_file", watch)
    save(tmp_path, weights(), weights(), MOMENTS, STATE)
    # Renamed, not copied.
    assert folders == [newest_checkpoint(tmp_path).stat().st_ino] * 4


# -- Exports -----------------------------------------------------------------------------------------------------------


def test_an_export_holds_all_that_is_needed(tmp_path):
    model = tiny_model()
    export(tmp_path / "run" / "best", model.state_dict(), CONFIG, VOCABULARY)
    for path in (tmp_path / "run", tmp_path / "run" / "best", str(tmp_path / "run")):
        found = load_export(path)
        assert_same_bits(found.weights, model.state_dict())
        assert found.config == CONFIG
        assert found.vocabulary == VOCABULARY
        loaded = found.model()
        assert not loaded.training
        assert_same_bits(loaded.state_dict(), model.state_dict())
        assert (loaded.decoder.pad, loaded.decoder.unknown) == (VOCABULARY.pad, VOCABULARY.unknown)
    assert listing(tmp_path / "run") == BEST


def test_a_run_may_hold_several_kinds_of_export(tmp_path):
    export(tmp_path / "best", weights(1), CONFIG, VOCABULARY)
    export(tmp_path / "pretrained", weights(2), CONFIG, VOCABULARY)
    assert_same_bits(load_export(tmp_path).weights, weights(1))
    assert_same_bits(load_export(tmp_path, kind="pretrained").weights, weights(2))
    assert_same_bits(load_export(tmp_path / "pretrained").weights, weights(2))


def test_an_export_of_an_overtaken_start_does_not_get_into_its_place(tmp_path):
    def overtaken():
        if len(listing(tmp_path)) > len(BEST):  # all is written
            raise UserError("another start goes on")

    export(tmp_path / "best", weights(1), CONFIG, VOCABULARY)
    with pytest.raises(UserError, match="another start"):
        export(tmp_path / "best", weights(2), CONFIG, VOCABULARY, check=overtaken)
    assert_same_bits(load_export(tmp_path).weights, weights(1))
    assert listing(tmp_path) == BEST


def test_an_export_can_be_read_by_whom_the_user_lets_read(tmp_path):
    former = os.umask(0o027)
    try:
        export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "best").iterdir()} == {0o640}


def test_a_new_export_takes_the_place_of_the_old_one(tmp_path):
    export(tmp_path / "best", weights(1), CONFIG, VOCABULARY)
    (tmp_path / "best" / "stray").touch()
    export(tmp_path / "best", weights(2), CONFIG, VOCABULARY)
    assert_same_bits(load_export(tmp_path).weights, weights(2))
    assert listing(tmp_path) == BEST


def test_a_failing_export_leaves_the_former_one(tmp_path, monkeypatch):
    export(tmp_path / "best", weights(1), CONFIG, VOCABULARY)
    before = listing(tmp_path)
    monkeypatch.setattr(checkpoints, "save_file", save_half)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path / "best", weights(2), CONFIG, VOCABULARY)
    assert listing(tmp_path) == before
    assert_same_bits(load_export(tmp_path).weights, weights(1))


def test_an_export_interrupted_while_it_is_put_in_place_leaves_one_of_the_two(tmp_path, monkeypatch):
    export(tmp_path / "best", weights(1), CONFIG, VOCABULARY)
    rename, calls = os.rename, []

    def interrupt_the_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(checkpoints.os, "rename", interrupt_the_second)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "best", weights(2), CONFIG, VOCABULARY)
    monkeypatch.undo()
    found = load_export(tmp_path)
    assert any(torch.equal(found.weights["decoder.output.weight"], weights(s)["decoder.output.weight"]) for s in (1, 2))


# -- Damage ------------------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        path.write_bytes(b"\xff\xfe{[\n\0garbage: @\n" * 40)


def assert_one_line_about(error: UserError, *names: object) -> None:
    assert "\n" not in str(error)
    for name in names:
        assert str(name) in str(error)


DAMAGES = ["missing", "truncated", "empty", "garbage"]


CHECKPOINT_FILES = ["model.safetensors", "best.safetensors", "optimizer.safetensors", "ranks.safetensors", "state.json"]


@pytest.mark.parametrize(
    ("name", "how"), [*product([*CHECKPOINT_FILES, "config.yaml", MANIFEST], [*DAMAGES, "flipped"])]
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_the_file(tmp_path, capsys, name, how):
    before = save(tmp_path, weights(), weights(), MOMENTS, STATE)
    folder = save(tmp_path, weights(), weights(), MOMENTS, replace(STATE, step=8))
    damage(folder / name, how)
    with pytest.raises(UserError) as caught:
        verify_checkpoint(folder)
    assert_one_line_about(caught.value, folder / name)
    assert newest_checkpoint(tmp_path) == before
    warning = capsys.readouterr().err
    assert warning.startswith(f"distvae: WARNING {folder / name}: ")
    assert "the run resumes from the checkpoint before it" in warning
    damage(before / name, how)
    with pytest.raises(UserError, match="no checkpoint is complete") as caught:
        newest_checkpoint(tmp_path)
    assert_one_line_about(caught.value, tmp_path / "checkpoints")


@pytest.mark.parametrize(("name", "how"), [*product(CHECKPOINT_FILES, ["truncated", "empty", "garbage"])])
def test_a_damage_that_the_manifest_vouches_for_is_one_line_all_the_same(tmp_path, name, how):
    folder = save(tmp_path, weights(), weights(), MOMENTS, STATE)
    damage(folder / name, how)
    forge(folder)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_checkpoint(folder)
    assert_one_line_about(caught.value, folder / name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "state.json"])
def test_a_manifest_that_leaves_a_file_out_is_refused(tmp_path, name):
    folder = save(tmp_path, weights(), None, {}, STATE)
    (folder / name).unlink()
    forge(folder)
    with pytest.raises(UserError, match=f"does not list {name}") as caught:
        verify_checkpoint(folder)
    assert_one_line_about(caught.value, folder / MANIFEST)


@pytest.mark.parametrize(
    "change", [{"epoch": -1}, {"batches": -3}, {"step": "seven"}, {"plateau": 3}, {"converged": None}, {"stage": 5}]
)
def test_a_state_that_is_none_is_refused(tmp_path, change):
    folder = save(tmp_path, weights(), None, {}, STATE)
    content = json.loads((folder / "state.json").read_text()) | change
    (folder / "state.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not the state of a run") as caught:
        load_checkpoint(folder)
    assert_one_line_about(caught.value, folder / "state.json")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *product(["model.safetensors", "vocabulary.json"], DAMAGES),
        *product(["config.yaml", MANIFEST], DAMAGES),
    ],
)
def test_a_damaged_export_is_one_line_that_names_the_file(tmp_path, name, how):
    export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    damage(tmp_path / "best" / name, how)
    with pytest.raises(UserError) as caught:
        load_export(tmp_path)
    assert_one_line_about(caught.value, name, tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "some words", "model: {hidden_size: 0}", "modell: {}"])
def test_an_exports_config_that_is_none_is_one_line_that_names_the_file(tmp_path, content):
    export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    (tmp_path / "best" / "config.yaml").write_text(content, encoding="utf-8")
    forge(tmp_path / "best")
    with pytest.raises(UserError) as caught:
        load_export(tmp_path)
    assert_one_line_about(caught.value, tmp_path / "best" / "config.yaml")


def test_a_swapped_vocabulary_is_refused(tmp_path):
    """Of the same size, so that nothing but its hash tells."""
    export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    Vocabulary.closed(["a", "dog", "naïve"]).save(tmp_path / "best" / "vocabulary.json")
    with pytest.raises(UserError, match="does not match manifest.json: its SHA-256 differs") as caught:
        load_export(tmp_path)
    assert_one_line_about(caught.value, tmp_path / "best" / "vocabulary.json")


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_a_folder_without_an_export_is_one_line_that_names_it(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains neither best/model.safetensors nor model.safetensors") as caught:
        load_export(tmp_path / folder)
    assert_one_line_about(caught.value, tmp_path / folder)


def test_a_vocabulary_of_another_size_than_the_weights_is_refused(tmp_path):
    export(tmp_path / "best", weights(), CONFIG, Vocabulary.closed(["a", "dog"]))
    with pytest.raises(UserError, match=r"encoder\.embedding\.weight is \(7, 3\), and should be \(6, 3\)") as caught:
        load_export(tmp_path).model()
    assert_one_line_about(caught.value, tmp_path / "best")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_of_another_kind_of_model_are_refused(tmp_path, change):
    other = weights()
    if change == "missing":
        del other["decoder.output.weight"]
    else:
        other["decoder.output.bias"] = torch.zeros(7)
    export(tmp_path / "best", other, CONFIG, VOCABULARY)
    with pytest.raises(UserError, match=r"do not belong .* decoder\.output\.(weight|bias) is") as caught:
        load_export(tmp_path).model()
    assert_one_line_about(caught.value, tmp_path / "best")


# -- Malice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINT_FILES[:4])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_no_pickle_is_read(tmp_path, form, name):
    save(tmp_path, weights(), weights(), MOMENTS, STATE)
    export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    folder, made = newest_checkpoint(tmp_path), tmp_path / "made by the pickle"
    bait = folder / name
    content = {"encoder.embedding.weight": Malice(made)}
    if form == "pickle":
        bait.write_bytes(pickle.dumps(content))
        pickle.loads(bait.read_bytes())
    else:
        torch.save(content, bait)
        torch.load(io.BytesIO(bait.read_bytes()), weights_only=False)
    made.rmdir()  # so it would work
    (tmp_path / "best" / "model.safetensors").write_bytes(bait.read_bytes())
    forge(folder)
    forge(tmp_path / "best")
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_checkpoint(folder)
    assert_one_line_about(caught.value, bait)
    with pytest.raises(UserError, match="cannot be read"):
        load_export(tmp_path)
    assert not made.exists()


def test_no_yaml_tag_is_run(tmp_path):
    export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    made = tmp_path / "made by the tag"
    (tmp_path / "best" / "config.yaml").write_text(f"run: !!python/object/apply:os.mkdir ['{made}']", encoding="utf-8")
    forge(tmp_path / "best")
    with pytest.raises(UserError, match="tags such as .*apply:os.mkdir are not supported") as caught:
        load_export(tmp_path)
    assert_one_line_about(caught.value, tmp_path / "best" / "config.yaml")
    assert not made.exists()


@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors", "config.yaml", "vocabulary.json"])
def test_a_link_out_of_an_export_is_not_followed(tmp_path, name):
    export(tmp_path / "best", weights(), CONFIG, VOCABULARY)
    secret = tmp_path / "secret"
    (tmp_path / "best" / name).rename(secret)
    (tmp_path / "best" / name).symlink_to(secret)
    with pytest.raises(UserError, match=f"{name}: leads out of") as caught:
        load_export(tmp_path)
    assert_one_line_about(caught.value, tmp_path / "best" / name)


def test_an_export_that_is_a_link_out_of_the_run_is_not_followed(tmp_path):
    export(tmp_path / "elsewhere", weights(), CONFIG, VOCABULARY)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="best: leads out of"):
        load_export(tmp_path / "run")
    assert load_export(tmp_path / "elsewhere").config == CONFIG


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", ".."])
def test_a_manifest_names_no_file_elsewhere(tmp_path, name):
    folder = save(tmp_path / "run", weights(), None, {}, STATE)
    (tmp_path / "secret").write_text("mine")
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][name] = {"size": 4, "sha256": sha256(tmp_path / "secret")}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match="leads out of") as caught:
        verify_checkpoint(folder)
    assert_one_line_about(caught.value, folder)


def test_a_link_within_a_folder_is_followed(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "here").symlink_to("there")
    assert inside(tmp_path, "here") == tmp_path / "here"


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_json_comes_back(tmp_path):
    path = tmp_path / "a.json"
    for content in ({"γ": [0.1, None, "−ELBO"]}, [1e-300]):
        write_json(path, content)
        assert read_json(path) == content
        assert json.loads(path.read_text(encoding="utf-8")) == content
    assert listing(tmp_path) == {"a.json"}


def test_what_is_no_json_leaves_the_former_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert listing(tmp_path) == {"a.json"}


def test_a_full_disk_leaves_the_former_json_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    write_bytes = Path.write_bytes

    def write_half(path, content):
        write_bytes(path, content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert listing(tmp_path) == {"a.json"}


@pytest.mark.parametrize("latent", [*get_args(LatentState), None])
@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_keeps_can_be_stored(tmp_path, name, latent):
    policy = gamma_of(KLConfig(policy=name).policy)
    policy.end_epoch(4.0, latent)
    write_json(tmp_path / "state.json", asdict(replace(STATE, policy=policy.state_dict())))
    assert load_state(tmp_path).policy == policy.state_dict()
