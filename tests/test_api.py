"""The public Python API, on the run that other tests share."""

import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import distvae
from distvae.data import captions, corpus
from distvae.evaluation.generation import prior_draws
from distvae.runs.results import load_sentence_scores
from distvae.tokenization import BUILT_IN
from distvae.train import main
from tests.data.corpora import prepare

SENTENCES = [BUILT_IN["words"].join(words) for words in captions.generate(3, 5)]


@pytest.fixture(scope="module")
def model(finished):
    return distvae.load(finished, device="cpu")


@pytest.fixture(scope="module")
def texts(finished, cache, model):
    """The test sentences of the run."""
    data = model.config.data
    prepared = prepare(cache, train_size=data.train_size, valid_size=data.valid_size, test_size=data.test_size)
    return [model.vocabulary.text(ids) for ids in prepared.test]


def test_importing_the_package_imports_nothing_heavy():
    look = "import sys, distvae; print({'torch', 'datasets', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_public_names():
    assert {"load", "fit", "TextModel", "UserError", "__version__"} <= set(dir(distvae))
    assert issubclass(distvae.UserError, ValueError)
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        distvae.loda  # noqa: B018


def test_encode_gives_the_posterior_of_each_sentence(model, texts):
    found = model.encode(texts)
    assert found.mean.shape == found.log_variance.shape == (len(texts), model.model.latent_size)
    assert not found.mean.is_inference()
    for text, mean, log_variance in zip(texts, *found, strict=True):
        ids = torch.tensor([model.vocabulary.ids(text)])
        with torch.no_grad():
            alone = model.model.encoder(ids, torch.tensor([ids.shape[1]]))
        torch.testing.assert_close(mean, alone.mean[0])
        torch.testing.assert_close(log_variance, alone.log_variance[0])


def test_log_likelihood_is_minus_the_nll_of_the_runs_results(model, finished, texts):
    results = distvae.fit(finished / "config.yaml", {"run": str(finished)})
    known = load_sentence_scores(finished, results)
    found = model.log_likelihood(texts)
    torch.testing.assert_close(found, -torch.tensor(known.nll))
    assert (model.log_likelihood(texts, samples=1) != found).any()
    assert (model.log_likelihood(texts, seed=5) != found).any()


def test_decoding_from_latents(model):
    z = prior_draws(model.model, 4, 3)
    greedy = model.decode(z)
    assert [model.decode(row)[0] for row in z] == greedy == model.decode(z.double())
    assert model.sample(4, seed=3) == greedy
    assert model.sample(2, seed=3) == greedy[:2]
    drawn = model.sample(4, seed=3, method="sample", top_p=0.9)
    assert drawn == model.decode(z, "sample", top_p=0.9, seed=3) != greedy
    assert len(model.decode(z, method="beam", beam_size=2, max_tokens=5)) == 4


@pytest.mark.parametrize("kind", [Tensor.double, Tensor.bfloat16, Tensor.int, Tensor.numpy, list])
def test_z_may_be_any_numbers(model, kind):
    z = torch.tensor([[0.0, 2.0, -1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    given = z.tolist() if kind is list else kind(z)
    assert model.decode(given) == model.decode(z)
    assert model.interpolate(given[0], z[1], 3) == model.interpolate(z[0], z[1], 3)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 2.5])
def test_a_device_that_is_not_there_is_named(finished, device):
    with pytest.raises(distvae.UserError, match=f"^device {device}: cannot be used: .*; pass cpu, or cuda with a GPU$"):
        distvae.load(finished, device)


def test_a_language_model_has_no_use_for_samples(language_model):
    model = distvae.load(language_model, "cpu")
    for given in ({"samples": 5}, {"seed": 1}):
        with pytest.raises(distvae.UserError, match="is a language model; it draws no z, and its NLL is exact"):
            model.log_likelihood(SENTENCES, **given)
    assert len(model.log_likelihood(SENTENCES)) == len(SENTENCES)


def test_reconstruct_and_interpolate(model):
    means = model.encode(SENTENCES).mean
    assert model.reconstruct(SENTENCES) == model.decode(means)
    walk = model.interpolate(SENTENCES[0], means[1], steps=5)
    assert len(walk) == 5
    assert [walk[0], walk[-1]] == model.decode(means[:2])


def test_the_empty_sentence_is_one(model):
    """Models draw it, too."""
    torch.testing.assert_close(model.encode(["", " "]).mean, model.encode([""]).mean.expand(2, -1))
    assert model.log_likelihood([""]).item() < 0


def test_samples_of_a_mixture(model):
    """They decode draws from the Gaussians that are fitted to the training sentences."""
    few = model.sample(3, seed=2, prior="mixture", components=4)
    assert model.sample(6, seed=2, prior="mixture", components=4)[:3] == few
    fitted = model.prior("mixture", 4, seed=2)
    assert fitted is model.prior("mixture", 4, seed=2)
    assert few == model.decode(fitted.draws(3, seed=2), seed=2)
    assert fitted.weights.sum() == pytest.approx(1)
    assert model.prior("normal") is None
    train = corpus.load(corpus.prepare(model.config.data, progress=False)).train
    q = model.encode([model.vocabulary.text(ids) for ids in train])
    z = q.sample(torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(0))).double()
    assert fitted.log_density(z).mean() > Normal(0.0, 1.0).log_prob(z).sum(dim=1).mean()


