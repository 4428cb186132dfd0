"""Models whose positions are read otherwise beyond some length: no result depends on a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from helpers.tiny import SHAPE, WIDE, tiny_model, tiny_tokenizer
from layerif import score
from layerif.calibration.text import sampled_chunks
from layerif.data import Example
from layerif.data.batching import Encoded, pack, rope_borders
from layerif.data.tokenizing import encode_samples
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.generation import greedy_replies
from layerif.evaluation.harness.model import HarnessModel
from layerif.evaluation.summed import Cache
from layerif.finetuning.batches import Batches
from layerif.finetuning.options import FinetuneOptions
from layerif.influence.doctor import examine

BORDER = 32
# Rows of 20 to 48 bytes, some of which are on each side of the border and two on it.
TEXT = "the keys to the old cabinet in the hall are on the table"
LENGTHS = (20, 26, 31, 32, 33, 36, 41, 48)
ROWS = [Example(TEXT[: n - 4], TEXT[n - 4 : n]) for n in LENGTHS]


def long_rope(architecture=Phi3Config):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 4.0, 6.0, 8.0],
        "original_max_position_embeddings": BORDER,
    }
    config = architecture(
        **SHAPE, **WIDE, rope_parameters=rope, original_max_position_embeddings=BORDER
    )
    return _model(config)


def _model(config):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@pytest.mark.parametrize("architecture", [Phi3Config, LlamaConfig])
def test_likelihoods_do_not_depend_on_the_batch(architecture, tmp_path):
    """Would see: nats of a short row that differ by a tenth beside a long one."""
    model, tokenizer = long_rope(architecture), tiny_tokenizer()
    assert rope_borders(model) == [BORDER]
    expected = []
    for row in ROWS:
        ids = torch.tensor([tokenizer(row.prompt + row.completion)["input_ids"]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        expected.append(-logs.gather(1, ids[0, 1:, None])[-4:].sum().item())
    cache = Cache.of(model, tmp_path)
    for batch_tokens in (1, 150, 10_000):
        for rows in (ROWS, ROWS[::-1]):
            found = task_measurement(
                model, tokenizer, rows, batch_tokens=batch_tokens, cache=cache
            ).outcomes.nats
            assert found[:: 1 if rows is ROWS else -1] == pytest.approx(expected, rel=1e-6)


def test_batches_lie_on_one_side():
    model = long_rope()
    items = [Encoded(i, [5] * n, 1) for i, n in enumerate(LENGTHS)]
    sides = [{len(i.input_ids) > BORDER for i in batch} for batch in pack(items, 10_000, model)]
    assert sides == [{True}, {False}]
    # What grows past the border does so together.
    growing = [[len(i.input_ids) for i in b] for b in pack(items, 10_000, model, growing=6)]
    assert growing == [[48, 41, 36, 33], [32], [31], [26, 20]]
    for plain in (None, tiny_model("phi3"), tiny_model("gemma3"), tiny_model("bloom")):
        assert rope_borders(plain) == []
        assert len(pack(items, 10_000, plain)) == 1


def test_influence_does_not_depend_on_the_batch():
    model, tokenizer = long_rope(), tiny_tokenizer()
    one, other = (
        score(model, tokenizer, ROWS, ROWS[::3], rank=2, alpha=4.0, batch_tokens=n)
        for n in (1, 10_000)
    )
    np.testing.assert_allclose(one.influence, other.influence, rtol=1e-7, atol=1e-12)
    assert examine(model, tokenizer, ROWS, ROWS[::3], rank=2).ok


def test_a_step_of_training_is_divided_there():
    model = long_rope()
    items, _ = encode_samples(tiny_tokenizer(), ROWS, 64, "training")
    options = FinetuneOptions(batch_size=8, batch_tokens=10_000)
    step = Batches(items, options, model)[0]
    assert [{len(item.input_ids) > BORDER for item in part} for part in step.parts] == [
        {True},
        {False},
    ]


def test_replies_do_not_depend_on_the_batch():
    model, tokenizer = long_rope(), tiny_tokenizer()
    prompts = [TEXT[:n] for n in (12, 24, 27, 28, 30, 32, 33, 40)]
    alone = greedy_replies(model, tokenizer, prompts, max_new_tokens=8, batch_tokens=1)
    assert alone == greedy_replies(model, tokenizer, prompts, max_new_tokens=8, batch_tokens=9999)
    whole = []
    for prompt in prompts:  # with no cache at all, every token by a whole forward pass
        ids, reply = tokenizer(prompt)["input_ids"], []
        while len(reply) < 8:
            with torch.no_grad():
                reply.append(int(model(torch.tensor([ids + reply])).logits[0, -1].argmax()))
            if reply[-1] == tokenizer.eos_token_id:
                reply.pop()
                break
        whole.append(reply)
    assert alone == whole


def test_text_that_the_model_writes_crosses_the_border_whole():
    model, tokenizer = long_rope(), tiny_tokenizer(bos=True)
    (chunk,) = sampled_chunks(model, tokenizer, 1, BORDER + 40, seed=3)
    draw = np.random.default_rng([3, 0])
    ids = [tokenizer.bos_token_id]
    while len(ids) < BORDER + 40:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)]
        ids.append(int((logits + torch.from_numpy(draw.gumbel(size=len(logits)))).argmax()))
    assert chunk.input_ids == ids


def test_lm_eval_runs_them_apart():
    model, tokenizer = long_rope(), tiny_tokenizer()
    asked = [Instance("loglikelihood", {}, (r.prompt, r.completion), 0) for r in ROWS]
    written = [
        Instance("generate_until", {}, (TEXT[:n], {"until": ["\n"], "max_gen_toks": 8}), 0)
        for n in (12, 20, 28, 30, 32, 33, 40)
    ]
    one, other = (HarnessModel(model, tokenizer, size) for size in (1, 8))
    found = [[nats for nats, _ in m.loglikelihood(asked)] for m in (one, other)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    ours = task_measurement(model, tokenizer, ROWS).outcomes.nats
    # lm-eval takes a blank at the end of a prompt as the candidate's, and does not run a text's
    # last token, so that one of a token more than the border is on its other side.
    same = [
        i for i, row in enumerate(ROWS) if not row.prompt.endswith(" ") and LENGTHS[i] != BORDER + 1
    ]
    assert len(same) == 4
    assert [-ours[i] for i in same] == pytest.approx([found[0][i] for i in same], rel=1e-5)
    assert one.generate_until(written) == other.generate_until(written)


def test_dynamic_scaling_is_never_reached():
    """Its frequencies change beyond the positions that a model has, and rows are cut there."""
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    config = LlamaConfig(**{**SHAPE, "max_position_embeddings": BORDER}, **WIDE)
    config.rope_parameters = rope
    model, tokenizer = _model(config), tiny_tokenizer()
    before = model.model.rotary_emb.inv_freq.clone()
    found = [
        task_measurement(model, tokenizer, rows, max_length=512, batch_tokens=n).outcomes.nats
        for rows in (ROWS, ROWS[::-1])
        for n in (1, 10_000)
    ]
    for nats, way in zip(found, (1, 1, -1, -1), strict=True):
        assert nats[::way] == pytest.approx(found[0], rel=1e-6)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
