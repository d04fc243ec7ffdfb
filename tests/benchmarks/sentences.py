"""Random sentences with the lengths of SNLI's and a vocabulary of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Number of sentences of SNLI, of 34,782, by their number of words.
LENGTHS = {
    2: 78, 3: 835, 4: 3123, 5: 4241, 6: 5884, 7: 5855, 8: 4427, 9: 3648, 10: 2887, 11: 2181, 12: 1623,
}  # fmt: skip
WORDS = 12_000


def write_sentences(folder: Path, train: int, valid: int, test: int, seed: int = 0) -> None:
    """Write ``train.txt``, ``valid.txt`` and ``test.txt``: one sentence per line, with word frequencies by Zipf's law.

    ``train.txt`` also has each word once in additional sentences, so that the vocabulary is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    frequencies = 1 / np.arange(1, WORDS + 1)
    lengths, counts = np.array(list(LENGTHS)), np.array(list(LENGTHS.values()))
    words = np.array([f"w{i}" for i in range(WORDS)])
    for name, size in {"train": train, "valid": valid, "test": test}.items():
        sizes = rng.choice(lengths, size, p=counts / counts.sum())
        drawn = words[rng.choice(WORDS, sizes.sum(), p=frequencies / frequencies.sum())]
        lines = [" ".join(sentence) for sentence in np.split(drawn, np.cumsum(sizes)[:-1])]
        if name == "train":
            lines += [" ".join(some) for some in np.split(words, WORDS // 8)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
