"""``distvae posterior``, as a user runs it."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from distvae.cli import main
from distvae.evaluation.aggregate import Far
from distvae.runs.aggregate import _draws
from distvae.system.files import sha256
from tests.conftest import fork
from tests.evaluation.test_scoring import sentences_of
from tests.runs.test_probing import numbers

WORDS = ["--components", "3"]


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of ``finished``, which gets a posterior.json."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "mine", symlinks=True)


@pytest.fixture(scope="module")
def found(run):
    assert main(["posterior", str(run), *WORDS]) == 0
    return json.loads((run / "posterior.json").read_text())


def test_the_figures_agree_with_those_of_evaluate(run, found):
    results = json.loads((run / "results.json").read_text())["scores"]
    assert (found["format"], found["split"], found["sentences"], found["train"]) == (1, "test", 20, 81)
    assert found["model"] == sha256(run / "best" / "model.safetensors")
    assert found["divergence"]["mutual_information"] == pytest.approx(results["mutual_information"], abs=1e-5)
    # The KL of one draw each, where the results have the closed form.
    kl = found["divergence"]["kl"]
    assert kl["mean"] == pytest.approx(results["kl"]["mean"], abs=5 * kl["standard_error"] + 1e-3)
    assert [bound["samples"] for bound in found["nll"]["prior"]] == [1, 5, 10]
    last = found["nll"]["prior"][-1]
    assert last["nll"] == pytest.approx(results["nll"], abs=1e-5)
    assert last["effective"] == pytest.approx(results["effective_samples"], rel=1e-4)
    assert found["gain"]["mean"] == pytest.approx(last["nll"]["mean"] - found["nll"]["mixture"][-1]["nll"]["mean"])
    assert len(found["divergence"]["per_dimension"]) == 4
    # The gain in −ELBO, by one draw where the curve begins with ten.
    gain = found["nll"]["prior"][0]["nll"]["mean"] - found["nll"]["mixture"][0]["nll"]["mean"]
    assert found["closer"]["mean"] == pytest.approx(gain, abs=5 * found["closer"]["standard_error"])
    assert all(map(math.isfinite, numbers(found)))


def test_all_draws_are_decoded_and_compared(found):
    draws = found["draws"]
    assert {kind: each["count"] for kind, each in draws.items() if not kind.startswith("prior, ")} == {
        "posterior": 20, "prior": 20, "mixture": 20, "sentences": 20
    }  # fmt: skip
    assert draws["prior, far"]["count"] + draws["prior, near"]["count"] == 20
    assert draws["prior, far"]["count"] == round(20 * draws["prior"]["far"]["mean"])
    assert draws["posterior"]["far"] == {"mean": 0.05, "standard_error": 0.0}  # the lowest of 20
    assert all(draws[kind]["forward_ppl"]["mean"] > 1 for kind in ("posterior", "prior", "mixture", "sentences"))


def test_the_table_and_json_are_what_is_in_the_file(run, found, tmp_path, capsys):
    out = tmp_path / "folder" / "p.json"
    capsys.readouterr()
    assert main(["posterior", str(run), *WORDS, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text()) == found
    assert main(["posterior", str(run), *WORDS, "--quick", "--split", "valid", "--out", str(out), "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "valid sentences, in nats" in shown
    assert "far from q(z), in %" in shown
    assert "PPL" not in shown
    assert "K = " not in shown
    quick = json.loads(out.read_text())
    assert (quick["seed"], quick["nll"], quick["gain"]) == (3, None, None)
    assert all(each["forward_ppl"] is None for each in quick["draws"].values())


def test_two_processes_find_what_one_finds(run, found, tmp_path):
    out = tmp_path / "two.json"
    words = ["posterior", str(run), *WORDS, "--out", str(out)]
    codes, said = fork(tmp_path, [{"processes": 2, "program": "distvae.cli", "runs": [words]}])
    assert codes == [[0, 0]], said
    two = json.loads(out.read_text())
    assert two.keys() == found.keys()
    assert list(numbers(two)) == pytest.approx(list(numbers(found)), abs=1e-4)


def test_new_text_in_splits(run, tmp_path, capsys):
    for split, count in (("train", 30), ("dev", 5), ("test", 1)):
        (tmp_path / f"{split}.txt").write_text("A man is building a tower .\nTwo men are building a tower .\n" * count)
    words = ["posterior", str(run), str(tmp_path), "--quick", "--out", str(tmp_path / "p.json"), "--components", "2"]
    assert main([*words, "--split", "valid", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train"], found["sentences"]) == (60, 10)
    # Of two different sentences, z tells at most ln 2.
    assert found["divergence"]["mutual_information"]["mean"] < math.log(2) + 1e-9


def test_an_autoencoder_has_an_nll_under_the_mixture_alone(tiny, tmp_path, capsys):
    from distvae.train import main as train

    run = tmp_path / "ae"
    assert train([str(tiny), f"run={run}", "train.max_epochs=0"]) == 0
    capsys.readouterr()
    assert main(["posterior", str(run), *WORDS]) == 0
    shown = capsys.readouterr().out
    assert "mixture   effective" in shown
    found = json.loads((run / "posterior.json").read_text())
    assert list(found["nll"]) == ["mixture"]
    assert found["gain"] is None
    assert main(["sample", str(run), "--prior", "mixture", "--components", "3", "-n", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_draws_are_divided_into_far_and_near():
    """Two of three prior draws are below the densities of all sentences, and have the words that train lacks."""
    sentences = [[4, 5], [4, 5], [5, 4]]
    ids = [[1, *words, 2] for words in sentences]
    held_out = {"posterior": np.array([0.0, 1.0, 2.0]), "prior": np.array([-5.0, 1.0, -4.0])}
    texts = {"sentences": ids, "posterior": ids, "prior": [[1, 6, 6, 2], ids[0], [1, 6, 2]]}
    found = _draws(held_out, Far(held_out["posterior"], 0), texts, sentences_of(sentences), 7)
    assert {kind: each.count for kind, each in found.items()} == {
        "posterior": 3, "prior": 3, "prior, far": 2, "prior, near": 1, "sentences": 3
    }  # fmt: skip
    assert found["prior"].far.mean == pytest.approx(2 / 3)
    assert (
        found["prior, far"].forward_ppl.mean > found["prior"].forward_ppl.mean > found["prior, near"].forward_ppl.mean
    )
    assert found["sentences"].forward_ppl == found["posterior"].forward_ppl
    none = _draws(held_out | {"prior": np.ones(3)}, Far(held_out["posterior"], 0), texts, sentences_of(sentences), 7)
    assert (none["prior, far"].count, none["prior, far"].forward_ppl) == (0, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["{run}", "--split", "dev"],
            "posteriors of dev are compared with those of train, and the sentences have no dev",
        ),
        (["{run}", "--split", "train"], "--split train: the sentences are compared with train; choose a split that is"),
        (["{run}", "--components", "82"], "components 82: there are 81 sentences to fit Gaussians to; choose fewer"),
        (["{run}", "--components", "0"], "'0': should be a whole number"),
        (["{lm}"], "is a language model; it has no latent variable"),
        (["{run}", "{text}"], "are compared with those of train, and the sentences have no splits; pass a folder"),
        (["{run}/nowhere"], "no such run folder; for a model of the hub, name a file by --out"),
        (["{run}", "{text}", "--out", "{text}"], "text.txt: is a file that is read; name another one to write"),
        (["{run}", "--out", "/proc/p.json", "--quick"], "/proc/p.json: cannot be written"),
    ],
)
def test_bad_input_is_one_line(run, language_model, tmp_path, said, words, message):
    text = tmp_path / "text.txt"
    text.write_text("A man is building a tower.\n")
    places = {"run": run, "lm": language_model, "text": text}
    error = said("posterior", *(word.format(**places) for word in words), code=2)
    assert message in error
    assert error.count("\n") == 1


def test_without_scikit_learn_one_line_says_what_to_install(run):
    block = "import sys; sys.modules['sklearn'] = None; from distvae.cli import main; import importlib.util as u\n"
    block += "u.find_spec = lambda name, find=u.find_spec: None if name == 'sklearn' else find(name)\n"
    for words in (["posterior", str(run)], ["sample", str(run), "--prior", "mixture"]):
        done = subprocess.run([sys.executable, "-c", f"{block}sys.exit(main({words}))"], capture_output=True, text=True)
        assert done.returncode == 2
        assert "needs scikit-learn: pip install 'distvae[probe]'" in done.stderr
        assert done.stderr.count("\n") == 1
