"""What a table plans and refuses."""

import pytest

from distvae.config.load import load_config
from distvae.table.plan import plan
from tests.conftest import ROOT
from tests.table.rows import ALONE, AUTOENCODER, LANGUAGE_MODEL, PAPERS, WIDE


@pytest.mark.parametrize("name", ["snli", "demo"])
def test_the_papers_rows_are_planned_behind_their_pretraining(tmp_path, name):
    found = plan(ROOT / "configs" / name, tmp_path, (0, 1), ())
    assert [row.name for row in found] == [f"seed-{seed}/{row}" for seed in (0, 1) for row in PAPERS]
    for row in found:
        seed, config = row.name.partition("/")[0], row.config
        assert config.run == str(tmp_path / row.name)
        assert f"seed-{config.seed}" == seed
        source = f"{seed}/ae" if "pt_" in row.name else None
        assert row.after == source
        assert config.pretrained == (None if source is None else str(tmp_path / source))
        assert not row.finished


def test_the_demos_rows_differ_in_their_method_alone():
    configs = {name: load_config(ROOT / "configs" / "demo" / f"{name}.yaml") for name in PAPERS}
    cure = configs["pt_kla_sfb"]
    for config in configs.values():
        assert (config.data, config.model, config.optimizer) == (cure.data, cure.model, cure.optimizer)
        assert (config.plateau, config.evaluation, config.cpu_threads) == (cure.plateau, cure.evaluation, 1)
        assert config.kl.policy.warm_up == cure.kl.policy.warm_up or not config.train.max_epochs
    for name in ("ae", "pt_kla", "pt_kla_fb"):
        assert configs[name].pretrain == cure.pretrain
    for name in ("pt_kla", "pt_kla_fb"):
        assert configs[name].train == cure.train
    assert configs["kla"].train.max_epochs == cure.pretrain.max_epochs + cure.train.max_epochs


def test_overrides_are_for_all_rows_and_epochs_of_a_stage_for_those_that_have_it(tmp_path):
    given = ["pretrain.max_epochs=3", "train.max_epochs=2", "data.path=captions", "data.max_words=null"]
    given += ["data.distinct=false"]
    found = {row.name.partition("/")[2]: row for row in plan(ROOT / "configs" / "snli", tmp_path, (7,), given)}
    epochs = {name: (row.config.pretrain.max_epochs, row.config.train.max_epochs) for name, row in found.items()}
    assert epochs == {"ae": (3, 0), "kla": (0, 2)} | dict.fromkeys(PAPERS[2:], (3, 2))
    assert all(row.config.data.path == "captions" for row in found.values())
    # What is planned is what the run's own program makes of its command.
    for row in found.values():
        _, program, file, *overrides = row.command("cpu_threads=3")
        assert program == str(ROOT / "distvae" / "train.py")
        config = load_config(file, overrides)
        assert (config.run, config.seed, config.pretrained) == (row.config.run, 7, row.config.pretrained)
        assert config.cpu_threads == 3


def test_the_launchers_precision_is_the_rows(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("distvae.table.plan.PRECISION", "bf16")
    folder = rows(kla=ALONE, exact=ALONE | {"optimizer": {"mixed_precision": "no"}})
    precisions = {row.name: row.config.optimizer.mixed_precision for row in plan(folder, tmp_path, (0,), ())}
    assert precisions == {"seed-0/exact": "no", "seed-0/kla": "bf16"}


def test_rows_without_pretraining_need_no_source(rows, tmp_path):
    folder = rows(one=ALONE, two=ALONE)
    assert [(row.name, row.after) for row in plan(folder, tmp_path, (3,), ())] == [
        ("seed-3/one", None), ("seed-3/two", None),
    ]  # fmt: skip


def test_a_folder_without_configs_is_refused(refused, tmp_path):
    assert "holds no config" in refused("--rows", tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("modle.latent_size=3", "did you mean model"),
        ("kl.target_rate=-1", "kl.target_rate"),
        ("epochs", "key=value"),
        ("run=elsewhere", "--folder"),
        ("seed=1", "--seeds"),
        ("pretrained=elsewhere", "each row has its own"),
        ("pretrain.max_epochs=0", "nothing to train"),
    ],
)
def test_an_override_that_no_row_can_take_is_refused(refused, rows, given, said):
    assert said in refused("--rows", rows(ae=AUTOENCODER, pt={}), given)


def test_an_override_reaches_the_rows_that_read_it(rows, tmp_path, refused):
    configs = rows(ae=AUTOENCODER, kla=ALONE, pt={})
    planned = plan(configs, tmp_path / "table", (0,), ["kl.threshold=0.2", "kl.anneal_epochs=1"])
    found = {row.config_file.stem: [word for word in row.overrides if word.startswith("kl.")] for row in planned}
    both = ["kl.threshold=0.2", "kl.anneal_epochs=1"]
    assert found == {"ae": both, "kla": both[1:], "pt": both}
    said = refused("--rows", configs, "kl={policy: linear}", "kl.threshold=0.2")
    assert f"kl.threshold=0.2: no row of {configs} reads it" in said


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, "with the same settings: there is none"),
        ({"ae": AUTOENCODER, "other": AUTOENCODER}, "of one row, but ae.yaml, other.yaml all pretrain alike; keep one"),
        ({"ae": AUTOENCODER | WIDE}, "with the same settings: ae.yaml has model.hidden_size=9, not 16"),
    ],
)
def test_pretraining_comes_from_the_one_row_that_pretrains_alike(refused, rows, sources, expected):
    said = refused("--rows", rows(kla=ALONE, pt={}, **sources))
    assert "pt.yaml: needs the pretraining of " in said
    assert expected in said


