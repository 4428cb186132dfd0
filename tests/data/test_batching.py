"""Prompt and completion become tokens, the prompt masked, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.data.batching import Encoded, accepted, collate, pack
from layerif.data.tokenizing import encode, encode_prompts
from layerif.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("bos", [False, True])
def test_only_the_completion_is_scored(bos):
    tokenizer = tiny_tokenizer(bos=bos)
    (item,), dropped = encode(tokenizer, [("ab c", " de")], max_length=32)
    assert tokenizer.decode(item.input_ids[item.start :]) == " de"
    assert len(item.input_ids) == 7 + bos
    assert dropped == []


def test_without_bos_an_empty_prompt_leaves_the_first_token_unscored():
    (item,), _ = encode(tiny_tokenizer(), [("", "abc")], max_length=8)
    assert (item.start, item.scored) == (1, 2)
    (item,), _ = encode(tiny_tokenizer(bos=True), [("", "abc")], max_length=8)
    assert (item.start, item.scored) == (1, 3)


def test_a_long_prompt_is_cut_from_the_left_and_bos_stays():
    (item,), _ = encode(tiny_tokenizer(bos=True), [("0123456789", "xyz")], max_length=6)
    tokenizer = tiny_tokenizer()
    assert item.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(item.input_ids[1:]) == "89xyz"
    assert tokenizer.decode(item.input_ids[item.start :]) == "xyz"


def test_a_completion_that_cannot_fit_is_listed_and_not_shortened():
    texts = [("p", "abcd"), ("p", "abc"), ("p", ""), ("", "a")]
    items, dropped = encode(tiny_tokenizer(), texts, max_length=4)
    assert [item.index for item in items] == [1]
    assert dropped == [0, 2, 3]
    _, dropped = encode(tiny_tokenizer(bos=True), texts, max_length=4)
    assert dropped == [0, 2], "with BOS the lone completion has something that predicts it"


def test_a_token_that_spans_the_border_belongs_to_the_completion():
    # Bytes of one character are separate tokens that all end after the prompt's last character.
    (item,), _ = encode(tiny_tokenizer(), [("a", "é")], max_length=8)
    assert (len(item.input_ids), item.start) == (3, 1)


def test_a_prompt_is_cut_from_the_left_and_nothing_of_it_is_scored():
    (item,) = encode_prompts(tiny_tokenizer(), ["0123456789"], max_length=4)
    assert tiny_tokenizer().decode(item.input_ids) == "6789"
    assert (item.start, item.scored) == (4, 0)
    tokenizer = tiny_tokenizer(bos=True)
    items = encode_prompts(tokenizer, ["0123456789", "ab", ""], max_length=4)
    assert [tokenizer.decode(item.input_ids) for item in items] == ["<s>789", "<s>ab", "<s>"]
    batch = collate(items, device=CPU, padding_side="left")
    assert not batch.predicts.any()
    assert batch.inputs["input_ids"][:, -1].tolist() == [i.input_ids[-1] for i in items]
    assert encode_prompts(tokenizer, [], max_length=4) == []


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt():
    # Would see: a reply to a text that is over already.
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("ab")["input_ids"][-1] == 2
    (item,) = encode_prompts(tokenizer, ["ab"], max_length=9)
    assert tokenizer.decode(item.input_ids) == "<s>ab"


lengths = st.lists(st.integers(2, 30), min_size=1, max_size=40)


@given(lengths=lengths, budget=st.integers(1, 100))
def test_packing_keeps_every_item_within_the_budget_longest_first(lengths, budget):
    items = [Encoded(i, list(range(n)), 1) for i, n in enumerate(lengths)]
    batches = pack(items, budget)
    assert sorted(i.index for batch in batches for i in batch) == list(range(len(items)))
    widths = [len(i.input_ids) for batch in batches for i in batch]
    assert widths == sorted(widths, reverse=True)
    assert all(len(b) == 1 or len(b) * len(b[0].input_ids) <= budget for b in batches)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        pack([Encoded(0, [1, 2], 1)], 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collation_points_at_the_positions_that_predict(side):
    items = [Encoded(0, [5, 6, 7, 8], 2), Encoded(1, [9, 10], 1)]
    batch = collate(items, device=CPU, padding_side=side)
    assert batch.targets.tolist() == [7, 8, 10]
    assert batch.owners.tolist() == [0, 0, 1]
    assert batch.counts.tolist() == [2, 1]
    assert batch.tokens == 6
    ids, positions = batch.inputs["input_ids"], batch.inputs["position_ids"]
    text = slice(2, 4) if side == "left" else slice(0, 2)
    assert ids[1, text].tolist() == [9, 10]
    assert positions[1, text].tolist() == [0, 1]
    assert positions[0].tolist() == [0, 1, 2, 3]
    assert ids[batch.predicts].tolist() == [6, 7, 9]
    # Padding on the right hides behind the text, and only on the left needs a mask.
    mask = batch.inputs["attention_mask"]
    assert mask.tolist() == [[1] * 4, [0, 0, 1, 1] if side == "left" else [1] * 4]


def test_position_ids_go_to_models_that_name_them_alone():
    inputs = {"input_ids": 1, "attention_mask": 2, "position_ids": 3}
    assert accepted(lambda input_ids, position_ids, **_: None, inputs) == inputs
    without = {"input_ids": 1, "attention_mask": 2}
    assert accepted(lambda input_ids, **_: None, inputs) == without
    assert accepted(tiny_model("bloom").forward, inputs) == without