@pytest.mark.parametrize("kind", [iter, tuple, np.array])
def test_sentences_may_be_anything_that_lists_them(model, kind):
    """An iterator gives each once."""
    torch.testing.assert_close(model.log_likelihood(kind(SENTENCES)), model.log_likelihood(SENTENCES))
    assert model.reconstruct(kind(SENTENCES)) == model.reconstruct(SENTENCES)


def test_nothing_gives_nothing(model):
    assert model.encode([]).mean.shape == (0, model.model.latent_size)
    assert model.reconstruct([]) == []
    assert model.log_likelihood([]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode("one text"), "sentences: is one text; pass a list of sentences"),
        (lambda m: m.encode(["a dog .", 3]), r"sentences\[1\]: is int, and should be text"),
        (lambda m: m.encode({"a dog .": 3}), "sentences: is dict; pass a list of sentences"),
        (lambda m: m.encode(None), "sentences: is NoneType; pass a list of sentences"),
        (lambda m: m.encode(["a dog .", "a\ud800b"]), r"sentences\[1\]: has half of a surrogate pair"),
        (lambda m: m.log_likelihood([SENTENCES[0]], samples=0), "importance_samples = 0"),
        (lambda m: m.encode(["Dragons ."]), "'Dragons' is not one of the"),
        (lambda m: m.decode(torch.zeros(2, 3)), r"z: has the shape \[2, 3\], and should have \[n, 4\]"),
        (lambda m: m.decode(torch.full((1, 4), torch.nan)), "z: is not finite"),
        (lambda m: m.decode(torch.zeros(1, 4), "gredy"), "method 'gredy'"),
        (lambda m: m.sample(2, topp=0.5), "topp: is not an option of decoding; the options are method, temperature"),
        (lambda m: m.sample(2, top_p=0.5), "top_p belongs to method sample"),
        (lambda m: m.sample(2, prior="mixtur"), "prior 'mixtur': should be normal or mixture"),
        (lambda m: m.sample(2, components=3), "components 3: belongs to the prior mixture, not to normal"),
        (lambda m: m.sample(2, prior="mixture", components=0), "components 0: should be a whole number of at least 1"),
        (lambda m: m.sample(2, prior="mixture", components=99), "components 99: there are 81 sentences to fit"),
        (lambda m: m.sample(2, prior="mixture", components="3"), "components '3': should be a whole number"),
        (lambda m: m.sample(2, prior="mixture", components=1.5), "components 1.5: should be a whole number"),
        (lambda m: m.sample(0), "count 0: should be a whole number of at least 1"),
        (lambda m: m.sample("3"), "count '3': should be a whole number of at least 1"),
        (lambda m: m.sample(1.5), "count 1.5: should be a whole number of at least 1"),
        (lambda m: m.sample(10**15), "count 1000000000000000: should be at most 2147483647"),
        (lambda m: m.sample(2, "0"), "seed '0': should be a whole number"),
        (lambda m: m.sample(2, method="sample", temperature="1"), "temperature '1': should be a number above 0"),
        (lambda m: m.interpolate(*torch.eye(4)[:2], steps=3.5), "steps 3.5: should be a whole number"),
        (lambda m: m.interpolate(None, torch.zeros(4)), r"z: is NoneType, and should be numbers \[n, 4\]"),
        (lambda m: m.decode(m.encode(SENTENCES)), r"z: is what encode returns; decode its mean"),
        (lambda m: m.decode(SENTENCES), r"z: is list, and should be numbers \[n, 4\]"),
        (lambda m: m.decode([[0.0, 1.0], [2.0]]), r"z: is list, and should be numbers \[n, 4\]"),
        (lambda m: m.save_pretrained(None), "folder: is NoneType, and should be a path"),
        (lambda m: distvae.load(None), "path: is NoneType, and should be a path"),
        (lambda m: distvae.from_pretrained(3), "repository: is int, and should be a path"),
        (lambda m: distvae.fit(None), "config: is NoneType, and should be a path"),
        (lambda m: distvae.fit("own.yaml", ["run=x"]), "settings: should be values by key, such as"),
        (lambda m: distvae.fit("own.yaml", {1: 2}), "settings: should be values by key, such as"),
        (lambda m: m.sample(2, seed=-1), "seed -1: should be a whole number of at least 0"),
        (lambda m: m.sample(2, seed=None), "seed None: should be a whole number of at least 0"),
        (lambda m: m.prior("mixture", seed=1.5), "seed 1.5: should be a whole number of at least 0"),
        (lambda m: m.reconstruct(SENTENCES, "sample", seed=True), "seed True: should be a whole number of at least 0"),
        (lambda m: m.interpolate(torch.zeros(4), torch.zeros(3)), r"z: has the shape \[3\], and should have \[4\]"),
        (
            lambda m: m.interpolate(torch.zeros(4), torch.ones(4), steps=1),
            "steps 1: should be a whole number",
        ),
    ],
)
def test_bad_input_is_a_value_error(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


# -- fit ---------------------------------------------------------------------------------------------------------------

WORDS = ("cat", "dog", "cow", "hen")
ROWS = [f"the {WORDS[i % 4]} and the {WORDS[i // 4 % 4]} eat ." for i in range(80)]
SMALL = {
    "model.hidden_size": 8, "model.embedding_size": 8, "model.latent_size": 2, "train.max_epochs": 1,
    "evaluation.importance_samples": 2, "evaluation.samples": 0, "data.min_count": 1, "cpu_threads": 1,
}  # fmt: skip


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"data: {{cache: {tmp_path / 'cache'}}}\n", encoding="utf-8")
    return path


