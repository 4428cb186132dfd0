"""Token losses equal those of each text run alone with full logits."""

from __future__ import annotations

import pytest
import torch

from layerif.batching import collate, pack
from layerif.likelihood import row_sums, token_losses
from layerif.tokenizing import encode
from tiny import (
    ARCHITECTURES,
    EAGER_ARCHITECTURES,
    float64_tolerance,
    tiny_model,
    tiny_tokenizer,
)

TEXTS = [
    ("The keys to the old cabinet", " are on the table."),
    ("A", " short one."),
    ("Prompt", "!"),
    ("In the middle of the night the dog", " barks at the moon and howls."),
]


def alone(model, tokenizer, prompt, completion):
    """Negative log-likelihood of each completion byte, from the full logits of one text."""
    ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
    log_probabilities = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(tokenizer(prompt)["input_ids"])
    return -torch.stack([log_probabilities[t - 1, ids[0, t]] for t in range(start, ids.shape[1])])


def losses_of(model, tokenizer, side):
    """(texts,) losses of one batch of all texts, and of each text run alone."""
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    batch = collate(items, device=torch.device("cpu"), padding_side=side)
    with torch.no_grad():
        sums = row_sums(token_losses(model, batch), batch)
        expected = torch.stack([alone(model, tokenizer, *text).sum() for text in TEXTS])
    return sums.double(), expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_losses_equal_each_text_alone(architecture, side):
    """With positions counted from the padding, left and right would differ in the first digit."""
    masked = side == "left" and architecture in EAGER_ARCHITECTURES
    dtype = torch.float32 if masked else torch.float64
    tolerance = 1e-5 if masked else float64_tolerance(architecture)
    found, expected = losses_of(tiny_model(architecture, dtype), tiny_tokenizer(bos=True), side)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "bloom"])
def test_what_pads_on_the_right_is_nothing_to_the_text(architecture):
    """It is not masked: attention to it would be seen here."""
    model, tokenizer = tiny_model(architecture, torch.float64), tiny_tokenizer()
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    batch = collate(items, device=torch.device("cpu"))
    before = token_losses(model, batch)
    lengths = torch.tensor([len(item.input_ids) for item in items])
    padding = torch.arange(batch.predicts.shape[1]) >= lengths[:, None]
    assert padding.any()
    batch.inputs["input_ids"][padding] = 77
    assert torch.equal(token_losses(model, batch), before)


def test_the_head_sees_only_positions_that_predict():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    (group,) = pack(items, 1000)
    batch = collate(group, device=torch.device("cpu"))
    shapes = []
    model.lm_head.register_forward_hook(lambda _m, args, _o: shapes.append(args[0].shape))
    token_losses(model, batch)
    assert shapes == [(1, sum(item.scored for item in items), 32)]
    # The hook is gone: another forward pass has logits everywhere again.
    assert model(**batch.inputs).logits.shape[:2] == batch.predicts.shape


def test_low_precision_logits_are_read_in_float32():
    model, tokenizer = tiny_model(dtype=torch.bfloat16), tiny_tokenizer()
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    batch = collate(items, device=torch.device("cpu"))
    assert token_losses(model, batch).dtype == torch.float32
