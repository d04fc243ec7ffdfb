from collections import Counter

from distvae.tokenization.whitespace import WhitespaceTokenizer

# As PTB is distributed: a space before each sentence and after it.
PTB = """\
 pierre <unk> N years old will join the board as a nonexecutive director nov. N
 mr. <unk> is chairman of <unk> n.v. the dutch publishing group
 the u.s. s&p N index fell N N to $ N he said ''
"""


def test_the_counts_are_those_of_the_text():
    sentences = [WhitespaceTokenizer().tokenize(line) for line in PTB.splitlines()]
    counts = Counter(word for sentence in sentences for word in sentence)
    assert sum(counts.values()) == len(PTB.split()) == 40
    assert (counts["<unk>"], counts["N"], counts["u.s."], counts["s&p"], counts["''"]) == (3, 6, 1, 1, 1)


def test_join_puts_a_space_between():
    tokenizer = WhitespaceTokenizer()
    assert tokenizer.join(tokenizer.tokenize("  a\tb\u3000c  ")) == "a b c"
