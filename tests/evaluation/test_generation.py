"""Greedy replies against a hand-written loop, and the accuracy that is read off them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.utils import logging

from helpers.tiny import ARCHITECTURES, FLOAT64_ARCHITECTURES, tiny_model, tiny_tokenizer
from layerif.data import Corpus, load_task
from layerif.data.base import Example, Task
from layerif.errors import InputError, NumericalError
from layerif.evaluation.evaluate import evaluate
from layerif.evaluation.generation import (
    MARGIN,
    check_generation,
    generated_accuracy,
    greedy_replies,
)
from layerif.evaluation.statistics import wilson_interval
from layerif.evaluation.summed import Cache

# Of very different lengths, so that a batch has much padding; some are longer than a window of 8.
PROMPTS = [
    "a",
    "The keys to",
    "x y z " * 8,
    "12",
    "Is it so? " * 3,
    "end",
    "Line 7 of a text about",
]
NEW = 12


def greedy(model, tokenizer, prompt, new=NEW, ends=(2,)):
    """Batch 1, no cache, no padding: the likeliest token after the whole text, again and again."""
    ids, reply = tokenizer(prompt)["input_ids"], []
    while len(reply) < new:
        with torch.no_grad():
            logits = model(torch.tensor([ids + reply]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token in ends:
            break
        reply.append(token)
    return reply


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replies_are_those_of_a_loop_without_cache_whatever_the_batch(architecture, batch_tokens):
    # Would see: padding that is attended to, positions counted from the padding, a sliding cache
    # that forgets the mask.
    dtype = torch.float64 if architecture in FLOAT64_ARCHITECTURES else torch.float32
    model, tokenizer = tiny_model(architecture, dtype), tiny_tokenizer()
    found = greedy_replies(
        model, tokenizer, PROMPTS, max_new_tokens=NEW, max_length=100, batch_tokens=batch_tokens
    )
    assert found == [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len({tuple(reply) for reply in found}) > 3, "the model says the same whatever is asked"


def test_with_bos_before_every_text():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer(bos=True)
    found = greedy_replies(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    assert found == [greedy(model, tokenizer, prompt) for prompt in PROMPTS]


def test_a_model_without_a_padding_token_and_a_tokenizer_without_one():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    expected = greedy_replies(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    tokenizer.pad_token = None
    assert greedy_replies(model, tokenizer, PROMPTS, max_new_tokens=NEW) == expected


def test_every_end_token_of_model_and_tokenizer_ends_a_reply():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    whole = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    first, second = whole[0][3], whole[2][5]
    model.generation_config.eos_token_id = [first, second]
    expected = [greedy(model, tokenizer, p, ends=(first, second, 2)) for p in PROMPTS]
    assert expected != whole
    for batch_tokens in (1, 10_000):
        found = greedy_replies(
            model, tokenizer, PROMPTS, max_new_tokens=NEW, batch_tokens=batch_tokens
        )
        assert found == expected


def test_the_models_own_settings_of_generation_are_set_aside_and_put_back(caplog):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    expected = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    common = [token for reply in expected for token in reply]
    own = GenerationConfig(
        do_sample=True,
        temperature=0.2,
        top_p=0.9,
        top_k=3,
        repetition_penalty=1.9,
        no_repeat_ngram_size=1,
        suppress_tokens=sorted(set(common)),
        min_new_tokens=NEW,
        max_length=7,
        eos_token_id=2,
        use_cache=False,
    )
    model.generation_config = own
    model.config.use_cache = False
    before = own.to_dict()
    logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = greedy_replies(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    finally:
        logging.disable_propagation()
    assert found == expected
    assert not caplog.records
    assert model.generation_config is own
    assert own.to_dict() == before


def test_a_reply_ends_where_it_is_settled():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    whole = [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    limits = [5, 1, 12, 3, 7, 2, 9]
    asked: list[tuple[int, str]] = []

    def settled(row, text):
        asked.append((row, text))
        return sum(r == row for r, _ in asked) == limits[row]

    found = greedy_replies(model, tokenizer, PROMPTS, max_new_tokens=NEW, settled=settled)
    assert found == [reply[:limit] for reply, limit in zip(whole, limits, strict=True)]
    for row, reply in enumerate(found):
        texts = [text for asked_of, text in asked if asked_of == row]
        assert texts == [tokenizer.decode(reply[: n + 1]) for n in range(len(reply))]


@pytest.mark.parametrize("bos", [False, True])
def test_a_long_prompt_loses_its_left_end(bos):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer(bos=bos)
    long = "0123456789" * 20
    (found,) = greedy_replies(model, tokenizer, [long], max_new_tokens=NEW, max_length=40)
    assert found == greedy(model, tokenizer, long[-(40 - NEW - bos) :])
    # The model has 128 positions, whatever is asked for.
    (found,) = greedy_replies(model, tokenizer, [long], max_new_tokens=NEW, max_length=4096)
    assert found == greedy(model, tokenizer, long[-(128 - NEW - bos) :])


def test_logits_that_are_not_finite_stop_the_run():
    model = tiny_model()
    model.get_output_embeddings().weight.data[5] = torch.nan
    with pytest.raises(NumericalError, match="'The keys to'"):
        greedy_replies(model, tiny_tokenizer(), ["The keys to"], max_new_tokens=2)
    settings = model.generation_config
    with pytest.raises(NumericalError):
        greedy_replies(model, tiny_tokenizer(), PROMPTS, max_new_tokens=2)
    assert model.generation_config is settings


def test_an_empty_prompt_is_refused_where_nothing_begins_a_text():
    with pytest.raises(InputError, match="prompt 1 "):
        greedy_replies(tiny_model(), tiny_tokenizer(), ["a", ""], max_new_tokens=2)
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer(bos=True)
    (found,) = greedy_replies(model, tokenizer, [""], max_new_tokens=NEW)
    assert found == greedy(model, tokenizer, "")


# What a model writes after each prompt, and the candidate that it means (None: it cannot be read).
LABELS = ("Answer: no.", "Answer: yes.")
LEARNT: dict[str, tuple[str, int | None]] = {
    "Is 0 even?": ("Answer: yes.", 1),
    "Is 1 even?": ("Answer: no.", 0),
    "Is 2 even?": ("answer: Yes", 1),
    "Is 3 even, do you think?": ("The answer is yes.\nIs", 1),
    "Is 4 even?": ("Answer: no.", 0),
    "Is 5?": ("yes or no", None),
    "Is six even?": ("Who knows", None),
    "Is 7 even?": ("No.", 0),
}
TRUE = [1, 0, 1, 0, 1, 0, 1, 0]
ROWS = [
    Example(prompt, LABELS[answer], LABELS, answer)
    for prompt, answer in zip(LEARNT, TRUE, strict=True)
]


@pytest.fixture(scope="module")
def learnt():
    """A tiny model that has learnt those replies by heart, and its tokenizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `_threads` does for tests, which comes after this
    model, tokenizer = tiny_model(), tiny_tokenizer()
    texts = [
        (tokenizer(prompt)["input_ids"], [*tokenizer(reply)["input_ids"], 2])
        for prompt, (reply, _) in LEARNT.items()
    ]
    width = max(len(prompt) + len(reply) for prompt, reply in texts)
    ids, labels = torch.zeros(len(texts), width, dtype=torch.int64), torch.full((8, width), -100)
    for row, (prompt, reply) in enumerate(texts):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = torch.tensor(reply)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model(ids, labels=labels).loss
        if loss < 1e-2:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    assert loss < 1e-2
    return model, tokenizer


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_accuracy_counts_what_is_right_and_what_cannot_be_read(learnt, batch_tokens):
    model, tokenizer = learnt
    found = generated_accuracy(model, tokenizer, ROWS, batch_tokens=batch_tokens)
    replies = greedy_replies(model, tokenizer, list(LEARNT), max_new_tokens=30)
    assert [tokenizer.decode(ids) for ids in replies] == [reply for reply, _ in LEARNT.values()]
    hits = [meant == e.answer for (_, meant), e in zip(LEARNT.values(), ROWS, strict=True)]
    assert (found.metric, found.scoring, found.count) == ("accuracy", "generation", 8)
    assert found.value == 4 / 8
    assert found.outcomes.correct == hits
    assert found.outcomes.nats == found.outcomes.tokens == []
    assert (found.low, found.high) == wilson_interval(4, 8)
    details = found.details
    assert details["parse_failures"] == 2
    assert details["parse_failure_rows"] == [5, 6]
    assert details["accuracy_of_parsed"] == pytest.approx(4 / 6)
    assert details["chance"] == 0.5
    assert details["max_new_tokens"] == len("Answer: yes.") + MARGIN
    # A reply is over with the line of its answer.
    assert details["replies"] == [reply.removesuffix("Is") for reply, _ in LEARNT.values()][:5]


