"""Models go to the hub and come back: a server of our own, and real processes as clients."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

import distvae
from distvae.config.load import load_config
from tests.conftest import ROOT
from tests.data.hub import Hub


@pytest.fixture
def saved(finished, tmp_path):
    distvae.load(finished).save_pretrained(tmp_path / "saved", license="mit")
    return tmp_path / "saved"


def test_a_saved_model_is_the_run_s(finished, saved):
    run, model = distvae.load(finished), distvae.from_pretrained(str(saved))
    assert model.sample(4) == run.sample(4)
    assert model.results.scores == run.results.scores
    assert (model.encode(run.sample(4)).mean == run.encode(run.sample(4)).mean).all()
    model.save_pretrained(saved)  # over itself
    assert distvae.load(saved).sample(4) == run.sample(4)


def test_a_saved_model_names_no_path_of_the_machine(finished, saved):
    text = "".join(path.read_text(encoding="utf-8") for path in saved.iterdir() if path.suffix != ".safetensors")
    config = load_config(finished / "best/config.yaml", whole=True)
    assert config.data.cache not in text
    assert str(finished.parent) not in text


def test_the_card_has_the_figures_and_how_to_use_the_model(finished, saved):
    card = ModelCard.load(saved / "README.md")
    scores = json.loads((finished / "results.json").read_text())["scores"]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["nll"] == scores["nll"]["mean"]
    assert found["active_units"] == scores["active_units"]
    assert (card.data.license, card.data.library_name) == ("mit", "distvae")
    assert f"| NLL | {scores['nll']['mean']:.2f} ±" in card.text
    assert 'distvae.from_pretrained("saved")' in card.text
    assert "The latent is **" in card.text


def test_the_card_of_a_language_model_promises_no_latent(language_model, tmp_path):
    distvae.load(language_model).save_pretrained(tmp_path / "lm")
    card = ModelCard.load(tmp_path / "lm/README.md")
    assert "An LSTM language model, trained on `captions`" in card.text
    assert "encode" not in card.text
    assert card.data.license is None


def test_a_model_without_results_says_so(finished, tmp_path):
    distvae.load(finished / "pretrained").save_pretrained(tmp_path / "ae")
    card = ModelCard.load(tmp_path / "ae/README.md")
    assert "It has not been scored." in card.text
    assert card.data.eval_results is None


def test_a_folder_of_something_else_is_left_alone(finished, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(distvae.UserError, match="holds thesis.tex, which is no part of a model"):
        distvae.load(finished).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# -- The hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    yield server
    server.shutdown()


def client(hub, home, *words, **variables):
    """Run Python as a user of the hub whose token is set."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT), **variables,
    }  # fmt: skip
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)


USE = """
import json, sys, distvae
try:
    model = distvae.from_pretrained(*sys.argv[1:])
    print(json.dumps([repr(model), model.sample(3), str(model.results.scores.nll)]))
except distvae.UserError as error:
    print(json.dumps(str(error)))
"""


def test_a_model_goes_to_the_hub_and_comes_back(finished, hub, tmp_path):
    done = client(hub, tmp_path / "home", "-m", "distvae.cli", "push", finished, "acme/vae", "--license", "mit")
    assert (done.returncode, done.stdout) == (0, f"{hub.endpoint}/acme/vae\n"), done.stderr
    assert sorted(path.name for path in (tmp_path / "hub/acme/vae").iterdir()) == [
        "README.md", "config.yaml", "manifest.json", "model.safetensors", "results.json", "vocabulary.json",
    ]  # fmt: skip
    assert 'from_pretrained("acme/vae")' in (tmp_path / "hub/acme/vae/README.md").read_text()
    (tmp_path / "hub/acme/vae/README.md").write_text("edited on the hub")
    name, sentences, nll = json.loads(client(hub, tmp_path / "other", "-c", USE, "acme/vae").stdout)
    run = distvae.load(finished)
    assert name.startswith("TextModel('acme/vae', latent_size=4")
    assert (sentences, nll) == (run.sample(3), str(run.results.scores.nll))
    offline = client(hub, tmp_path / "other", "-c", USE, "acme/vae", HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout)[1] == sentences
    wrong = {
        ("acme/val",): "acme/val: no such model on the hub; correct the name, or log in if it is private",
        ("acme/vae", "v2"): "acme/vae: has no branch, tag or commit v2",
        ("acme/a/b",): "acme/a/b: is no id of a repository; it has the form ORG/NAME",
    }
    for words, message in wrong.items():
        assert message in json.loads(client(hub, tmp_path / "other", "-c", USE, *words).stdout)
    (tmp_path / "hub/acme/vae/vocabulary.json").write_text("{}")
    assert "vocabulary.json: does not match manifest.json" in json.loads(
        client(hub, tmp_path / "third", "-c", USE, "acme/vae").stdout
    )


def test_commands_take_the_id_of_a_model_on_the_hub(finished, hub, tmp_path):
    distvae.load(finished).save_pretrained(tmp_path / "hub/acme/vae")
    sentences = distvae.load(finished).sample(3)
    (tmp_path / "new.txt").write_text("\n".join(sentences))

    def command(*words):
        return client(hub, tmp_path / "home", "-m", "distvae.cli", *words)

    done = command("sample", "acme/vae", "-n", "3")
    assert (done.returncode, done.stdout.splitlines()) == (0, sentences), done.stderr
    done = command("score", "acme/vae", tmp_path / "new.txt", "--importance-samples", "2")
    assert done.returncode == 0, done.stderr
    assert "acme/vae" in done.stdout
    done = command("sample", "acme/val")
    assert done.returncode == 2
    assert done.stderr.startswith("distvae: acme/val: no such folder; tried the hub: no such model on the hub; ")
    for words in (["evaluate", "acme/vae"], ["push", "acme/vae", "acme/other"], ["report", "acme/vae"]):
        done = command(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("distvae: acme/vae")


def test_a_push_without_a_token_is_one_line(finished, hub, tmp_path):
    done = client(hub, tmp_path / "home", "-m", "distvae.cli", "push", finished, "acme/vae", HF_TOKEN="")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the hub refuses; log in with a token that may write (hf auth login)" in done.stderr
