"""Which texts calibrate, which the loss is taken on in each round, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from layerif.data import Corpus, Task
from layerif.data.base import Split
from layerif.data.batching import Encoded
from layerif.data.chunks import check_context_length, cut, draw, usable_length
from layerif.data.tokenizing import encode_samples
from layerif.model.opening import Tokenizer

# Of a task's examples, the most that are tokenised: more than any few rounds take.
MOST_EXAMPLES = 4096


class Reads(Protocol):
    """What searches of every kind are asked for of the texts that they read."""

    @property
    def context_length(self) -> int: ...
    @property
    def held_out_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Texts:
    """Tokenised texts of three purposes; nothing held out serves another.

    Attributes:
        calibration: chunks that compressors take statistics of, those that pruning takes.
        pool: what the loss is taken on, in the order in which rounds take it.
        held_out: what step sizes and stopping are judged by.
        origin: of the texts that the loss is taken on.
    """

    calibration: list[Encoded]
    pool: list[Encoded]
    held_out: list[Encoded]
    origin: dict[str, Any]

    def rounds(self, count: int, tokens: int) -> list[list[Encoded]]:
        """For each of `count` rounds the next texts of the pool that come to `tokens` tokens.

        After its end the pool begins again; no round takes a text twice.
        """
        found, place = [], 0
        for _ in range(count):
            taken = up_to(self.pool[place:] + self.pool[:place], tokens)
            place = (place + len(taken)) % len(self.pool)
            found.append(taken)
        return found


def texts_for(
    model: Any,
    tokenizer: Tokenizer,
    calibration: Corpus,
    target: Corpus | Task | None,
    options: Reads,
    samples: int = 1,
) -> Texts:
    """Tokenise and divide the texts. Nothing that a corpus or a task tests on is read.

    Args:
        model: whose positions limit lengths.
        tokenizer: the model's.
        calibration: whose calibration part pruning's statistics come from.
        target: what the loss is taken on: another corpus' calibration part, or a task's right
            completions (training examples, validation examples held out); None for `calibration`.
        options: the length of chunks in tokens, to which examples of a task are cut as well; tokens
            held out, of at least one text; the seed.
        samples: chunks of calibration text.

    Raises:
        InputError: the texts are too short for that, or chunks longer than the model's positions.
    """
    seed, context_length = options.seed, options.context_length
    check_context_length(model, context_length)
    chunks = cut(tokenizer, calibration.text("calibration"), context_length)
    wanted = -(-options.held_out_tokens // context_length)
    if isinstance(target, Corpus) and target.text("calibration") == calibration.text("calibration"):
        target = None  # else the same draw would hold out what pruning is calibrated on
    source = calibration if target is None else target
    origin = {"name": source.name, **source.origin}
    if target is None:
        draw(chunks, samples + wanted, seed)  # refuses what there is not
        drawn = draw(chunks, len(chunks), seed)
        cold = drawn[samples : samples + wanted]
        pool = drawn[samples + wanted :] + drawn[:samples]
        return Texts(drawn[:samples], pool, cold, origin)
    calibrating = draw(chunks, samples, seed)
    if isinstance(target, Corpus):
        chunks = cut(tokenizer, target.text("calibration"), context_length)
        draw(chunks, 1 + wanted, seed)
        drawn = draw(chunks, len(chunks), seed)
        return Texts(calibrating, drawn[wanted:], drawn[:wanted], origin)
    length = usable_length(model, context_length)

    def encoded(split: Split, what: str) -> list[Encoded]:
        count = min(len(target.splits[split]), MOST_EXAMPLES)
        examples = target.sample(split, count, seed)
        return encode_samples(tokenizer, examples, length, what)[0]

    train, validation = encoded("train", "training"), encoded("validation", "validation")
    return Texts(calibrating, train, up_to(validation, options.held_out_tokens), origin)


def up_to(items: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """The first texts that come to `tokens` tokens; all, where they do not."""
    before = accumulate((len(item.input_ids) for item in items), initial=0)
    return [item for item, count in zip(items, before, strict=False) if count < tokens]


def tokens_of(items: Sequence[Encoded]) -> int:
    """Tokens of all texts together."""
    return sum(len(item.input_ids) for item in items)
