import pytest

from distvae.tokenization.treebank import TreebankTokenizer


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        ("A man isn't here.", ["A", "man", "is", "n't", "here", "."]),
        ('"Stop," she said.', ["``", "Stop", ",", "''", "she", "said", "."]),
        ("I cannot pay $5", ["I", "can", "not", "pay", "$", "5"]),
    ],
)
def test_tokenize_and_join(sentence, tokens):
    tokenizer = TreebankTokenizer()
    assert tokenizer.tokenize(sentence) == tokens
    assert tokenizer.join(tokens) == sentence
