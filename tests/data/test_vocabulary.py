import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distvae.data.vocabulary import CLASSES, SPECIALS, UNKNOWN_SPELLINGS, UNKNOWN_TOKENS, Vocabulary, shape_class
from distvae.system.errors import UserError
from distvae.tokenization.pieces import BPE

WORD = st.text(min_size=1, max_size=12)
COUNTS = st.dictionaries(WORD | st.sampled_from(("<s>", "</s>", "<pad>", "<unk>", "<unk-lower>")), st.integers(1, 5))
UNK = st.sampled_from(("classes", "single"))

SHAPES = {
    "<unk-twoDigits>": ["90", "07"],
    "<unk-fourDigits>": ["1990", "0000"],
    "<unk-number>": ["7", "123", "12345"],
    "<unk-digitLetter>": ["3rd", "F16", "21-year-old", "10:30am", "1,000km"],
    "<unk-digitDash>": ["2-3", "555-1234", "09-01/96"],
    "<unk-digitSlash>": ["3/4", "11/9/2001", "1,000/2"],
    "<unk-digitComma>": ["1,000", "1,000.50"],
    "<unk-digitPoint>": ["3.5", ".25", "1.2.3"],
    "<unk-time>": ["10:30", "9:05", "23:59:59"],
    "<unk-allCaps>": ["I", "NBA", "U.S.", "T-"],
    "<unk-initCap>": ["Paris", "McDonald", "Jean-Luc", "É.a"],
    "<unk-lower>": ["dog", "n't", "well-known", "élan", "'s"],
    "<unk-other>": ["iPhone", ".", "$5", "日本", "1:2:3:4", "``", "5%", "-"],
}


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, words in SHAPES.items() for word in words])
def test_shape_class(name, word):
    assert shape_class(word) == name


def test_every_class_has_an_example():
    assert tuple(SHAPES) == CLASSES


@given(st.text())
def test_every_word_has_a_class(word):
    assert shape_class(word) in CLASSES


def test_order_of_tokens():
    counts = Counter({"dog": 3, "a": 5, "cat": 3, "rare": 1, "</s>": 9, "<unk>": 9})
    single = Vocabulary.build(counts, 2, "single", "words")
    assert single.tokens == ("<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog")
    assert (single.pad, single.bos, single.eos, single.unknown, len(single)) == (0, 1, 2, 3, 7)
    classes = Vocabulary.build(counts, 2, "classes", "words")
    assert classes.tokens == SPECIALS + CLASSES + ("a", "cat", "dog")
    assert classes.tokens[classes.unknown] == "<unk-other>"
    for vocabulary in (single, classes, Vocabulary.closed(["a"])):
        known = {i for word in ("a", "cat", "dog") if word in vocabulary.tokens for i in vocabulary.encode([word])}
        assert not known & {*vocabulary.unknown_ids}
        assert vocabulary.unknown in vocabulary.unknown_ids
        assert len(vocabulary.unknown_ids) == len(UNKNOWN_TOKENS[vocabulary.unk])
    assert {i for word in ("rare", "Rare", "1", "<unk>", "</s>") for i in single.encode([word])[1:-1]} == {3}
    assert {*classes.encode(["rare", "Rare", "1", "</s>"])[1:-1]} < {*classes.unknown_ids}


def test_encode_and_decode():
    vocabulary = Vocabulary.build(Counter({"a": 2, "dog": 2}), 2, "classes", "words")
    ids = vocabulary.encode(["a", "dog", "Rex", "2000", "!"])
    assert (ids[0], ids[-1]) == (1, 2)
    assert vocabulary.decode(ids) == ["a", "dog", "<unk-initCap>", "<unk-fourDigits>", "<unk-other>"]
    assert vocabulary.decode([*ids, 5, 0, 0]) == vocabulary.decode(ids)
    assert vocabulary.decode([1, 0, ids[1]]) == ["a"]


@given(COUNTS, st.integers(1, 5), UNK, st.lists(WORD | st.sampled_from(SPECIALS)))
def test_known_words_come_back_and_others_are_unknown(counts, min_count, unk, others):
    vocabulary = Vocabulary.build(counts, min_count, unk, "words")

    def unknown(word: str) -> str:
        if unk == "single":
            return "<unk>"
        return CLASSES[-1] if word in UNKNOWN_SPELLINGS else shape_class(word)

    words = [*counts, *others]
    reserved = {*SPECIALS, *UNKNOWN_SPELLINGS} | ({"<unk>"} if unk == "single" else {*CLASSES})
    expected = [word if counts.get(word, 0) >= min_count and word not in reserved else unknown(word) for word in words]
    ids = vocabulary.encode(words)
    assert vocabulary.decode(ids) == expected
    assert len(ids) == len(words) + 2


@given(COUNTS, UNK)
def test_save_and_load(tmp_path_factory, counts, unk):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    vocabulary = Vocabulary.build(counts, 1, unk, "words")
    vocabulary.save(path)
    again = Vocabulary.load(path)
    assert again == vocabulary
    assert again.fingerprint == vocabulary.fingerprint


