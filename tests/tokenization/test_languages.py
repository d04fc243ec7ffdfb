"""Sentences of many languages come back from their tokens; the table of tokenizers in docs/data.md."""

import re
import unicodedata
from collections import Counter

import pytest

from distvae.data.vocabulary import Vocabulary
from distvae.tokenization import BPE, BUILT_IN, OPTIONS, Unigram
from tests.conftest import ROOT

FILES = sorted((ROOT / "tests" / "fixtures" / "languages").glob("*.txt"))
SENTENCES = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in FILES}
TRAINED = {
    options.name: options.fit([line for lines in SENTENCES.values() for line in lines])
    for options in (BPE(vocabulary_size=400), Unigram(vocabulary_size=900))
}
NAMES = ("words", "whitespace", "characters", "bpe", "unigram")
FOLDS = 5


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


def measured(name: str, lines: list[str]) -> tuple[bool, float, float]:
    """Whether held-out sentences come back, their share of unknown tokens, and their tokens per character."""
    back, unknown, tokens, characters = True, 0, 0, 0
    for fold in range(FOLDS):
        train = [line for number, line in enumerate(lines) if number % FOLDS != fold]
        tokenizer = OPTIONS[name]().fit(train)
        if name in BUILT_IN:
            counts = Counter(token for line in train for token in tokenizer.tokenize(line))
            vocabulary = Vocabulary.build(counts, 1, "single", name)
        else:
            vocabulary = Vocabulary.of_pieces(tokenizer, name)
        for line in lines[fold::FOLDS]:
            ids, text = vocabulary.ids(line)[1:-1], unicodedata.normalize("NFC", line)
            back &= tokenizer.join(tokenizer.tokenize(line)) == text
            unknown += ids.count(vocabulary.unknown)
            tokens, characters = tokens + len(ids), characters + len(text)
    return back, unknown / tokens, tokens / characters


@pytest.mark.parametrize("language", SENTENCES)
def test_the_table_of_tokenizers_and_languages(language):
    found = {name: measured(name, SENTENCES[language]) for name in NAMES}
    row = " | ".join(
        [language.capitalize(), *(f"{unknown:.0%}, {tokens:.2f}" for _, unknown, tokens in found.values())]
    )
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(NAMES)} |" in re.sub("`", "", table)
    assert f"| {row} |" in table
    assert all(back for back, _, _ in found.values())
    assert found["bpe"][1] == 0
    assert found["characters"][1] < found["words"][1] <= found["whitespace"][1]
