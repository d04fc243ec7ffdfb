import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distvae.tokenization.characters import CharacterTokenizer

TOKENIZER = CharacterTokenizer()


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        ("你好 a", ["你", "好", " ", "a"]),
        ("हिन्दी", ["हि", "न्दी"]),
        ("👩‍👩‍👧é", ["👩‍👩‍👧", "é"]),
        ("e\u0301", ["é"]),
        ("🇩🇪🇫🇷🇩", ["🇩🇪", "🇫🇷", "🇩"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
    ],
)
def test_the_tokens_are_what_a_reader_takes_for_characters(sentence, tokens):
    assert TOKENIZER.tokenize(sentence) == tokens


@given(st.text())
def test_join_gives_the_text_back(sentence):
    assert TOKENIZER.join(TOKENIZER.tokenize(sentence)) == unicodedata.normalize("NFC", sentence)
