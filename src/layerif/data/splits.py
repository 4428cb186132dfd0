"""Splits that share no prompt: what is dropped to make them so, and how rows are dealt out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from layerif.data.base import Example, Split

# The test split is never thinned out for the sake of another, nor validation for train's.
PRECEDENCE: tuple[Split, ...] = ("test", "validation", "train")


def disjoint(
    splits: Mapping[Split, Sequence[Example]],
    same: Callable[[Example], Hashable] = lambda example: example.question,
) -> tuple[dict[Split, list[Example]], dict[Split, dict[str, int]]]:
    """The splits without shared prompts, and how many rows each one lost, by reason.

    Rows of train whose prompt occurs in validation or test are dropped, then rows of validation
    whose prompt occurs in test; of the rows of one split that are the `same`, the first is kept.
    """
    owner: dict[Hashable, Split] = {}
    kept: dict[Split, list[Example]] = {split: [] for split in reversed(PRECEDENCE)}
    dropped: dict[Split, dict[str, int]] = {split: {} for split in kept}
    for split in PRECEDENCE:
        seen: set[Hashable] = set()
        reasons: Counter[str] = Counter()
        for example in splits[split]:
            holder = owner.setdefault(example.key, split)
            if holder != split:
                reasons[f"prompt in {holder}"] += 1
            elif same(example) in seen:
                reasons["repeated"] += 1
            else:
                seen.add(same(example))
                kept[split].append(example)
        dropped[split] = dict(reasons)
    return kept, dropped


def carve(
    examples: Sequence[Example], shares: Mapping[Split, float], seed: int
) -> dict[Split, list[Example]]:
    """Deal the rows out to `shares` of the distinct prompts, at least one each, the rest to train.

    All rows of a prompt go to the same split, and rows keep their order within it.
    """
    import numpy as np

    prompts = list(dict.fromkeys(example.key for example in examples))
    order = np.random.default_rng(seed).permutation(len(prompts))
    owner: dict[Hashable, Split] = {}
    start = 0
    for split, share in shares.items():
        stop = start + max(1, round(share * len(prompts)))
        owner.update((prompts[i], split) for i in order[start:stop])
        start = stop
    dealt: dict[Split, list[Example]] = {"train": [], **{split: [] for split in shares}}
    for example in examples:
        dealt[owner.get(example.key, "train")].append(example)
    return dealt
