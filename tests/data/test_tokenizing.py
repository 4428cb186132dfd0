"""What a text becomes, whatever a tokenizer puts around one: begun once, ended when asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

import layerif
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tokenizer_zoo import BEHIND, FRONT, ZOO
from layerif.calibration.text import sampled_chunks
from layerif.data import Example
from layerif.data.chunks import cut
from layerif.data.tokenizing import around, begun, encode, encode_prompts
from layerif.errors import InputError
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.generation import generated_accuracy
from layerif.evaluation.harness.model import HarnessModel
from layerif.evaluation.perplexity import perplexity
from layerif.finetuning.finetune import encoded_rows
from layerif.finetuning.options import FinetuneOptions

PAIRS = [("the cat", " sat on"), ("the", "a b"), ("cat sat on the ", "cat"), ("", "sat on the cat")]
KINDS = list(ZOO)
BYTES = ["gpt2", "llama", "both", "eos", "glm"]  # those that tiny models have embeddings for


def oracle(tokenizer, text, kind):
    """What the tokenizer alone does, without what it puts behind."""
    ids = tokenizer(text)["input_ids"]
    return ids[: len(ids) - BEHIND.get(kind, 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_tokenizers_own_without_what_it_puts_behind(kind):
    tokenizer = ZOO[kind]()
    assert list(map(len, around(tokenizer))) == [FRONT.get(kind, 0), BEHIND.get(kind, 0)]
    texts = [prompt + completion for prompt, completion in PAIRS]
    assert begun(tokenizer, texts) == [oracle(tokenizer, text, kind) for text in texts]
    items, dropped = encode(tokenizer, PAIRS, 64)
    assert not dropped
    for (prompt, completion), item in zip(PAIRS, items, strict=True):
        whole = oracle(tokenizer, prompt + completion, kind)
        assert item.input_ids == whole
        assert 1 <= item.start <= max(len(oracle(tokenizer, prompt, kind)), 1)
        assert completion.strip() in tokenizer.decode(item.input_ids[item.start - 1 :])
    prompts = [prompt for prompt, _ in PAIRS[:3]]
    assert [item.input_ids for item in encode_prompts(tokenizer, prompts, 64)] == [
        oracle(tokenizer, prompt, kind) for prompt in prompts
    ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in FRONT])
def test_a_text_that_begins_itself_is_begun_once(kind):
    """Would see: BOS twice before a prompt that a chat template wrote."""
    tokenizer = ZOO[kind]()
    front, _ = around(tokenizer)
    for written in range(len(front)):
        # A template may write all of what begins a text, or the last of it.
        prompt = "".join(tokenizer.convert_ids_to_tokens(front[written:])) + "the cat"
        alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert alone[: len(front) - written] == front[written:]
        (item,), _ = encode(tokenizer, [(prompt, " sat")], 64)
        (asked,) = encode_prompts(tokenizer, [prompt], 64)
        assert asked.input_ids == [*front[:written], *alone]
        assert item.input_ids[: len(asked.input_ids)] == asked.input_ids
        assert item.start == len(asked.input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_training_rows_end_once(kind):
    """Would see: EOS twice behind rows, from the tokenizer and from us, or none."""
    tokenizer = ZOO[kind]()
    plain = [Example("the cat", " sat"), Example("the", " cat")]
    end = tokenizer.eos_token
    written = [Example(e.prompt, e.completion + end) for e in plain] if end else plain
    for rows in (plain, written):
        for append in (True, False):
            options = FinetuneOptions(append_eos=append)
            items, _, left_out = encoded_rows(tiny_model(), tokenizer, rows, (), options)
            assert left_out == 0
            for item, row in zip(items, rows, strict=True):
                text = oracle(tokenizer, row.prompt + row.completion, kind)
                if (
                    kind.startswith("slow") and rows is written
                ):  # this one looks whether it is there
                    text = tokenizer(row.prompt + row.completion)["input_ids"]
                ended = end is not None and (append or rows is written)
                assert item.input_ids.count(tokenizer.eos_token_id) == ended
                assert (item.input_ids[-1] == tokenizer.eos_token_id) == ended
                assert item.input_ids[: len(text)] == text
    if end:  # as chat templates write the end of a reply
        (item,), _ = encode(tokenizer, [("the cat", f" sat{end}\n")], 64, end=True)
        assert item.input_ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_chunk_begins_once(kind):
    """Would see: BOS twice where running text writes it, as rows in a chat template do."""
    tokenizer = ZOO[kind]()
    front, _ = around(tokenizer)
    text = "the cat sat on the cat "
    marked = "".join(tokenizer.convert_ids_to_tokens(front)) + text if kind in FRONT else text
    for chunk in cut(tokenizer, marked * 9, 7):
        assert chunk.input_ids[: len(front)] == front
        assert not set(front) & set(chunk.input_ids[len(front) :])
        assert (len(chunk.input_ids), chunk.start) == (7, 1)
    if kind != "sentencepiece":  # its first word depends on where a text begins
        plain, own = ([c.input_ids for c in cut(tokenizer, each * 9, 7)] for each in (text, marked))
        assert plain == own
    if front:
        with pytest.raises(InputError, match="no room"):
            cut(tokenizer, text, len(front) + 1)


def test_what_a_model_writes_begins_as_texts_do():
    for kind in ("llama", "glm"):
        tokenizer = ZOO[kind]()
        front, _ = around(tokenizer)
        model = tiny_model()
        model.resize_token_embeddings(len(tokenizer))
        for chunk in sampled_chunks(model, tokenizer, 2, 6, seed=0):
            assert chunk.input_ids[: len(front)] == front
            assert len(chunk.input_ids) == 6


def test_special_tokens_written_in_a_text_are_those_tokens():
    """As lm-evaluation-harness has it, and as prompts written out in a chat template need it."""
    tokenizer = tiny_tokenizer()
    (item,), _ = encode(tokenizer, [("a</s>b", " c")], 64)
    assert item.input_ids[1] == tokenizer.eos_token_id
    assert len(item.input_ids) == 5


def test_what_begins_a_text_stays_when_its_prompt_is_cut():
    tokenizer = ZOO["glm"]()
    front, _ = around(tokenizer)
    (item,), _ = encode(tokenizer, [("0123456789", "xyz")], 7)
    assert item.input_ids[:2] == front
    assert tokenizer.decode(item.input_ids[2:]) == "89xyz"


@pytest.mark.parametrize("kind", BYTES)
def test_a_candidates_likelihood_is_that_of_its_own_tokens(kind):
    """Against log-softmax of the whole text, and against lm-evaluation-harness.

    Would see: EOS scored behind each candidate, and BOS twice.
    """
    tokenizer, model = ZOO[kind](), tiny_model(dtype=torch.float64)
    model.resize_token_embeddings(len(tokenizer))
    choices = (" sat", " on it")
    examples = [Example(p, choices[0], choices, 0) for p in ("the cat", "<s>the cat", "a: ")]
    found = task_measurement(model, tokenizer, examples)
    for example, nats in zip(examples, found.outcomes.nats, strict=True):
        prompt = oracle(tokenizer, example.prompt, kind)
        if kind in FRONT and example.prompt.startswith("<s>"):
            del prompt[prompt.index(tokenizer.bos_token_id)]
        ids = torch.tensor([prompt + tokenizer(" sat", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        expected = sum(logs[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1]))
        assert -nats == pytest.approx(expected, rel=1e-6)
    requests = [
        Instance("loglikelihood", {}, (e.prompt, choice), index)
        for e in examples[:2]  # lm-eval takes a blank at the end of a prompt as the candidate's
        for index, choice in enumerate(choices)
    ]
    theirs = HarnessModel(model, tokenizer, 2).loglikelihood(requests)
    ours = task_measurement(model, tokenizer, [Example(*r.args) for r in requests]).outcomes.nats
    assert [-nats for nats in ours] == pytest.approx([each for each, _ in theirs], rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "both", "eos"])
def test_lm_eval_reads_running_text_and_prompts_by_the_same_rules(kind):
    """Would see: BOS scored behind BOS, and a reply to a prompt that has ended."""
    tokenizer, model = ZOO[kind](), tiny_model(dtype=torch.float64)
    harness = HarnessModel(model, tokenizer, 2)
    (rolled,) = harness.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, ("the cat sat",), 0)]
    )
    plain = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[tokenizer.bos_token_id, *plain]])
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].log_softmax(-1)
    assert rolled == pytest.approx(logs.gather(1, ids[0, 1:, None]).sum().item(), abs=1e-6)
    tokens, mask = harness.tok_batch_encode(["the cat", "<s>cat", "on"])
    for row, known, prompt in zip(tokens, mask, ("the cat", "cat", "on"), strict=True):
        own = row[known.bool()].tolist()
        expected = oracle(tokenizer, prompt, kind)
        if kind == "eos" and prompt == "cat":
            expected = [tokenizer.bos_token_id, *expected]
        assert own == expected


def test_a_tokenizer_that_adds_nothing_is_lm_evals_to_the_bit():
    tokenizer, model = tiny_tokenizer(), tiny_model(dtype=torch.float64)
    ours = HarnessModel(model, tokenizer, 2)
    plain = super(HarnessModel, ours)
    for text in ("the cat", " sat", "<s>the", "a</s>"):
        assert ours.tok_encode(text) == plain.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == plain.tok_encode(
            text, add_special_tokens=False
        )
    for found, expected in zip(
        ours.tok_batch_encode(["the cat", "on"], left_truncate_len=4),
        plain.tok_batch_encode(["the cat", "on"], left_truncate_len=4),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_perplexity_and_replies_do_not_depend_on_what_is_put_behind():
    """The same text and rows by a tokenizer that ends texts and by one that does not."""
    model = tiny_model(dtype=torch.float64)
    text = "the cat sat on the mat. " * 8
    rows = [Example("Say a: ", "a", ("a", "b"), 0), Example("Say b: ", "b", ("a", "b"), 1)]
    for plain, ended in (("gpt2", "eos"), ("llama", "both")):
        one, other = ZOO[plain](), ZOO[ended]()
        assert perplexity(model, one, text, context_length=16) == perplexity(
            model, other, text, context_length=16
        )
        assert generated_accuracy(model, one, rows) == generated_accuracy(model, other, rows)
        assert task_measurement(model, one, rows) == task_measurement(model, other, rows)


def test_nothing_else_calls_a_tokenizer():
    # The code in a model card is its reader's.
    for path in Path(layerif.__file__).parent.rglob("*.py"):
        calls = re.findall(r"\btokenizer\(.*", path.read_text(encoding="utf-8"))
        assert path.name in ("tokenizing.py", "cards.py") or not calls, path


@pytest.mark.real_model
def test_smollm2_is_read_as_its_tokenizer_alone_reads(smollm2):
    _, tokenizer = smollm2
    assert around(tokenizer) == ([], [])
    items, _ = encode(tokenizer, PAIRS, 64)
    for (prompt, completion), item in zip(PAIRS, items, strict=True):
        assert item.input_ids == tokenizer(prompt + completion)["input_ids"]
    ended, _ = encode(tokenizer, PAIRS, 64, end=True)
    assert [item.input_ids for item in ended] == [
        tokenizer(p + c + tokenizer.eos_token)["input_ids"] for p, c in PAIRS
    ]