def test_fit_trains_on_a_dataset_as_on_its_file(own, tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("".join(f"{row}\n" for row in ROWS), encoding="utf-8")
    settings = SMALL | {"data.path": tmp_path / "rows.txt", "run": tmp_path / "file"}
    by_file = distvae.fit(own, settings)
    rows = datasets.Dataset.from_dict({"text": ROWS, "number": list(range(len(ROWS)))})
    by_rows = distvae.fit(own, settings | {"data.path": rows, "run": tmp_path / "rows"})
    assert by_rows.scores == by_file.scores
    again = datasets.Dataset.from_dict({"text": ROWS, "number": list(range(len(ROWS)))})
    capsys.readouterr()
    assert distvae.fit(own, settings | {"data.path": again, "run": tmp_path / "rows"}) == by_rows
    assert "finished" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").glob("dataset-*"))) == 1


def test_fit_takes_splits_and_labels(own, tmp_path):
    names = datasets.ClassLabel(names=["small", "large"])

    def part(rows):
        rows = datasets.Dataset.from_dict({"text": rows, "size": [i % 2 for i in range(len(rows))]})
        return rows.cast_column("size", names)

    splits = datasets.DatasetDict(train=part(ROWS), validation=part(ROWS[:9]), test=part(ROWS[:7]))
    run = tmp_path / "run"
    results = distvae.fit(own, SMALL | {"data.path": splits, "data.label": "size", "run": run})
    assert results.scores.sentences == 7
    table = datasets.Dataset.from_parquet(str(run / "sentences.parquet"), cache_dir=str(tmp_path))
    assert table["label.size"][:] == ["small", "large", "small", "large", "small", "large", "small"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a list"], "data.path: is list; pass a path, the id of a hub dataset, a datasets.Dataset or a DatasetDict"),
        (datasets.Dataset.from_dict({"sentence": ROWS}), "has no column text, only sentence"),
    ],
)
def test_fit_refuses_other_objects(own, tmp_path, rows, message):
    with pytest.raises(distvae.UserError, match=message):
        distvae.fit(own, SMALL | {"data.path": rows, "run": tmp_path / "run"})


def test_fit_refuses_an_unknown_key(own):
    with pytest.raises(distvae.UserError, match="model.hiden_size"):
        distvae.fit(own, {"model.hiden_size": 3})


def test_a_language_model_has_no_latent_but_a_likelihood(language_model):
    model = distvae.load(language_model)
    for call in (model.encode, model.reconstruct, lambda s: model.interpolate(*s[:2])):
        with pytest.raises(distvae.UserError, match="is a language model; it has no latent variable"):
            call(SENTENCES)
    together = model.log_likelihood(SENTENCES)
    alone = torch.cat([model.log_likelihood([sentence]) for sentence in SENTENCES])
    # Sums of float32, though in float64: a batch may round them in another order.
    torch.testing.assert_close(together.float(), alone.float())
    assert model.sample(3) == model.decode(torch.zeros(3, 0))


def test_an_autoencoder_has_no_likelihood(tiny, tmp_path):
    assert main([str(tiny), f"run={tmp_path / 'ae'}", "train.max_epochs=0"]) == 0
    with pytest.raises(distvae.UserError, match="is an autoencoder; its z has no prior"):
        distvae.load(tmp_path / "ae").log_likelihood(SENTENCES)
