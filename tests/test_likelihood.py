"""Token losses equal those of each text run alone with full logits."""

from __future__ import annotations

import pytest
import torch

from layerif.batching import collate, encode, pack
from layerif.likelihood import row_sums, token_losses
from tiny import ARCHITECTURES, FLOAT64_ARCHITECTURES, tiny_model, tiny_tokenizer

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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_losses_equal_each_text_alone(architecture, side):
    exact = architecture in FLOAT64_ARCHITECTURES
    dtype, tolerance = (torch.float64, 1e-9) if exact else (torch.float32, 1e-5)
    model, tokenizer = tiny_model(architecture, dtype), tiny_tokenizer(bos=True)
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    batch = collate(items, device=torch.device("cpu"), padding_side=side)
    with torch.no_grad():
        sums = row_sums(token_losses(model, batch), batch)
        expected = [alone(model, tokenizer, *text).sum() for text in TEXTS]
    torch.testing.assert_close(sums.double(), torch.stack(expected), rtol=tolerance, atol=tolerance)


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