def test_each_row_takes_its_own_kind_of_pretraining(rows, tmp_path):
    configs = rows(ae=AUTOENCODER, pt={}, wide_ae=AUTOENCODER | WIDE, wide_pt=WIDE, kla=ALONE)
    after = {row.name: row.after for row in plan(configs, tmp_path, (0,), ())}
    assert {name: source for name, source in after.items() if source} == {
        "seed-0/pt": "seed-0/ae",
        "seed-0/wide_pt": "seed-0/wide_ae",
    }
    assert list(after)[:2] == ["seed-0/ae", "seed-0/wide_ae"]


def test_rows_of_different_sentences_are_refused_before_any_trains(refused, rows):
    said = refused("--rows", rows(kla=ALONE, other=ALONE | {"data": {"train_size": 33}}))
    assert "other.yaml: data.train_size is 33, and " in said
    assert "in kla.yaml; the rows of a table need the same sentences" in said


@pytest.mark.parametrize("given", [(), ("--plan",)])
def test_standard_input_is_read_once_and_so_not_by_every_row(refused, rows, given):
    said = refused("--rows", rows(kla=ALONE), "data.path=-", *given)
    assert "data.path=-: every row reads the sentences; write them to a file and pass its path" in said


def test_a_language_model_leaves_out_what_it_does_not_read(rows, tmp_path):
    configs = rows(lm=LANGUAGE_MODEL, kla=ALONE, pt={}, ae=AUTOENCODER)
    given = ["model.latent_size=5", "model.hidden_size=9", "kl.weight=0.5", "pretrain.max_epochs=3"]
    found = {row.config_file.stem: row for row in plan(configs, tmp_path, (0,), given)}
    assert [word for word in found["lm"].overrides if word in given] == ["model.hidden_size=9"]
    assert found["lm"].config.language_model
    assert found["pt"].config.model.latent_size == found["ae"].config.model.latent_size == 5
    assert found["kla"].config.kl.policy.weight == 0.5


def test_a_corpus_file_is_below_the_overrides_and_above_the_rows(rows, tmp_path, refused):
    configs, corpus = rows(kla=ALONE, ae=AUTOENCODER), tmp_path / "mine.yaml"
    (tmp_path / "below.yaml").write_text("optimizer: {learning_rate: 0.25}")
    corpus.write_text(
        "base: below.yaml\ndata: {train_size: 21, path: captions}\nkl: {cycles: 3}\ntrain: {max_epochs: 9}"
    )
    for row in plan(configs, tmp_path / "table", (0,), ["data.train_size=22"], corpus):
        assert (row.config.data.train_size, row.config.optimizer.learning_rate) == (22, 0.25)
        assert row.config.train.max_epochs == (9 if row.after is None and "kla" in row.name else 0)
        assert [word for word in row.overrides if "train_size" in word] == ["data.train_size=22"]
    corpus.write_text("seed: 1")
    assert "seed=1: each row has its own" in refused("--rows", configs, "--corpus", corpus)
    assert "nowhere.yaml: cannot be read" in refused("--rows", configs, "--corpus", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("corpus", sorted((ROOT / "configs" / "corpus").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_method_can_train_on_every_corpus(corpus, tmp_path):
    found = plan(ROOT / "configs" / "field", tmp_path, (0,), [f"data.path={tmp_path}"], corpus)
    assert len(found) == len(list((ROOT / "configs" / "field").glob("*.yaml")))
    assert {row.config.model.hidden_size for row in found} == {load_config(corpus).model.hidden_size}
    assert {row.config.data.tokenizer for row in found} == {load_config(corpus).data.tokenizer}


def test_epochs_are_those_of_a_row_in_all(rows, tmp_path, refused):
    configs = rows(ae=AUTOENCODER, kla=ALONE, pt={})
    given = ["pretrain.max_epochs=4"]
    found = {row.config_file.stem: row.config for row in plan(configs, tmp_path, (0,), given, epochs=10)}
    epochs = {name: (config.pretrain.max_epochs, config.train.max_epochs) for name, config in found.items()}
    assert epochs == {"ae": (4, 0), "kla": (0, 10), "pt": (4, 6)}
    assert "pt.yaml pretrains for 4; give more" in refused("--rows", configs, *given, "--epochs", 4)


@pytest.mark.parametrize("given", [(), ("data.path=nowhere",)])
def test_the_fields_rows_differ_in_their_method_alone(tmp_path, given):
    """Every row has the same sentences, sizes and number of epochs, and a name of its own."""
    found = plan(ROOT / "configs" / "field", tmp_path, (0,), given)
    rows = [row.config for row in found if row.config.train.max_epochs]
    first = next(config for config in rows if config.kl.policy.name == "linear" and config.pretrained is None)
    for config in rows:
        assert config.pretrain.max_epochs + config.train.max_epochs == first.train.max_epochs
        assert (config.data, config.optimizer, config.plateau) == (first.data, first.optimizer, first.plateau)
        assert config.model.hidden_size == first.model.hidden_size
        assert config.kl.rate in (None, 4.0)
        assert config.kl.policy.warm_up < config.train.max_epochs
    assert len(found) == len(list((ROOT / "configs" / "field").glob("*.yaml")))
    assert sum(config.language_model for config in rows) == 1


def test_a_run_under_another_config_is_refused(refused, rows, finished, tmp_path):
    (tmp_path / "table" / "seed-0").mkdir(parents=True)
    (tmp_path / "table" / "seed-0" / "kla").symlink_to(finished)
    said = refused("--rows", rows(kla=ALONE))
    assert "seed-0/kla: cannot resume under another config" in said
    assert "kl.policy (soft_free_bits there, linear here)" in said
