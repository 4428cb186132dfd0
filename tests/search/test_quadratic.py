"""The quadratic question: held against autograd, token by token; what it makes of its answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.marginal_models import corpus, trained_model
from helpers.searching import SEARCH
from helpers.tiny import float64_tolerance, tiny_model, tiny_tokenizer
from layerif.data.batching import collate
from layerif.data.chunks import cut, draw
from layerif.errors import InputError
from layerif.likelihood import token_losses
from layerif.model.layers import find_decoder_layers
from layerif.search.bits import BitsKind
from layerif.search.options import BitsSearchOptions, SearchOptions
from layerif.search.quadratic import expansion
from layerif.search.searching import search_plan
from layerif.search.slopes import slopes
from layerif.search.sparsity import SparsityKind

TEXT = corpus().text("calibration")
ROUNDED = {"group_size": 32, "method": "rtn"}


def chunks(count=3, length=24):
    return draw(cut(tiny_tokenizer(), TEXT, length), count, 0)


def random_changes(model, levels=2):
    """For each projection small changes of its weights."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for projection in find_decoder_layers(model).projections:
        shape = (levels, *projection.weight.shape)
        noise = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
        noise = noise.to(projection.weight.dtype)
        made.append([lambda one=one: one for one in noise])
    return made


def with_other_labels(items, device):
    batch = collate(items, device=device)
    return replace(batch, targets=(batch.targets + 7) % 64)


def by_autograd(model, changes, items, batched=collate):
    """(first, diagonal, token, local) of each projection and level, one text at a time."""
    projections = find_decoder_layers(model).projections
    sums = np.zeros((4, len(projections), len(changes[0])))
    for item in items:
        seen = {}
        hooks = [
            p.module.register_forward_hook(
                lambda _m, args, out, row=row, seen=seen: seen.__setitem__(
                    row, (args[0].detach(), out)
                )
            )
            for row, p in enumerate(projections)
        ]
        batch = batched([item], device=model.device)
        losses = token_losses(model, batch)
        for hook in hooks:
            hook.remove()
        outputs = [seen[row][1] for row in range(len(projections))]
        # Of the summed losses of the text's tokens.
        errors = torch.autograd.grad(losses.sum(), outputs)
        scored = len(losses)
        for row, error in enumerate(errors):
            for level, change in enumerate(changes[row]):
                reached = seen[row][0] @ change().T
                products = (error * reached).flatten(0, -2)
                sums[0, row, level] += float(products.sum()) / scored
                sums[1, row, level] += float(products.square().sum()) / scored / 2
                sums[2, row, level] += float(products.sum(1).square().sum()) / scored / 2
                sums[3, row, level] += float(reached.square().sum()) / scored / 2
    return sums / len(items)


@pytest.mark.parametrize("batched", [collate, with_other_labels])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_both_orders_are_those_of_autograd(architecture, batched):
    """Of texts that are not equally long, so that batches are padded."""
    model = tiny_model(architecture).double()
    changes, items = random_changes(model), chunks()
    items[1] = replace(items[1], input_ids=items[1].input_ids[:15])
    found = expansion(model, changes, items, batch_tokens=48, batched=batched)
    expected = by_autograd(model, changes, items, batched)
    for values, wanted in zip(vars(found).values(), expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-7, atol=float64_tolerance(1e-12))


def test_the_first_order_is_that_of_the_slopes():
    model = tiny_model()
    changes = random_changes(model, levels=1)
    found = expansion(model, changes, chunks(), batch_tokens=48).first[:, 0]
    single = slopes(model, [change for (change,) in changes], chunks(), batch_tokens=48)
    np.testing.assert_allclose(found, single, rtol=1e-4, atol=1e-7)


