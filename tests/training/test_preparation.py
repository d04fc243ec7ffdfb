"""What a run needs before its first step."""

from dataclasses import replace

import pytest
import torch

from distvae.config.load import load_config
from distvae.data import corpus
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.runtime import Runtime
from distvae.model.vae import model_of
from distvae.runs.checkpoints import load_export, newest_checkpoint
from distvae.system.errors import UserError
from distvae.training.preparation import introduce, load_resumed, prepare_corpus, pretrained_encoder


@pytest.fixture
def runtime():
    runtime = Runtime(cpu_threads=1)
    yield runtime
    runtime.close()


def test_a_corpus_is_prepared_and_its_vocabulary_written(runtime, tiny, tmp_path):
    config = load_config(tiny)
    (tmp_path / "run").mkdir()
    sentences = prepare_corpus(config, tmp_path / "run", runtime)
    assert [len(split) for split in (sentences.train, sentences.valid, sentences.test)] == [81, 20, 20]
    written = Vocabulary.load(tmp_path / "run" / "vocabulary.json")
    assert written.fingerprint == sentences.vocabulary.fingerprint


def test_a_batch_has_a_sentence_for_every_micro_batch(runtime, tiny, tmp_path):
    config = load_config(tiny, ["optimizer.batch_size=2", "optimizer.accumulation_steps=3"])
    with pytest.raises(UserError, match="smaller than 1 process × 3 accumulation steps"):
        prepare_corpus(config, tmp_path, runtime)


def test_a_pretrained_encoder_is_the_exports(finished, tiny):
    config = load_config(tiny)
    exported = load_export(str(finished), kind="pretrained")
    weights = pretrained_encoder(config, str(finished), exported.vocabulary.fingerprint)
    assert weights.keys() == model_of(config, 5, 0, 1).encoder.state_dict().keys()
    for name, value in weights.items():
        assert torch.equal(value, exported.weights[f"encoder.{name}"])


def test_an_encoder_of_another_vocabulary_or_size_is_refused(finished, tiny):
    config = load_config(tiny)
    with pytest.raises(UserError, match="its vocabulary .* is not this run's .abc."):
        pretrained_encoder(config, str(finished), "abc")
    vocabulary = load_export(str(finished), kind="pretrained").vocabulary.fingerprint
    larger = replace(config, model=replace(config.model, hidden_size=17))
    with pytest.raises(UserError, match="model.hidden_size is 16 there and 17 here"):
        pretrained_encoder(larger, str(finished), vocabulary)
    pooled = replace(config, model=replace(config.model, pooling="mean"))
    with pytest.raises(UserError, match="model.pooling is last there and mean here"):
        pretrained_encoder(pooled, str(finished), vocabulary)


def test_an_encoder_that_lacks_a_weight_is_refused(finished, tiny, monkeypatch):
    whole = load_export(str(finished), kind="pretrained")
    del whole.weights["encoder.posterior.bias"]
    monkeypatch.setattr("distvae.runs.checkpoints.load_export", lambda *_, **__: whole)
    with pytest.raises(UserError, match="do not belong to their config and vocabulary"):
        pretrained_encoder(load_config(tiny), str(finished), whole.vocabulary.fingerprint)


def test_the_checkpoint_to_resume_from_is_named(finished, capsys):
    found = newest_checkpoint(finished)
    config = load_config(found / "config.yaml")
    model = model_of(config, len(load_export(str(finished)).vocabulary), 0, 1)
    checkpoint, ended = load_resumed(found, model, is_main=True)
    assert [end.stage for end in ended] == ["pretrain"]
    assert f"resuming from {found}: step {checkpoint.state.step}, train epoch 4" in capsys.readouterr().out
    load_resumed(found, model, is_main=False)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_another_model_is_refused(finished):
    found = newest_checkpoint(finished)
    config = load_config(found / "config.yaml")
    with pytest.raises(UserError, match="do not belong to their config and vocabulary"):
        load_resumed(found, model_of(config, 7, 0, 1), is_main=True)


def test_a_run_says_what_it_trains(runtime, tiny, tmp_path, capsys):
    config = load_config(tiny)
    sentences = corpus.load(corpus.prepare(config.data, progress=False))
    model = model_of(config, len(sentences.vocabulary), 0, 1)
    introduce(config, tmp_path, runtime, sentences, model)
    said = capsys.readouterr().out
    assert f"{tmp_path}: captions, 81/20/20 sentences, 501 tokens in the vocabulary" in said
    assert "1 process on CPU, 1 thread each" in said


def test_an_encoder_with_another_posterior_is_refused(finished, tiny):
    config = load_config(tiny, ["model.posterior=batch_norm"])
    vocabulary = load_export(str(finished), kind="pretrained").vocabulary.fingerprint
    with pytest.raises(UserError, match="model.posterior is gaussian there and batch_norm here"):
        pretrained_encoder(config, str(finished), vocabulary)
