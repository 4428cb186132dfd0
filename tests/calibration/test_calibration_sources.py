"""What pruning calibrates on: corpora, text files, a task's training rows, the model's own text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from helpers.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from layerif.calibration.text import sampled_chunks
from layerif.compress.pruning.runner import prune
from layerif.core.checkpoint import Steps
from layerif.data import Corpus, SelfText, load_calibration, load_task
from layerif.errors import InputError, NumericalError
from layerif.model.layers import find_decoder_layers


def test_a_tasks_training_rows_with_their_completions():
    corpus = load_calibration("agreement")
    rows = load_task("agreement").splits["train"]
    assert corpus.text("calibration") == "\n\n".join(r.prompt + r.completion for r in rows)
    assert corpus.origin["split"] == "train"
    assert corpus.origin["rows"] == len(rows)
    held_out = {row.prompt for row in load_task("agreement").splits["test"]}
    prompts = {row.prompt for row in rows}
    assert not held_out & prompts


def test_a_file_of_examples_is_a_task_and_another_is_text(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {i}: ", "completion": f"{i}."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_calibration(path)
    assert "Say " in corpus.calibration[0]
    assert corpus.evaluation == []
    assert isinstance(load_calibration(text), Corpus)
    assert load_calibration("python-docs").name == "python-docs"
    assert load_calibration("self") == SelfText()
    with pytest.raises(InputError, match="'agreemant'; did you mean"):
        load_calibration("agreemant")


def test_declared_tasks_come_from_a_folder(data_dir):
    corpus = load_calibration("mrpc", data_dir=data_dir)
    assert len(corpus.calibration) == corpus.origin["rows"] > 1000


def by_full_passes(model, tokenizer, index, length, seed, begin):
    """The same draws with no cache: the whole text anew for every token."""
    draw = np.random.default_rng([seed, index])
    special = set(tokenizer.all_special_ids)
    plain = [t for t in range(len(tokenizer)) if t not in special]
    ids = [begin] if begin is not None else [int(draw.choice(plain))]
    while len(ids) < length:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1, : len(tokenizer)]
        ids.append(int((logits.double().numpy() + draw.gumbel(size=len(logits))).argmax()))
    return ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_text_is_drawn_from_the_models_own_distribution(architecture):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    chunks = sampled_chunks(model, tokenizer, 3, 16, seed=4, batch_tokens=32)
    for index, chunk in enumerate(chunks):
        assert chunk.index == index
        assert chunk.input_ids == by_full_passes(model, tokenizer, index, 16, 4, None)


def test_the_draws_have_the_softmax_as_their_frequencies():
    """4,000 draws of one token: the frequencies' chi-squared statistic over 259 others."""
    model, tokenizer = tiny_model(), tiny_tokenizer(bos=True)
    chunks = sampled_chunks(model, tokenizer, 4000, 2, seed=0, batch_tokens=8000)
    assert {chunk.input_ids[0] for chunk in chunks} == {1}
    drawn = torch.tensor([chunk.input_ids[1] for chunk in chunks])
    counts = drawn.bincount(minlength=len(tokenizer)).double()
    with torch.no_grad():
        logits = model(torch.tensor([[1]])).logits[0, -1, : len(tokenizer)].double()
    expected = 4000 * logits.softmax(-1)
    statistic = ((counts - expected).square() / expected).sum()
    degrees = len(tokenizer) - 1
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5 + 60  # small cells have long tails


def test_a_chunk_depends_on_its_index_and_the_seed_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer(bos=True)
    torch.manual_seed(0)
    five = [c.input_ids for c in sampled_chunks(model, tokenizer, 5, 12, seed=1)]
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    alone = sampled_chunks(model, tokenizer, 2, 12, seed=1, batch_tokens=1)
    assert [c.input_ids for c in alone] == five[:2]
    assert [c.input_ids for c in sampled_chunks(model, tokenizer, 2, 12, seed=2)] != five[:2]
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(InputError, match="0 chunks"):
        sampled_chunks(model, tokenizer, 0, 12, seed=1)
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match="not finite"):
        sampled_chunks(model, tokenizer, 1, 12, seed=1)


def test_pruning_by_text_of_its_own_is_what_its_chunks_give(tmp_path):
    """And a run that goes on takes the text of the dense model, not of the half-pruned one."""
    tokenizer = tiny_tokenizer(bos=True)
    options = {"tokenizer": tokenizer, "calibration_samples": 4, "context_length": 24, "seed": 3}
    models = [tiny_model() for _ in range(3)]
    first = prune(models[0], 0.5, calibration=SelfText(), steps=Steps(tmp_path), **options)
    assert first.calibration["text"] == {"name": "self", "source": "sampled from the model"}
    half = models[1].model.layers[0].mlp.up_proj.weight.data
    half.zero_()
    for number in (1, 2):
        (tmp_path / f"layer-{number:04d}.safetensors").unlink()
    prune(models[1], 0.5, calibration=SelfText(), steps=Steps(tmp_path), **options)
    prune(models[2], 0.5, calibration=SelfText(), **options)
    for other in models[1:]:
        for a, b in zip(
            find_decoder_layers(models[0]).projections,
            find_decoder_layers(other).projections,
            strict=True,
        ):
            assert torch.equal(a.weight, b.weight)