def test_correlation_and_f1_are_of_the_rows_that_could_be_read(learnt):
    details = generated_accuracy(*learnt, ROWS).details
    pairs = [(m, t) for (_, m), t in zip(LEARNT.values(), TRUE, strict=True) if m is not None]
    said, true = np.array(pairs).T
    assert details["mcc"] == pytest.approx(np.corrcoef(said, true)[0, 1])
    precision, recall = true[said == 1].mean(), said[true == 1].mean()
    assert details["f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert details["positive"] == "Answer: yes."


def test_nothing_that_can_be_read(learnt):
    found = generated_accuracy(*learnt, [ROWS[5], ROWS[6]])
    assert (found.value, found.details["parse_failures"]) == (0.0, 2)
    assert found.details["accuracy_of_parsed"] is None
    assert "mcc" not in found.details


def task(name="t", rows=ROWS, **more):
    return Task(name, {"train": [], "validation": [], "test": rows}, **more)


def test_evaluate_takes_the_scoring_and_records_it(learnt):
    corpus = Corpus(
        "lines", calibration=[], evaluation=["A text of a few words. " * 9], separator=""
    )
    results = evaluate(*learnt, [task(), corpus], context_length=32, scoring="generation")
    assert [m.scoring for m in results.measurements] == ["generation", "likelihood"]
    assert results.measurements[0] == generated_accuracy(*learnt, ROWS, name="t")
    assert results.how["scoring"] == "generation"
    assert evaluate(*learnt, [task()]).measurements[0].scoring == "likelihood"


def test_what_has_no_answer_to_read_is_refused_before_anything_runs(learnt):
    model, tokenizer = learnt
    contexts = Example("a b", " c", answer=0, contexts=("a b", "b a"))
    refused = {
        "2 of the 2 examples": task(rows=[contexts] * 2),
        "1 of the 1 examples": task(rows=[Example("a", " b")]),
        "task agreement": load_task("agreement"),
        "128 tokens .* 208": task(rows=[Example("a", "b" * 200, ("b" * 200, "c"), 0)]),
    }
    for message, source in refused.items():
        with pytest.raises(InputError, match=message):
            evaluate(model, tokenizer, [source], scoring="generation")
    with pytest.raises(InputError, match="'guess'"):
        evaluate(model, tokenizer, [task()], scoring="guess")
    with pytest.raises(InputError, match="no examples"):
        evaluate(model, tokenizer, [task(rows=[])], scoring="generation")
    with pytest.raises(InputError, match=r"21 tokens .* 20"):
        check_generation(model, tokenizer, ROWS, name="t", max_length=21)


def test_replies_are_looked_up_and_resumed(tmp_path):
    """The same measurement from the cache, and after a run that stopped in the middle."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = [
        Example(f"Question {i}? ", " yes" if i % 2 else " no", (" yes", " no"), 1 - i % 2)
        for i in range(6)
    ]

    def measure(**options):
        return generated_accuracy(model, tokenizer, rows, batch_tokens=1, **options)

    reference = measure()
    cache = Cache.of(model, tmp_path)
    stopping = tiny_model()
    generate, calls = stopping.generate, []

    def stop_at_the_third(**inputs):
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(**inputs)

    stopping.generate = stop_at_the_third
    with pytest.raises(KeyboardInterrupt):
        generated_accuracy(stopping, tokenizer, rows, batch_tokens=1, cache=cache)
    assert len(list(tmp_path.glob(".*.steps/*.safetensors"))) == 2
    assert measure(cache=cache) == reference
    model.generate = None  # from here on nothing can be generated
    assert measure(cache=cache) == reference
