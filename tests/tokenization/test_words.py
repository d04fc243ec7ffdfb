import time
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from distvae.data.vocabulary import CLASSES, SPECIALS
from distvae.tokenization import words
from distvae.tokenization.words import WordTokenizer

TOKENIZER = WordTokenizer()

SENTENCES = {
    "A man isn't here.": "A man is n't here .",
    '"Stop," she said.': '▁"￭ Stop , " she said .',
    "The girls' 3/4 (old) bikes cost $5": "The girls ' 3/4 ( old ) bikes cost $ 5",
    "I'd've SHOULDN'T it's we’re": "I 'd 've SHOULD N'T it 's we ’re",
    "cannot gonna o'clock l'homme rock'n'roll": "cannot gonna o'clock l'homme rock'n'roll",
    "'tis the 'cleanest' dogs' day": "▁'￭ tis the ▁'￭ cleanest ' dogs ' day",
    "mail a.b+c@d-e.org, see https://x.org/a?b=1.": "mail a.b+c@d-e.org , see https://x.org/a?b=1 .",
    "the u.s. and at&t s&p 500 e.g. at 7 p.m.": "the u.s. and at&t s&p 500 e.g. at 7 p.m.",
    "1,000.50 10:30 .25 5kg 20°C 10% 3–4 2-3 9/11": "1,000.50 10:30 .25 5kg 20°C 10 % 3–4 2-3 9/11",
    "<unk> _UNK [UNK] <s> </s>": "<unk> _UNK [UNK] <s> </s>",
    "wait...what -- no—yes … ok": "wait ...￭ what -- no ￭—￭ yes ▁… ok",
    "coat,standing word(s) a . b ( c )": "coat ,￭ standing word ￭( s ) a ▁. b (▁ c ▁)",
    "don 't do n't man 's": "don ▁'￭ t do ▁n't man ▁'s",
    "„Straße“ sagte er, ‚ja‘ – «oui» !": "„ Straße ￭“▁ sagte er , ‚ ja ￭‘▁ – « oui » ▁!",
    "“Yes” ‘no’ l’été ¿Qué? ¡No!": "“ Yes ” ‘ no ’ l’été ¿ Qué ? ¡ No !",
    "مرحبا، كيف حالك؟": "مرحبا ، كيف حالك ؟",
    "क्या यह हिन्दी है।": "क्या यह हिन्दी है ।",
    "人們、你好。": "人們 、 你好 。",
    "go 👩‍👩‍👧😀 🇩🇪 1️⃣": "go 👩‍👩‍👧 ￭😀 🇩🇪 1️⃣",
    "exam\xadple a\u200bb": "exam\xadple a\u200bb",
}  # fmt: skip

PIECES = st.sampled_from(
    [*"aZ9.,-:;'\"!?()$%_ ", "  ", "\t", "man", "Cannot", "D'ye", "'tis", "n't", "'s", "’S", "--", "...", "``", "''",
     "é", "3,360", "well-known", "ı", "，", "—", "<unk>", "u.s.", "a@b.co", "www.a.b", "°", "·", "«", "“", "‘", "¿",
     "है", "😀", "👩\u200d👧", "\u0301", "\u200f", "\xa0", "あ", "。", "ﬁ", "̈"]
)  # fmt: skip
PLAIN = st.sampled_from(["a", "Man", "two", "12", "red-haired", "cannot", "p", "m", "more", "dog,", " "])


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_tokens_of_a_sentence(sentence):
    tokens = TOKENIZER.tokenize(sentence)
    assert " ".join(tokens) == SENTENCES[sentence]
    assert TOKENIZER.join(tokens) == sentence


@given(st.lists(PIECES, max_size=8).map("".join) | st.text())
def test_join_gives_every_sentence_back(sentence):
    sentence = unicodedata.normalize("NFC", sentence.replace("▁", "").replace("￭", ""))
    tokens = TOKENIZER.tokenize(sentence)
    assert TOKENIZER.join(tokens) == " ".join(regex.split(r"\s+", sentence)).strip(" ")
    assert all(token and not regex.search(r"\s", token) for token in tokens)


@given(
    st.lists(PIECES, max_size=8).map("".join)
    | st.lists(PIECES, max_size=8).map(" ".join)
    | st.lists(PLAIN, max_size=8).map(lambda words: " ".join(words) + ".")
)
def test_plain_sentences_are_tokenised_as_all_others_are(sentence):
    tokens = TOKENIZER.tokenize(sentence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_PLAIN", words.re.compile("(?!)"))
        assert TOKENIZER.tokenize(sentence) == tokens


@given(st.lists(PIECES, max_size=8).map("".join))
def test_a_plain_token_has_no_spaces_of_its_own(sentence):
    for token in TOKENIZER.tokenize(sentence):
        plain = TOKENIZER.plain(token)
        assert plain == TOKENIZER.plain(plain) == token.strip("▁￭")


@pytest.mark.parametrize("unit", ["a'", "'s", "a+", "_%", "<a", "[A", "1,", "🇩", "a@b.", "."])
def test_the_time_grows_with_the_length_and_no_faster(unit):
    def seconds(sentence: str) -> float:
        start = time.process_time()
        TOKENIZER.tokenize(sentence)
        return time.process_time() - start

    # As much in one word as in many; a thousand times as long if the rules look back.
    assert seconds("A" + unit * 3_000) < 10 * seconds(f"A{unit} " * 3_000)


def test_a_long_name_of_an_address_is_a_word():
    assert TOKENIZER.tokenize(f"{'a' * 64}@b.co") == [f"{'a' * 64}@b.co"]
    assert TOKENIZER.tokenize("a's's've") == ["a", "'s", "'s", "'ve"]


def test_marks_in_the_text_are_not_taken_for_spaces():
    assert TOKENIZER.join(TOKENIZER.tokenize("a▁b ￭ ▁. c￭")) == "a_b ■ _. c■"


def test_specials_in_the_text_are_words():
    tokens = TOKENIZER.tokenize("he wrote <s> and </s> and <unk-lower>")
    assert {token for token in tokens if token in SPECIALS or token in CLASSES} == {"<s>", "</s>", "<unk-lower>"}


def test_join_keeps_unknown_words():
    tokens = ["The", "<unk-initCap>", "dog", "is", "n't", "<unk>", "."]
    assert TOKENIZER.join(tokens) == "The <unk-initCap> dog isn't <unk>."
