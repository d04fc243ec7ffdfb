"""Names of splits, and how splits that a source lacks are cut from train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from distvae.system.errors import UserError

SPLITS = ("train", "valid", "test")
# Names of splits in file names and on the hub, the usual one first.
NAMES = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
SPLIT_OF_NAME = {name: split for split, names in NAMES.items() for name in names}
# Key of files that are yet to be split.
WHOLE_FILE = "file"


def choose(names: Sequence[str], wanted: Sequence[str | None] | None, where: str) -> dict[str, str]:
    """Return which split of a source is train, and which are valid and test if there are any.

    Args:
        names: the source's splits.
        wanted: ``data.split``.
        where: the source, for messages.

    Raises:
        UserError: a split is missing or named twice.
    """
    if wanted is None:
        found = {split: next((name for name in NAMES[split] if name in names), None) for split in SPLITS}
    else:
        found = dict(zip(SPLITS, wanted, strict=False))
        unknown = [name for name in wanted if name is not None and name not in names]
        if unknown:
            raise UserError(f"data.split: {where} has no split {', '.join(unknown)}, only {', '.join(names)}")
    chosen = {split: name for split, name in found.items() if name is not None}
    if "train" not in chosen:
        raise UserError(
            f"{where}: has no split train, only {', '.join(names)}; name those to use: data.split=[TRAIN,VALID,TEST]"
        )
    if len(set(chosen.values())) < len(chosen):
        raise UserError(f"data.split: names one split of {where} twice: {', '.join(chosen.values())}")
    return chosen


def cut(
    rows: np.ndarray, sizes: Mapping[str, int], seed: int, strata: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Shuffle rows and cut the splits ``sizes`` from them; the rest is train.

    Args:
        rows: [N].
        sizes: number of rows of each split.
        strata: [N], a number per row: each split gets its share of each, by largest remainder.

    Returns:
        The rows of each split, sorted.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    if strata is not None:
        order = order[np.concatenate([*_stratified(strata[order], list(sizes.values()))])]
    parts = np.split(order, np.cumsum(list(sizes.values())))
    return {name: np.sort(rows[part]) for name, part in zip((*sizes, "train"), parts, strict=True)}


def _stratified(strata: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return places of ``strata`` in another order, whose cuts at ``sizes`` have equal shares of each stratum."""
    _, firsts, which = np.unique(strata, return_index=True, return_inverse=True)
    places = np.argsort(which, kind="stable")  # by stratum
    counts = np.bincount(which)
    left, taken = counts.copy(), np.zeros_like(counts)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(strata), dtype=np.int64)  # of each row within its stratum
    rank[places] = np.arange(len(strata)) - np.repeat(starts, counts)
    parts = []
    for size in sizes:
        share, remainder = np.divmod(size * left, left.sum())
        # Ties go to the stratum that the shuffle has put first.
        more = np.lexsort((firsts, -remainder))[: size - share.sum()]
        share[more] += 1
        parts.append(np.flatnonzero((rank >= taken[which]) & (rank < (taken + share)[which])))
        taken, left = taken + share, left - share
    parts.append(np.flatnonzero(rank >= taken[which]))
    return parts


def cut_groups(rows: np.ndarray, sizes: Mapping[str, int], seed: int, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Cut splits of at most these sizes from whole groups, in a shuffled order; the rest is train.

    Args:
        groups: [N], a number per row; -1: a group of its own.
    """
    alone = groups < 0
    groups = np.where(alone, groups.max() + 1 + np.cumsum(alone), groups)
    _, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    room, of_group = dict(sizes), np.full(len(counts), len(sizes))
    for group in np.random.default_rng(seed).permutation(len(counts)).tolist():
        for number, name in enumerate(sizes):
            if counts[group] <= room[name]:
                room[name] -= int(counts[group])
                of_group[group] = number
                break
    return {name: rows[of_group[which] == number] for number, name in enumerate((*sizes, "train"))}


def make_disjoint(rows: dict[str, np.ndarray], sentences: Callable[[str], Iterable[str]]) -> dict[str, int]:
    """Drop rows of train whose sentence is in valid or test, and of valid whose sentence is in test.

    Args:
        rows: of each split, train may be missing; changed.
        sentences: returns those of a split's rows.

    Returns:
        How many rows of each split were dropped.
    """
    dropped = {}
    for split, others in (("train", ("valid", "test")), ("valid", ("test",))):
        if split not in rows:
            continue
        known = set(chain.from_iterable(map(sentences, others)))
        keep = np.fromiter((sentence not in known for sentence in sentences(split)), bool, len(rows[split]))
        dropped[split] = int(len(keep) - keep.sum())
        rows[split] = rows[split][keep]
    return dropped
