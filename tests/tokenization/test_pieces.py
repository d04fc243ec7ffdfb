import json
import pickle
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from distvae.system.errors import UserError
from distvae.tokenization.pieces import BPE, Pretrained, Unigram
from tests.conftest import ROOT

LANGUAGES = ROOT / "tests" / "fixtures" / "languages"

SENTENCES = [f"{who} {does} the {what}." for who in ("A man", "Two dogs", "She") for does in ("sees", "eats")
             for what in ("cake", "newer newspaper", "dog's bone")]  # fmt: skip
BPE_290 = BPE(vocabulary_size=290).fit(SENTENCES)


@settings(deadline=None)
@given(st.text())
def test_bpe_gives_every_text_back(sentence):
    tokens = BPE_290.tokenize(sentence)
    assert BPE_290.join(tokens) == unicodedata.normalize("NFC", sentence)
    assert {*tokens} <= {*BPE_290.pieces}


def test_bpe_has_the_size_asked_for_and_merges_what_is_frequent():
    assert len(BPE_290.pieces) == 290
    assert BPE_290.tokenize("A newer dog") == ["A", "Ġnewer", "Ġdog"]


@pytest.mark.parametrize("options", [BPE(vocabulary_size=400), Unigram(vocabulary_size=500)])
def test_training_again_gives_the_same(options):
    """Also where many characters are rare, as in Chinese."""
    lines = [line for file in sorted(LANGUAGES.glob("*.txt")) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({options.fit(lines).definition for _ in range(3)}) == 1


def test_a_long_word_takes_no_longer_than_many_words():
    def seconds(text: str) -> float:
        start = time.process_time()
        assert "xy" in BPE(vocabulary_size=300).fit([*SENTENCES, text]).pieces
        return time.process_time() - start

    assert seconds("xy" * 100_000) < 10 * seconds("xy " * 100_000)  # hundreds of times as long without cutting it


def test_unigram():
    tokenizer = Unigram(vocabulary_size=40).fit(SENTENCES)
    tokens = tokenizer.tokenize("A man eats the newspaper.")
    assert tokenizer.join(tokens) == "A man eats the newspaper."
    assert {*tokens} <= {*tokenizer.pieces}
    assert tokenizer.pieces[0] == "<unk>"
    assert "走" not in tokenizer.pieces
    assert tokenizer.tokenize("走 走") != tokenizer.tokenize("")


@pytest.mark.parametrize("text", ["a <UNK> b", "<UNK>", "(<UNK>)s <unk>"])
def test_unigram_learns_from_text_with_the_librarys_own_placeholder(text):
    tokenizer = Unigram(vocabulary_size=60).fit([*SENTENCES, text])
    assert {*"<UNK>"} <= {*"".join(tokenizer.tokenize("<UNK>"))}


def test_a_panic_of_the_library_is_an_error_of_the_user():
    panic = type("PanicException", (BaseException,), {})

    def panicking(error):
        yield "a dog"
        raise error

    with pytest.raises(UserError, match="unigram cannot be trained: likelihood is NAN"):
        Unigram(vocabulary_size=40).fit(panicking(panic("likelihood is NAN")))
    with pytest.raises(KeyboardInterrupt):
        Unigram(vocabulary_size=40).fit(panicking(KeyboardInterrupt()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BPE(vocabulary_size=255), "data.vocabulary_size=255: bpe needs at least 256, one for each byte"),
        (
            Unigram(vocabulary_size=5),
            "data.vocabulary_size=5: unigram cannot be trained: The vocabulary is not large",
        ),
        (
            Pretrained(),
            "data.tokenizer=pretrained: set data.tokenizer_file to a tokenizer.json or an id of the hub",
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        options.fit(SENTENCES)


def test_pretrained_from_a_file(tmp_path):
    library = Tokenizer(models.WordPiece({"[UNK]": 0, "new": 1, "##er": 2, "a": 3}, unk_token="[UNK]"))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Pretrained(tokenizer_file=str(tmp_path / "tokenizer.json")).fit(())
    assert tokenizer.pieces == ("[UNK]", "new", "##er", "a")
    assert tokenizer.tokenize("a newer b") == ["a", "new", "##er", "[UNK]"]
    assert tokenizer.join(["a", "new", "##er"]) == "a newer"


def saved(folder, model, change=lambda library: None):
    """The options for a tokenizer in a folder."""
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    change(library)
    library.save(str(folder / "tokenizer.json"))
    return Pretrained(tokenizer_file=str(folder))


@pytest.mark.parametrize(
    "change", [lambda library: library.enable_truncation(2), lambda library: library.enable_padding(length=9)]
)
def test_sentences_are_neither_cut_nor_filled(tmp_path, change):
    tokenizer = saved(tmp_path, models.WordLevel({"a": 0, "b": 1}, unk_token="a"), change).fit(())
    assert tokenizer.tokenize("a b b") == ["a", "b", "b"]


@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}), models.Unigram([("a", -1.0)])])
def test_unknown_text_that_no_piece_stands_for(tmp_path, model):
    tokenizer = saved(tmp_path, model).fit(())
    assert tokenizer.tokenize("a") == ["a"]
    with pytest.raises(UserError, match=r"the tokenizer cannot split 'a 走' \(.*\); use one with an unknown token"):
        tokenizer.tokenize("a 走")


def test_characters_that_would_be_lost_are_refused(tmp_path):
    options = saved(tmp_path, models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    assert options.fit(["ab a"]).tokenize("ab a") == ["ab", "a"]
    with pytest.raises(UserError, match=r"would drop characters of train: é 走 \(2 in total\); use"):
        options.fit(["ab a", "aéb", "走 é"])
    known = saved(tmp_path, models.BPE({"a": 0, "[UNK]": 1}, [], unk_token="[UNK]"))
    assert known.fit(["aéa"]).tokenize("aéa") == ["a", "[UNK]", "a"]
    assert saved(tmp_path, models.BPE({"a": 0, "##é": 1}, [], continuing_subword_prefix="##")).fit(["aé"]).pieces


@pytest.mark.parametrize("content", [None, "", "{}", json.dumps({"model": 1})])
def test_a_file_that_is_no_tokenizer(tmp_path, monkeypatch, content):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"is neither a readable tokenizer\.json nor a model of the hub") as caught:
        Pretrained(tokenizer_file=str(path)).fit(())
    assert "\n" not in str(caught.value)


def test_it_travels_to_other_processes():
    again = pickle.loads(pickle.dumps(BPE_290))
    assert again.tokenize("the dog") == BPE_290.tokenize("the dog")
