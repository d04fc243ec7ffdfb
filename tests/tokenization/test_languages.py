"""Sentences of many languages come back from their tokens."""

import unicodedata

import pytest

from distvae.tokenization import BPE, BUILT_IN, Unigram
from tests.conftest import ROOT

FILES = sorted((ROOT / "tests" / "fixtures" / "languages").glob("*.txt"))
SENTENCES = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in FILES}
TRAINED = {
    options.name: options.fit([line for lines in SENTENCES.values() for line in lines])
    for options in (BPE(vocabulary_size=400), Unigram(vocabulary_size=900))
}


@pytest.mark.parametrize("name", ["words", "whitespace", "characters", "bpe"])
@pytest.mark.parametrize("language", SENTENCES)
def test_every_sentence_comes_back(language, name):
    tokenizer = BUILT_IN[name] if name in BUILT_IN else TRAINED[name]
    for sentence in SENTENCES[language]:
        assert tokenizer.join(tokenizer.tokenize(sentence)) == unicodedata.normalize("NFC", sentence)


@pytest.mark.parametrize("language", SENTENCES)
def test_unigram_gives_the_text_back_but_for_special_tokens(language):
    tokenizer = TRAINED["unigram"]
    for sentence in SENTENCES[language]:
        text = tokenizer.join(tokenizer.tokenize(sentence))
        assert text.replace(" ", "") == unicodedata.normalize("NFC", sentence).replace(" ", "")


def test_there_are_eight_languages():
    assert len(SENTENCES) == 8
    assert {len(lines) for lines in SENTENCES.values()} == {10}