def test_a_parabola_is_followed_to_its_cheapest_state():
    """Where the logarithm of each loss is a parabola, no other state of the total costs less."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 500, 12)
    kind = SparsityKind(np.arange(12), sizes, 0.5, 0.2, 0.8)
    slope, height = generator.uniform(3, 9, 12), generator.normal(0, 2, 12)

    def losses(state):
        return np.exp(height + slope * np.asarray(state))

    found = kind.solved(np.stack([losses(np.full(12, s)) for s in (0.3, 0.5, 0.7)], axis=1))
    assert np.average(found, weights=sizes) == pytest.approx(0.5)
    least = losses(found).sum()
    for _ in range(300):
        other = kind.projected(found + generator.normal(0, 0.05, 12))
        assert losses(other).sum() > least * (1 - 1e-3)


def test_bits_go_where_the_predicted_loss_falls_most():
    kind = BitsKind(np.arange(4), np.full(4, 100), 3.0, np.array([2, 3, 4, 5, 6, 8]))
    (asked, *_) = kind.asked()
    assert asked == (2, 3, 4, 5)
    heights = np.array([1.0, 1.0, 40.0, 0.1])[:, None]
    losses = heights * 4.0 ** -np.array(asked, dtype=float)[None]
    state = kind.solved(losses)
    assert state.sum() == 12
    assert state[2] > state[0] >= state[3]
    assert kind.levels(state) == [int(bits) for bits in state]


def test_fused_projections_and_layers_share_their_bits():
    layers = find_decoder_layers(tiny_model())
    for granularity, units in (("fused", 4), ("layer", 1), ("projection", 7)):
        kind = BitsKind.among(layers, 3, BitsSearchOptions(granularity=granularity))
        assert len(kind.sizes) == units * len(layers)
        assert kind.sizes.sum() == sum(p.numel for p in layers.projections)


def test_random_moves_stay_within_the_total():
    sizes = np.array([192, 576, 576, 1536, 192])
    kind = BitsKind(np.arange(5), sizes, 3.2, np.array([2, 3, 4, 8]))
    generator, state = np.random.default_rng(0), kind.start()
    seen = set()
    for _ in range(200):
        changed = kind.mutated(state, generator)
        if changed is not None:
            assert (changed * sizes).sum() <= 3.2 * sizes.sum()
            state = changed
            seen.add(tuple(changed))
    assert len(seen) > 10


@pytest.mark.parametrize("kind", ["sparsity", "bits"])
def test_a_plan_of_the_question_is_better_than_the_uniform_one(kind):
    model = trained_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    total, how = (0.6, {}) if kind == "sparsity" else (3, ROUNDED)
    plan = search_plan(
        model,
        total,
        kind=kind,
        tokenizer=tiny_tokenizer(),
        calibration=corpus(),
        strategy="quadratic",
        tokens=1024,
        held_out_tokens=1024,
        **SEARCH,
        **how,
    )
    uniform, found = (each["held_out_loss"] for each in plan.how["rounds"])
    assert found < uniform
    assert plan.how["best_round"] == 1
    assert plan.rules.has_total(plan.realised_total, total, 1e-4)
    assert len(set(plan.allocation)) > 1
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("kind", "total", "how"),
    [
        ("sparsity", 0.5, {"method": "magnitude"}),
        ("bits", 3, {**ROUNDED, "ranges": "minmax"}),
    ],
)
def test_evolution_starts_from_the_plan_itself(kind, total, how):
    """The model is asked before anything of it is compressed; no method here depends on text."""
    options = {"tokenizer": tiny_tokenizer(), "calibration": corpus(), "held_out_tokens": 512}
    options |= SEARCH | {"tokens": 256, "kind": kind} | how
    found = search_plan(trained_model(), total, strategy="quadratic", **options)
    moved = search_plan(
        trained_model(), total, strategy="evolution", start="quadratic", evaluations=1, **options
    )
    _uniform, question = found.how["rounds"]
    # Its whole numbers of zeros may be one more or less.
    assert moved.how["trace"][0]["loss"] == pytest.approx(question["held_out_loss"], rel=0.01)


def test_a_search_may_start_from_it():
    options = {"tokenizer": tiny_tokenizer(), "calibration": corpus(), "held_out_tokens": 512}
    options |= SEARCH | {"tokens": 256}
    first = search_plan(trained_model(), 0.5, strategy="quadratic", **options)
    moved = search_plan(trained_model(), 0.5, start="quadratic", rounds=1, **options)
    (start, _) = moved.how["rounds"]
    assert start["held_out_loss"] == pytest.approx(first.how["rounds"][1]["held_out_loss"])
    assert SearchOptions().start == SearchOptions().recorded()["start"] == "quadratic"


def test_a_plan_of_before_is_not_taken_for_one_that_falls_back():
    """What has an effect on a plan says so, beside the option's own name."""
    assert SearchOptions(start="quadratic").effective()["start"] != "quadratic"
    assert SearchOptions(start="uniform").effective()["start"] == "uniform"
    assert "start" not in SearchOptions(strategy="quadratic").effective()


def test_a_kind_that_has_no_levels_to_ask_at_is_refused_by_name(monkeypatch):
    monkeypatch.delattr(SparsityKind, "asked")
    options = {"tokenizer": tiny_tokenizer(), "calibration": corpus(), "held_out_tokens": 512}
    options |= SEARCH | {"tokens": 256, "rounds": 1}
    with pytest.raises(InputError, match="uniform"):
        search_plan(trained_model(), 0.5, **options)
    assert search_plan(trained_model(), 0.5, **options, start="uniform").total == 0.5


def test_a_search_begins_from_the_uniform_plan_where_the_question_misleads(monkeypatch):
    """Zeros where the question would have them least: worse than the uniform plan."""
    solved = SparsityKind.solved
    monkeypatch.setattr(
        SparsityKind, "solved", lambda self, losses: 2 * self.total - solved(self, losses)
    )
    options = {"tokenizer": tiny_tokenizer(), "calibration": corpus(), "held_out_tokens": 512}
    plan = search_plan(trained_model(), 0.5, rounds=2, **SEARCH | {"tokens": 256} | options)
    misled, uniform, *later = plan.how["rounds"]
    assert misled["held_out_loss"] > uniform["held_out_loss"] > later[0]["held_out_loss"]
    assert plan.how["best_round"] > 0
    assert plan.realised_total == pytest.approx(0.5)


@pytest.mark.parametrize("criterion", ["diagonal", "token", "first", "local"])
def test_every_criterion_gives_a_plan(criterion):
    plan = search_plan(
        trained_model(),
        3,
        kind="bits",
        tokenizer=tiny_tokenizer(),
        calibration=corpus(),
        criterion=criterion,
        method="rtn",
        group_size=32,
        tokens=512,
        held_out_tokens=512,
        **SEARCH,
    )
    assert plan.how["criterion"] == criterion
    assert plan.realised_total <= 3
