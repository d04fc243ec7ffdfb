"""Corpora by each tokenizer, end to end. The tokenizers themselves: tests/tokenization/."""

import json
import subprocess
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from distvae.config.schema import DataConfig
from distvae.data import corpus
from distvae.system.errors import UserError
from distvae.tokenization import OPTIONS

TEXT = [f"{who} isn't {what}, says <unk>." for who in ("A man", "Two dogs", "She") for what in ("here", "at &t", "old")]

# As PTB is distributed: a space before each sentence and after it, rare words replaced by <unk>, numbers by N.
PTB = """\
 pierre <unk> N years old will join the board of <unk> & sons as a director nov. N
 the u.s. <unk> index of N stocks fell N N to $ N
 mr. <unk> is chairman of <unk> n.v. the dutch group he said ''
 `` we 're <unk> '' says the u.s. head at johnson & <unk> whose $ N \n"""


def prepare(tmp_path, **settings):
    path = tmp_path / "text"
    path.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (path / f"{split}.txt").write_text("\n".join(TEXT), encoding="utf-8")
    data = DataConfig(path=str(path), cache=str(tmp_path / "cache"), workers=1, **settings)
    return corpus.load(corpus.prepare(data, progress=False))


@pytest.fixture
def settings(tmp_path):
    """Settings that a tokenizer needs."""
    file = tmp_path / "some" / "tokenizer.json"
    file.parent.mkdir()
    file.write_text(prepare(tmp_path, tokenizer="bpe", vocabulary_size=300).vocabulary.definition, encoding="utf-8")
    return {"bpe": {"vocabulary_size": 290}, "unigram": {"vocabulary_size": 60},
            "pretrained": {"tokenizer_file": str(file)}}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_the_text_comes_back(tmp_path, settings, name):
    prepared = prepare(tmp_path, tokenizer=name, **settings.get(name, {}))
    vocabulary = prepared.vocabulary
    assert vocabulary.tokenizer == name
    kept = TEXT
    if name == "treebank":
        kept = [line.replace("at &t", "at & t") for line in TEXT]  # its rules lose spaces
    elif name == "unigram":
        kept = [line.replace("<unk>.", "<unk> .") for line in TEXT]  # a special token of the library
    elif name == "words":
        kept = [line.replace("<unk>", "<unk-other>") for line in TEXT]
    assert [vocabulary.text(ids) for ids in prepared.test] == kept
    assert [vocabulary.ids(line) for line in TEXT] == [ids.tolist() for ids in prepared.test]
    # What is kept in a folder is what was built, and the tokenizer is part of what names it.
    again = prepare(tmp_path, tokenizer=name, **settings.get(name, {}))
    assert again.vocabulary == vocabulary
    assert len({prepare(tmp_path, tokenizer=other).fingerprint for other in ("words", "whitespace", "characters")}) == 3


