"""Fine-tuning: the steps against plain autograd and AdamW, early stopping, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.finetuning import EXPERTS, TRAIN, VALIDATION, settings, weights
from helpers.marginal_models import corpus
from helpers.tiny import LAYERS, tiny_model, tiny_tokenizer
from layerif.adapters import LoraMoeLinear
from layerif.artifacts import Plan
from layerif.data import Example
from layerif.data.batching import collate
from layerif.data.rows import text_rows
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError, NumericalError
from layerif.finetuning.batches import Batches
from layerif.finetuning.finetune import finetune, with_new_adapter
from layerif.finetuning.options import FinetuneOptions, RowOptions
from layerif.finetuning.trainer import CompletionTrainer
from layerif.likelihood import token_losses


def by_hand(plan, options):
    """The same training, whole batches at once, with nothing of the Trainer."""
    model = tiny_model("llama", dtype=torch.float64)
    tokenizer = tiny_tokenizer()
    wrapped, _ = with_new_adapter(model, plan, options)
    wrapped.train()
    items, _ = encode_samples(tokenizer, TRAIN, 512, "training", end=True)
    generator = torch.Generator().manual_seed(options.seed)
    order = [i for _ in range(2) for i in torch.randperm(len(items), generator=generator).tolist()]
    epochs = [order[: len(items)], order[len(items) :]]
    size = options.batch_size
    batches = [e[i : i + size] for e in epochs for i in range(0, len(items), size)]
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=options.weight_decay)
    rising = -(-3 * len(batches) // 100)
    losses = []
    for step, rows in enumerate(batches):
        falling = (len(batches) - step) / (len(batches) - rising)
        if options.schedule == "cosine":
            falling = (1 - math.cos(math.pi * falling)) / 2
        rate = options.learning_rate * min(step / rising, falling)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate([items[r] for r in rows], device=torch.device("cpu"), mask_padding=True)
        loss = token_losses(model, batch).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        optimizer.step()
    return wrapped, losses


@pytest.mark.parametrize("plan", [None, EXPERTS], ids=["lora", "experts"])
def test_it_is_adamw_on_the_mean_over_completion_tokens(plan):
    # Parts of 60 tokens hold two or three of a batch's four rows.
    others = {"schedule": "cosine", "weight_decay": 0.5, "max_grad_norm": 0.1, "balance": 0.01}
    options = settings(**(others if plan else {}))
    start = tiny_model("llama", dtype=torch.float64)
    model, record = finetune(start, tiny_tokenizer(), TRAIN, plan=plan, options=options)
    expected, losses = by_hand(plan, options)
    assert record.steps == len(losses) == 8
    assert [entry.loss for entry in record.losses] == pytest.approx(losses, rel=1e-6)
    found, wanted = weights(model), weights(expected)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9)
    assert max(float(v.abs().max()) for n, v in found.items() if "_B" in n) > 1e-3
    # What comes next has its own scale of load balancing, and no dropout.
    assert not any(module.training for module in model.modules())
    assert {m.state.scale for m in model.modules() if isinstance(m, LoraMoeLinear)} <= {1.0}


def chunks(text, options, rows):
    model, size = tiny_model("llama"), {"max_length": options.max_length, "seed": options.seed}
    return text_rows(model, tiny_tokenizer(), text, rows.wanted(), **size)


def test_running_text_is_learnt_in_every_token_but_the_first():
    options = settings(max_steps=1, max_length=16, batch_size=4)
    start = tiny_model("llama", dtype=torch.float64)
    text = corpus()
    train, apart = chunks(text, options, RowOptions(train_samples=4, validation_samples=2))
    assert [len(row.input_ids) for row in (*train, *apart)] == [16] * 6
    ids = torch.tensor([row.input_ids for row in train])
    logits = start(input_ids=ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    _, record = finetune(start, tiny_tokenizer(), train, apart, options=options)
    assert [entry.loss for entry in record.losses] == [pytest.approx(expected, rel=1e-6)]
    assert record.rows == {"train": 4, "validation": 2, "left_out": 0}
    # Without numbers a hundred, or a tenth, are measured, and all others are trained on.
    longer = options.but(max_length=32)
    train, apart = chunks(text, longer, RowOptions())
    assert len(apart) == (len(train) + len(apart)) // 10
    assert len(chunks(text, options, RowOptions())[1]) == 100
    with pytest.raises(InputError, match="max_length"):
        finetune(start, tiny_tokenizer(), train, options=settings(max_length=8))


def test_one_step_learns():
    options = settings(max_steps=1)
    model, record = finetune(tiny_model("llama"), tiny_tokenizer(), TRAIN, options=options)
    assert [entry.learning_rate for entry in record.losses] == [options.learning_rate]
    assert max(float(v.abs().max()) for n, v in weights(model).items() if "_B" in n) > 1e-3


def test_rows_are_no_longer_than_the_model():
    """Of more tokens than it has positions a learnt table of them has no row."""
    rows = [Example("x" * 200, "yes")] * 4
    _, record = finetune(
        tiny_model("gpt2"), tiny_tokenizer(), rows, rows, options=settings(max_steps=1)
    )
    assert record.rows == {"train": 4, "validation": 4, "left_out": 0}


def test_parts_and_checkpointing_change_nothing():
    plans = {"balance": 0.05, "dropout": 0.0}
    found = [
        weights(
            finetune(
                tiny_model("llama", dtype=torch.float64),
                tiny_tokenizer(),
                TRAIN,
                plan=EXPERTS,
                options=settings(**plans, **more),
            )[0]
        )
        for more in ({}, {"batch_tokens": 5000}, {"gradient_checkpointing": True})
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-7, atol=1e-9)


def test_dropout_is_the_same_when_layers_run_again():
    found = [
        weights(
            finetune(
                tiny_model("llama", dtype=torch.float64),
                tiny_tokenizer(),
                TRAIN,
                options=settings(dropout=0.3, gradient_checkpointing=again),
            )[0]
        )
        for again in (False, True)
    ]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-7, atol=1e-9)


def test_the_seed_decides_and_what_the_process_draws_is_left_alone():
    def trained(seed):
        torch.manual_seed(3)
        options = settings(seed=seed, dropout=0.2, max_steps=3)
        model, _ = finetune(tiny_model("llama"), tiny_tokenizer(), TRAIN, options=options)
        return weights(model), torch.rand(1).item()

    torch.manual_seed(3)
    drawn = torch.rand(1).item()
    (one, after), (same, _), (other, _) = trained(0), trained(0), trained(1)
    assert after == drawn
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_are_in_float32_in_a_bfloat16_model():
    model, record = finetune(
        tiny_model("llama", dtype=torch.bfloat16),
        tiny_tokenizer(),
        TRAIN,
        VALIDATION,
        plan=EXPERTS,
        options=settings(epochs=6.0, learning_rate=1e-2),
    )
    assert {v.dtype for v in weights(model).values()} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    assert record.losses[-1].loss < record.losses[0].loss - 0.5
    assert record.evaluations[-1].loss < record.evaluations[0].loss


def test_experts_layer_by_layer_and_what_is_recorded():
    model, record = finetune(
        tiny_model("llama"),
        tiny_tokenizer(),
        TRAIN,
        VALIDATION,
        plan=EXPERTS,
        options=settings(rank=4, max_steps=5, evaluate_every=2, strict_dropout=True),
    )
    layers = [m for m in model.modules() if isinstance(m, LoraMoeLinear)]
    assert {(m.layer, m.experts["default"], m.rank["default"]) for m in layers} == {
        (0, 1, 4),
        (1, 3, 4),
        (2, 4, 4),
    }
    assert all(m.strict["default"] and m.scaling["default"] == 16 / 4 for m in layers)
    assert record.method == "lora_moe"
    assert record.rows == {"train": 14, "validation": 8, "left_out": 0}
    assert [e.step for e in record.evaluations] == [2, 4, 5]
    for entry in record.losses:
        assert 0 < entry.router_entropy < 1.4  # ln 4, the most
        assert 1 / 3 <= entry.largest_load <= 0.5  # a token goes to two
    assert record.trainable_parameters == sum(v.numel() for v in weights(model).values())


def test_ranks_have_one_scale():
    plan = Plan(kind="ranks", allocation=[2, 4, 12])
    model, method = with_new_adapter(tiny_model("llama"), plan, settings(rank=8, alpha=24.0))
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]
    assert method == "lora"
    assert {m.r["default"] for m in layers} == {2, 4, 12}
    assert {m.scaling["default"] for m in layers} == {24 / 8}


def test_it_stops_early_and_returns_the_best():
    # A rate so high that the loss soon rises.
    # Dropout is not measured.
    options = settings(learning_rate=0.3, epochs=12.0, evaluate_every=1, patience=2, dropout=0.1)
    model, record = finetune(
        tiny_model("llama"), tiny_tokenizer(), TRAIN, VALIDATION, options=options
    )
    losses = {e.step: e.loss for e in record.evaluations}
    best = min(losses, key=lambda step: losses[step])
    assert record.best_step == best
    assert record.steps == best + 2 < 48
    inner = model.get_base_model()
    items, _ = encode_samples(tiny_tokenizer(), VALIDATION, 512, "validation", end=True)
    model.eval()
    with torch.no_grad():
        own = [
            token_losses(inner, collate([item], device=torch.device("cpu"))).mean().item()
            for item in items
        ]
    assert sum(own) / len(own) == pytest.approx(losses[best], rel=1e-5)


def test_every_row_comes_once_in_an_epoch_whatever_the_processes(monkeypatch):
    tokenizer = tiny_tokenizer()
    items, _ = encode_samples(tokenizer, TRAIN, 512, "training", end=True)
    for world in (1, 3):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        seen = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            batches = Batches(items, settings(batch_size=4, epochs=1.0), None)
            steps = [batches[step] for step in range(len(batches))]
            assert [s.rows for s in steps] == [4, 4, 4, 2]
            assert sum(s.tokens for s in steps) == sum(item.scored for item in items)
            seen += [i.index for s in steps if not s.spare for part in s.parts for i in part]
        assert sorted(seen) == list(range(14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "schedule='cosin'"),
        ({"epochs": 0.0}, "epochs="),
        ({"batch_size": 0}, "batch_size="),
        ({"warmup_ratio": 1.0}, "warmup_ratio="),
        ({"max_steps": 0}, "max_steps="),
        ({"seed": 2**32}, "seed="),
        ({"learning_rate": float("nan")}, "learning_rate="),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        FinetuneOptions(**options)


def test_what_cannot_be_trained_is_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match="patience"):
        finetune(tiny_model("llama"), tokenizer, TRAIN, options=settings(patience=1))
    with pytest.raises(InputError, match="training samples"):
        finetune(tiny_model("llama"), tokenizer, [], options=settings())
    plan = Plan(kind="sparsity", allocation=[0.5] * LAYERS)
    with pytest.raises(InputError, match="ranks"):
        finetune(tiny_model("llama"), tokenizer, TRAIN, plan=plan)
    plan = Plan(kind="experts", allocation=[2, 2])
    with pytest.raises(InputError, match="2 layers"):
        finetune(tiny_model("llama"), tokenizer, TRAIN, plan=plan)
    adapted, _ = finetune(tiny_model("llama"), tokenizer, TRAIN, options=settings(max_steps=1))
    with pytest.raises(InputError, match="already"):
        finetune(adapted, tokenizer, TRAIN)
    model = tiny_model("llama")
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(NumericalError, match="loss of step 1 "):
        finetune(model, tokenizer, TRAIN, options=settings())


def test_what_is_not_finite_is_refused_and_leaves_the_model_without_adapters(monkeypatch):
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    model.model.embed_tokens.weight.data[tokenizer("Q")["input_ids"]] = float("nan")
    options = settings(max_steps=2, evaluate_every=1)
    with pytest.raises(NumericalError, match="validation loss after step 1 "):
        finetune(model, tokenizer, TRAIN, [Example("Q: ", "yes")], options=options)
    step = CompletionTrainer.training_step

    def overflowing(self, wrapped, *args, **given):
        loss = step(self, wrapped, *args, **given)
        next(p for p in wrapped.parameters() if p.grad is not None).grad[0] = float("inf")
        return loss

    monkeypatch.setattr(CompletionTrainer, "training_step", overflowing)
    with pytest.raises(NumericalError, match="adapter after step 1 "):
        finetune(model, tokenizer, TRAIN, options=settings(max_steps=1))
    assert not any(hasattr(module, "get_base_layer") for module in model.modules())
