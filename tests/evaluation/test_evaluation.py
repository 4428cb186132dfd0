"""Perplexity and accuracy against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.data.base import Example, Task
from layerif.errors import InputError, NumericalError
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.evaluate import evaluate, sparsity_of
from layerif.evaluation.perplexity import perplexity
from layerif.evaluation.statistics import perplexity_interval
from layerif.model.layers import find_decoder_layers

TEXT = " ".join(f"Line {i} of a text about {i % 7} things." for i in range(40))
EXAMPLES = [
    Example(f"Question {i}?", choices[i % 3], choices, i % 3)
    for i, choices in enumerate([(" yes", " no, never", " maybe so")] * 12)
]


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_equals_a_loop_over_chunks(bos):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer(bos=bos)
    found = perplexity(model, tokenizer, TEXT, context_length=48)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    body = 48 - bos
    losses = []
    for start in range(0, len(ids) - body + 1, body):
        chunk = torch.tensor([([1] if bos else []) + ids[start : start + body]])
        log_probabilities = model(chunk).logits[0].log_softmax(-1)
        losses += [-log_probabilities[t - 1, chunk[0, t]].item() for t in range(1, 48)]
    assert found.count == len(losses)
    assert found.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-9)
    # Item by item: the chunks in their order, whatever order they ran in.
    chunks = np.reshape(losses, (-1, 47)).sum(1)
    np.testing.assert_allclose(found.outcomes.nats, chunks, atol=1e-6)
    assert found.outcomes.tokens == [47] * len(chunks)
    assert (found.low, found.high) == pytest.approx(perplexity_interval(chunks, [47] * len(chunks)))
    assert found.low < found.value < found.high


def test_perplexity_does_not_depend_on_the_batch():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    values = [
        perplexity(model, tokenizer, TEXT, context_length=32, batch_tokens=tokens).value
        for tokens in (1, 100, 10_000)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_max_tokens_takes_whole_chunks_from_the_front():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    few = perplexity(model, tokenizer, TEXT, context_length=32, max_tokens=100)
    assert few.details["chunks"] == 3
    assert few.value == pytest.approx(
        perplexity(model, tokenizer, TEXT[:96], context_length=32).value
    )
    with pytest.raises(InputError, match="chunk"):
        perplexity(model, tokenizer, TEXT, context_length=32, max_tokens=31)


def naive_choice(model, tokenizer, example, per_byte):
    best = []
    for choice in example.choices:
        ids = torch.tensor([tokenizer(example.prompt + choice)["input_ids"]])
        start = len(tokenizer(example.prompt)["input_ids"])
        log_probabilities = model(ids).logits[0].log_softmax(-1)
        total = sum(log_probabilities[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))
        best.append(total / len(choice.encode()) if per_byte else total)
    return best.index(max(best))


@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_accuracy_equals_a_loop_over_candidates(batch_tokens):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    found = task_measurement(model, tokenizer, EXAMPLES, batch_tokens=batch_tokens)
    for per_byte, value in ((False, found.value), (True, found.details["accuracy_per_byte"])):
        hits = [naive_choice(model, tokenizer, e, per_byte) == e.answer for e in EXAMPLES]
        assert value == pytest.approx(sum(hits) / len(hits))
    assert found.details["chance"] == pytest.approx(1 / 3)
    assert found.low < found.value < found.high
    hits = [naive_choice(model, tokenizer, e, False) == e.answer for e in EXAMPLES]
    assert found.outcomes.correct == hits
    losses = np.divide(found.outcomes.nats, found.outcomes.tokens)
    assert losses.mean() == pytest.approx(found.details["completion_loss"], abs=1e-6)
    assert found.outcomes.tokens == [len(e.completion) for e in EXAMPLES]


def test_contexts_are_compared_by_the_likelihood_of_what_follows():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    contexts = [(f"The {i} cats", f"The {i} dogs") for i in range(12)]
    examples = [
        Example(pair[i % 2], f" ran {i}.", contexts=pair, answer=i % 2)
        for i, pair in enumerate(contexts)
    ]
    found = task_measurement(model, tokenizer, examples)
    hits, losses = [], []
    for example in examples:
        sums = []
        for context in example.contexts:
            ids = torch.tensor([tokenizer(context + example.completion)["input_ids"]])
            logs = model(ids).logits[0].log_softmax(-1)
            start = len(context)
            sums.append(sum(logs[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])))
        hits.append(sums.index(max(sums)) == example.answer)
        losses.append(-sums[example.answer] / len(example.completion))
    assert found.value == found.details["accuracy_per_byte"] == pytest.approx(sum(hits) / 12)
    assert 0 < found.value < 1
    assert found.details["completion_loss"] == pytest.approx(sum(losses) / 12, rel=1e-9)


def test_free_text_is_measured_by_the_perplexity_of_its_completions():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    found = task_measurement(model, tokenizer, [Example("a b", " c d"), Example("e", " f")])
    losses = []
    for prompt, completion in (("a b", " c d"), ("e", " f")):
        ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
        log_probabilities = model(ids).logits[0].log_softmax(-1)
        start = len(prompt)
        losses += [-log_probabilities[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])]
    assert (found.metric, found.count) == ("perplexity", 6)
    assert found.value == pytest.approx(math.exp(sum(losses) / 6))


def test_two_classes_have_their_correlation_and_f1():
    # Would see: the classes swapped, or candidates that differ by row taken for classes.
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    labels = [" not", " yes"]
    rows = [
        Example(f"Is {i} {'odd' * (i % 4)}?", labels[i % 3 == 0], tuple(labels), int(i % 3 == 0))
        for i in range(30)
    ]
    details = task_measurement(model, tokenizer, rows).details
    said = np.array([naive_choice(model, tokenizer, e, False) for e in rows])
    true = np.array([e.answer for e in rows])
    assert 0 < said.mean() < 1
    assert details["mcc"] == pytest.approx(np.corrcoef(said, true)[0, 1])
    precision, recall = true[said == 1].mean(), said[true == 1].mean()
    assert details["f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert details["positive"] == " yes"
    other = Example("Is it?", " not", (" not", " maybe"), 0)
    assert "mcc" not in task_measurement(model, tokenizer, [*rows, other]).details
    assert "mcc" not in task_measurement(model, tokenizer, EXAMPLES).details


def test_rows_that_do_not_fit_are_listed_and_left_out():
    long = Example("q", " " + "x" * 90, (" " + "x" * 90, " y"), 0)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = task_measurement(model, tokenizer, [*EXAMPLES, long], max_length=50)
    assert found.details["dropped"] == [len(EXAMPLES)]
    assert found.count == len(EXAMPLES)
    with pytest.raises(InputError, match="50 tokens"):
        task_measurement(model, tokenizer, [long], max_length=50)


def test_candidates_for_some_rows_only_are_refused():
    with pytest.raises(InputError, match="12 of the 13 examples"):
        task_measurement(tiny_model(), tiny_tokenizer(), [*EXAMPLES, Example("a", " b")])


def test_likelihoods_that_are_not_finite_stop_the_run():
    model = tiny_model()
    model.get_output_embeddings().weight.data[5] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        perplexity(model, tiny_tokenizer(), TEXT, context_length=32)
    with pytest.raises(NumericalError, match="likelihood of ' "):
        task_measurement(model, tiny_tokenizer(), EXAMPLES[:1])


def test_evaluate_takes_the_test_split_and_counts_zeros():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    layers = find_decoder_layers(model)
    layers.projections[0].weight.zero_()
    task = Task("made up", {"train": [], "validation": [], "test": EXAMPLES}, {"from": "here"})
    results = evaluate(model, tokenizer, [task], samples=5, seed=1)
    assert results.measurements[0].count == 5
    assert results.sparsity == pytest.approx(layers.projections[0].numel / layers.sizes.sum())
    assert sparsity_of(model) == results.sparsity
    assert results.how["data"] == {"made up": {"from": "here"}}
    with pytest.raises(InputError, match=r"12 .*13"):
        evaluate(model, tokenizer, [task], samples=13)
    with pytest.raises(InputError, match="twice"):
        evaluate(model, tokenizer, [task, task], samples=5)