def test_the_tokens_of_ptb_are_those_that_wc_counts(tmp_path):
    """And an end for each line, as published perplexities of PTB count them."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"ptb.{split}.txt").write_text(PTB, encoding="utf-8")
    data = DataConfig(
        path=str(tmp_path), cache=str(tmp_path / "cache"), workers=1, tokenizer="whitespace", unk="single"
    )
    prepared = corpus.load(corpus.prepare(data, progress=False))
    counts = subprocess.run(["wc", "-wl", tmp_path / "ptb.test.txt"], capture_output=True, text=True, check=True)
    lines, words = map(int, counts.stdout.split()[:2])
    assert (lines, words) == (4, 60)
    # Each sentence begins with <s>, which is not predicted.
    assert int((prepared.test.lengths - 1).sum()) == words + lines
    known = ["N", "the", "u.s.", "$", "&", "''", "of"]  # more than once, the most frequent first
    assert sorted(prepared.vocabulary.tokens[4:]) == sorted(known)
    assert prepared.unknown["test"] == sum(word not in known for word in PTB.split()) / words


@pytest.mark.parametrize("name", ["words", "characters", "bpe"])
def test_the_characters_of_sentences_are_counted(tmp_path, name):
    prepared = prepare(tmp_path, tokenizer=name)
    assert prepared.test.characters.tolist() == [len(line) + 1 for line in TEXT]


@pytest.mark.parametrize("name", OPTIONS)
def test_white_space_around_a_sentence_is_no_token(tmp_path, settings, name):
    given = {"tokenizer": name, **settings.get(name, {})}
    plain = [ids.tolist() for ids in prepare(tmp_path, **given).test]
    for split in ("train", "valid", "test"):
        (tmp_path / "text" / f"{split}.txt").write_text("".join(f"  {line}\t \n" for line in TEXT), encoding="utf-8")
    data = DataConfig(path=str(tmp_path / "text"), cache=str(tmp_path / "cache"), workers=1, **given)
    assert [ids.tolist() for ids in corpus.load(corpus.prepare(data, progress=False)).test] == plain


def test_the_characters_of_captions_are_those_of_their_text(tmp_path):
    data = DataConfig(cache=str(tmp_path), train_size=20, valid_size=9, test_size=9)
    prepared = corpus.load(corpus.prepare(data, progress=False))
    for sentences in (prepared.valid, prepared.test):
        assert sentences.characters.tolist() == [len(prepared.vocabulary.text(ids)) + 1 for ids in sentences]


def test_a_corpus_by_the_treebank_rules_is_the_one_that_older_versions_built(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(corpus, "_sha256", lambda origin: seen.update(origin) or "0" * 64)
    monkeypatch.setattr(corpus, "is_whole", lambda folder: True)
    (tmp_path / "all.txt").write_text("a\n")
    corpus.prepare(DataConfig(path=str(tmp_path / "all.txt"), tokenizer="treebank"), progress=False)
    assert set(seen) == {"format", "nltk", "source", "settings"}
    assert not {"tokenizer", "vocabulary_size", "tokenizer_file"} & set(seen["settings"])


def test_the_tokenizer_file_is_a_standard_one(tmp_path):
    prepare(tmp_path, tokenizer="bpe", vocabulary_size=290)
    (file,) = (tmp_path / "cache").glob("*/tokenizer.json")
    assert Tokenizer.from_file(str(file)).encode("Two dogs").tokens


def test_another_definition_is_another_corpus(tmp_path, settings):
    first = prepare(tmp_path, tokenizer="pretrained", **settings["pretrained"])
    file = Path(settings["pretrained"]["tokenizer_file"])
    content = json.loads(file.read_text(encoding="utf-8")) | {"normalizer": {"type": "Lowercase"}}
    file.write_text(json.dumps(content), encoding="utf-8")
    again = prepare(tmp_path, tokenizer="pretrained", **settings["pretrained"])
    assert again.fingerprint != first.fingerprint
    assert again.vocabulary.text(again.test[0]) == TEXT[0].lower()


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"isn": 0, "[UNK]": 1}, unk_token="[UNK]"),
        models.WordPiece({"isn": 0, "[UNK]": 1}, unk_token="[UNK]"),
        models.BPE({"isn": 0, "i": 2, "is": 3, "s": 4, "n": 5, "[UNK]": 1}, [("i", "s"), ("is", "n")],
                   unk_token="[UNK]", fuse_unk=True),
        models.Unigram([("isn", -1.0), ("?", -9.0)], 1),
    ],
)  # fmt: skip
def test_what_a_pretrained_tokenizer_does_not_know_is_unknown(tmp_path, model):
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "own.json"))
    tokenized = prepare(tmp_path, tokenizer="pretrained", tokenizer_file=str(tmp_path / "own.json"))
    assert tokenized.unknown["test"] > 0.5
    assert tokenized.vocabulary.unknown in tokenized.test[0]
    assert not {"[UNK]", "?"} & {*tokenized.vocabulary.tokens}


def test_sentences_of_which_a_tokenizer_knows_nothing(tmp_path):
    library = Tokenizer(models.BPE({"S": 0}, []))
    library.normalizer = normalizers.Replace(Regex("[^S]"), "")  # it leaves nothing of other sentences
    library.save(str(tmp_path / "own.json"))
    given = {"tokenizer": "pretrained", "tokenizer_file": str(tmp_path / "own.json")}
    notes = prepare(tmp_path, **given).notes
    assert "train: 6 sentences of which data.tokenizer=pretrained knows nothing" in notes
    library.normalizer = normalizers.Replace(Regex("."), "")
    library.save(str(tmp_path / "own.json"))
    with pytest.raises(UserError, match="data.tokenizer=pretrained: knows nothing of train; use another tokenizer"):
        prepare(tmp_path, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": "bpe", "vocabulary_size": 9}, "bpe needs at least 256"),
        ({"tokenizer": "unigram", "vocabulary_size": 9}, "unigram cannot be trained"),
        ({"tokenizer": "pretrained"}, "set data.tokenizer_file"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **given)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
