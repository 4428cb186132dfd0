"""Token losses equal those of each text run alone with full logits."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from helpers.tiny import (
    ARCHITECTURES,
    EAGER_ARCHITECTURES,
    SHAPE,
    WIDE,
    float64_tolerance,
    tiny_model,
    tiny_tokenizer,
)
from layerif import likelihood
from layerif.data.batching import collate, pack
from layerif.data.tokenizing import encode
from layerif.likelihood import row_sums, token_losses

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


def scaled(kind):
    """A model that scales its logits behind the head, or in the test's own way."""
    if kind == "cohere":
        config = CohereConfig(**SHAPE, **WIDE, logit_scale=0.3)
    elif kind == "granite":
        config = GraniteConfig(**SHAPE, **WIDE, logits_scaling=3.0)
    else:
        return tiny_model(kind, torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).double().eval()


def losses_and_gradients(model, batch, weights, *, trained):
    """The losses, and the gradient of their weighted sum in every weight that has one."""
    model.zero_grad()
    model.requires_grad_(True)
    model.get_output_embeddings().requires_grad_(trained)
    losses = token_losses(model, batch)
    (losses * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses.detach(), found


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "cohere", "granite"])
def test_slices_change_neither_losses_nor_gradients(kind, trained, monkeypatch):
    """Whatever a model does to its logits; 5 positions a slice, with an upstream gradient."""
    model, tokenizer = scaled(kind), tiny_tokenizer()
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    batch = collate(items, device=torch.device("cpu"))
    weights = torch.linspace(0.2, 2, len(batch.targets), dtype=torch.float64)
    expected, gradients = losses_and_gradients(model, batch, weights, trained=trained)
    most = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda _m, _a, output: most.append(output.shape[1])
    )
    monkeypatch.setattr(likelihood, "SLICE_BYTES", 5 * 8 * SHAPE["vocab_size"])
    losses, found = losses_and_gradients(model, batch, weights, trained=trained)
    handle.remove()
    assert max(most) <= 5 < len(batch.targets)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def test_a_model_that_does_more_than_call_its_head_is_run_as_a_whole(monkeypatch):
    """Where the decoder runs twice, what it returned once is not all that the logits come from."""
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    items, _ = encode(tokenizer, TEXTS, max_length=64)
    batch = collate(items, device=torch.device("cpu"))
    once = model.forward

    def twice(input_ids, use_cache, **inputs):
        first = once(input_ids, use_cache=use_cache, **inputs)
        hidden = model.model(input_ids.flip(1), use_cache=use_cache).last_hidden_state
        first.logits = first.logits + hidden[batch.predicts] @ model.lm_head.weight.T
        return first

    model.forward = twice
    expected = token_losses(model, batch)
    monkeypatch.setattr(likelihood, "SLICE_BYTES", 1)
    assert torch.equal(token_losses(model, batch), expected)


@pytest.mark.parametrize(("vocabulary", "rows"), [(260, 4), (49_152, 4), (262_144, 1)])
def test_rows_that_others_make_logits_of_are_few_where_the_vocabulary_is_large(vocabulary, rows):
    model = tiny_model()
    model.config = copy.deepcopy(model.config)  # which models of one architecture share
    model.config.vocab_size = vocabulary
    assert likelihood.rows_within(model, 4, 512) == rows
    assert likelihood.rows_within(model, 0, 512) == 1