def test_fingerprint_tells_vocabularies_apart():
    counts = Counter({"a": 3, "b": 2, "c": 1})
    some = [Vocabulary.build(counts, n, unk, "words") for n in (1, 2) for unk in ("classes", "single")]
    some += [Vocabulary.closed(["a", "b", "c"]), Vocabulary.closed(["b", "a", "c"])]
    assert len({vocabulary.fingerprint for vocabulary in some}) == len(some)
    # Pinned: run folders of other machines and versions carry it.
    assert Vocabulary.closed(["a", "b"]).fingerprint == "47286d26008c12b2"


def test_closed_vocabulary_knows_no_unknown_word():
    vocabulary = Vocabulary.closed(["two", "dogs"])
    assert vocabulary.decode(vocabulary.encode(["dogs", "two"])) == ["dogs", "two"]
    assert vocabulary.tokens[vocabulary.unknown] == "<unk>"
    for word in ("cats", "<unk>", "</s>"):
        with pytest.raises(UserError, match=f"'{word}' is not one of the 2 words"):
            vocabulary.encode(["two", word])


@pytest.mark.parametrize("words", [["a", "a"], ["a", "</s>"], ["<unk>"]])
def test_closed_vocabulary_refuses(words):
    with pytest.raises(ValueError, match="repeated"):
        Vocabulary.closed(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "is not a vocabulary: Input should be an object"),
        (b'{"unk": "single"}', "is not a vocabulary: tokens: Field required"),
        (json.dumps({"unk": "single", "tokens": [1]}).encode(), "tokens.0: Input should be a valid string"),
        (
            json.dumps({"unk": ["single"], "tokens": []}).encode(),
            "unk: Input should be 'classes', 'single' or 'closed'",
        ),
        (json.dumps({"unk": "none", "tokens": []}).encode(), "unk: Input should be 'classes', 'single' or 'closed'"),
        (
            json.dumps({"unk": "single", "tokens": ["<s>", "a"]}).encode(),
            ": the tokens do not begin with <pad> <s> </s>",
        ),
        (json.dumps({"unk": "single", "tokens": [*SPECIALS, "<unk>", "a", "a"]}).encode(), ": a token is repeated"),
        (
            json.dumps({"unk": "single", "tokens": [*SPECIALS, "<unk>"], "tokenizer": "spaces"}).encode(),
            ": tokenizer 'spaces' is not one of words, whitespace, ",
        ),
    ],
)
def test_malformed_file(tmp_path, content, message):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        Vocabulary.load(tmp_path / "vocabulary.json")


def test_sentences_become_ids_and_text_again():
    vocabulary = Vocabulary.closed(["is", "n't", "here", ".", "She"])
    assert vocabulary.ids("She isn't here.") == vocabulary.encode(["She", "is", "n't", "here", "."])
    assert vocabulary.text(vocabulary.ids("She isn't here.")) == "She isn't here."


@pytest.mark.parametrize("unk", ["classes", "single"])
def test_a_word_that_the_text_calls_unknown_is_unknown(unk):
    vocabulary = Vocabulary.build(dict.fromkeys((*UNKNOWN_SPELLINGS, "a"), 9), 1, unk, "words")
    assert (
        vocabulary.ids("<unk> a _UNK [UNK] <UNK>")[1:-1]
        == [vocabulary.unknown, len(vocabulary) - 1] + [vocabulary.unknown] * 3
    )


def test_a_mark_with_rare_spaces_is_the_plain_one():
    vocabulary = Vocabulary.build({"a": 3, ",": 2, "▁.": 2, ".": 2}, 2, "classes", "words")
    tokens = vocabulary.decode(vocabulary.ids("a , a,a . a."))
    assert tokens == ["a", ",", "a", ",", "a", "▁.", "a", "."]


def test_a_vocabulary_of_an_older_version_is_by_the_treebank_rules(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"unk": "single", "tokens": [*SPECIALS, "<unk>", "``", "Go", "''", "can", "not"]}))
    vocabulary = Vocabulary.load(path)
    assert vocabulary.decode(vocabulary.ids('"Go" cannot')) == ["``", "Go", "''", "can", "not"]
    assert vocabulary.text(vocabulary.ids('"Go" cannot')) == '"Go" cannot'


def test_captions_of_an_older_version_are_words(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"unk": "closed", "tokens": [*SPECIALS, "<unk>", "a", "dog"]}))
    assert Vocabulary.load(path) == Vocabulary.closed(["a", "dog"])


def test_pieces_take_their_tokenizer_along(tmp_path):
    tokenizer = BPE(vocabulary_size=300).fit(["two dogs run"] * 9)
    vocabulary = Vocabulary.of_pieces(tokenizer, "bpe")
    vocabulary.save(tmp_path / "vocabulary.json")
    again = Vocabulary.load(tmp_path / "vocabulary.json")
    assert again == vocabulary
    assert again.text(again.ids("two dögs 走る")) == "two dögs 走る"
    assert len(again) == len(tokenizer.pieces) + len(SPECIALS) + 1
    assert not {*again.ids("two dögs 走る")} & {*again.unknown_ids}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Vocabulary.load(tmp_path / "vocabulary.json").ids("two")
