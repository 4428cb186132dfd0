"""Influence through each expert of a mixture, against autograd's gradients of its own weights."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from helpers.estimator_oracles import DENSE, dense_ekfac, double_loop_datainf, rule
from helpers.mixtures import MIXTURES, idle, mixture, own_part, weight_gradients
from helpers.scoring import (
    ALPHA,
    DAMPING,
    RANK,
    SEED,
    TRAIN,
    VALIDATION,
    completion_loss,
    kronecker_factors,
    measure,
)
from helpers.tiny import tiny_tokenizer
from layerif import collect, solve
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.subspaces.projected import TwoSided
from layerif.model.layers import find_decoder_layers

# Routers compute in float32, whatever the model's precision.
LOOSE = 1e-5


@functools.cache
def gradients(name):
    """(samples, out, in) for each projection, of training and of validation samples."""
    model = mixture(name)
    return weight_gradients(model, TRAIN), weight_gradients(model, VALIDATION)


def blocks(name, subspace="fresh_lora", size=6):
    """For each projection G (samples, d) and v (d,) in a subspace."""
    projections = find_decoder_layers(mixture(name)).projections
    lora, sides = FreshLora(RANK, ALPHA, SEED), TwoSided(size, SEED).matrices(projections)
    found = []
    for row, (projection, *given) in enumerate(zip(projections, *gradients(name), strict=True)):
        own = given
        if subspace == "fresh_lora":
            down = lora.down(projection).double()
            own = [ALPHA / RANK * g @ down.T for g in given]
        elif subspace == "two_sided":
            left, right = sides[row].left, sides[row].right
            own = [g if left is None else left.double() @ g for g in given]
            own = [g if right is None else g @ right.double().T for g in own]
        train, validation = (g.flatten(1).numpy() for g in own)
        found.append((train, validation.mean(0)))
    return found


@functools.cache
def kept(name, subspace="fresh_lora"):
    """Gradients of a subspace, collected once."""
    options = {"size": 6} if subspace == "two_sided" else {"rank": RANK, "alpha": ALPHA}
    samples = (mixture(name), tiny_tokenizer(), TRAIN, VALIDATION)
    factors = subspace == "fresh_lora"
    return collect(*samples, subspace=subspace, seed=SEED, factors=factors, **options)


def near(found, expected, tolerance=LOOSE):
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= tolerance * scale, np.abs(found - expected).max()


def woodbury(train, v, ridge):
    """v^T H^-1 g with an inverse of samples x samples."""
    gram = train @ train.T
    weights = np.linalg.solve(gram / len(train) + ridge * np.eye(len(train)), train @ v)
    return (train @ v - gram @ weights / len(train)) / ridge


ORACLES = {
    "datainf": double_loop_datainf,
    "grad_dot": DENSE["grad_dot"],
    "cosine": lambda *given: np.nan_to_num(DENSE["cosine"](*given)),  # 0 / 0 counts as 0
} | dict.fromkeys(("exact", "cg", "lissa"), woodbury)


def dense(estimator, train, v, factor=DAMPING):
    if not v.any():
        return np.zeros(len(train))
    return ORACLES[estimator](train, v, rule(train, factor))


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("subspace", ["fresh_lora", "two_sided"])
def test_every_estimator_is_its_dense_form_at_every_expert(name, subspace):
    found = blocks(name, subspace)
    silent = idle(find_decoder_layers(mixture(name)).projections)
    for estimator in ORACLES:
        # A damping at which float32's rounding in the routers is not blown up by the inverse.
        more = {"tolerance": 1e-10} if estimator in ("cg", "lissa") else {}
        more |= {} if estimator in ("grad_dot", "cosine") else {"damping": 10.0}
        scores = solve(kept(name, subspace), estimator=estimator, **more)
        layers = np.zeros_like(scores.influence)
        for row, (train, v) in enumerate(found):
            near(scores.projection_influence[row], dense(estimator, train, v, 10.0))
            layers[scores.projections[row].layer] += scores.projection_influence[row]
            assert (row in silent) == (not scores.projection_influence[row].any())
        near(scores.influence, layers, 1e-12)


@pytest.mark.parametrize("name", MIXTURES)
def test_ekfac_is_its_dense_form_with_the_positions_each_expert_was_given(name):
    scores = solve(kept(name), estimator="ekfac", damping=100.0)
    factors = position_factors(mixture(name))
    for row, (train, v) in enumerate(blocks(name)):
        if v.any():
            shape = (len(v) // RANK, RANK)
            expected = dense_ekfac(train, v, rule(train, 100.0), shape, factors[row])
            near(scores.projection_influence[row], expected)
        else:
            assert not scores.projection_influence[row].any()


class Watch(TorchFunctionMode):
    """Inputs and outputs of every product with a matrix that lies in a parameter."""

    def __init__(self, model):
        super().__init__()
        self.seen, self.kept = {}, []
        self.places = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        products = (torch.nn.functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__)
        if func in products and args[1].untyped_storage().data_ptr() in self.places:
            output.retain_grad()
            place = args[1].untyped_storage().data_ptr(), args[1].storage_offset()
            self.seen.setdefault(place, []).append((args[0].detach(), output))
        return output


def position_factors(model):
    """For each projection E[u u^T] and E[e e^T] of its own positions, u = A a."""
    projections = find_decoder_layers(model).projections
    lora = FreshLora(RANK, ALPHA, SEED)
    with Watch(model) as watch:
        for sample in TRAIN:
            completion_loss(model, sample).backward()
    factors = []
    for projection in projections:
        weight = own_part(projection, projection.parameter.data)
        pairs = watch.seen.get((weight.untyped_storage().data_ptr(), weight.storage_offset()), [])
        down = lora.down(projection).double()
        pairs = [(a.flatten(0, -2) @ down.T, y.grad.flatten(0, -2)) for a, y in pairs]
        factors.append(kronecker_factors(pairs) if pairs else None)
    return factors


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("estimator", ["datainf", "cosine"])
def test_all_weights_have_autograds_gradient_of_the_expert(name, estimator):
    scores = measure(mixture(name), subspace="full", estimator=estimator)
    for row, (train, v) in enumerate(blocks(name, "full")):
        near(scores.projection_influence[row], dense(estimator, train, v), 1e-4)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_layer_as_one_block_counts_its_idle_experts_parameters(name):
    scores = solve(kept(name), estimator="exact", block="layer", damping=10.0)
    found = blocks(name)
    for layer in range(4):
        rows = [i for i, p in enumerate(scores.projections) if p.layer == layer]
        train = np.concatenate([found[i][0] for i in rows], axis=1)
        v = np.concatenate([found[i][1] for i in rows])
        near(scores.influence[layer], woodbury(train, v, rule(train, 10.0)))


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("estimator", ["datainf", "ekfac"])
def test_how_samples_are_batched_and_kept_changes_nothing(name, estimator):
    first = solve(kept(name), estimator=estimator)
    ways = [
        {"keep": "passes", "batch_tokens": 100},
        {"keep": "memory", "gradient_checkpointing": True},
    ]
    for way in ways:
        found = measure(mixture(name), estimator=estimator, **way)
        near(found.projection_influence, first.projection_influence, 1e-4)
        assert found.record.silent_blocks == first.record.silent_blocks


@pytest.mark.parametrize("name", MIXTURES)
def test_idle_experts_are_named_silent_and_have_no_damping(name):
    scores = solve(kept(name))
    projections = find_decoder_layers(mixture(name)).projections
    silent = [projections[row].key for row in idle(projections)]
    assert scores.record.silent_blocks == silent
    assert {scores.record.blocks[key].damping for key in silent} == {0.0}
    assert [p.numel for p in scores.projections] == [p.numel for p in projections]


# Half precision sends some tokens of the hybrid with linear attention to other experts.
@pytest.mark.parametrize("name", [name for name in MIXTURES if "qwen" not in name])
def test_half_precision_has_nearly_the_gradients_of_full(name):
    """The same weights in float32, whose influence is nearly that of bfloat16's passes."""
    low = mixture(name, torch.bfloat16)
    full = mixture(name, torch.float32)
    full.load_state_dict({k: v.float() for k, v in low.state_dict().items()})
    one, other = (measure(m, estimator="grad_dot") for m in (low, full))
    assert np.corrcoef(one.influence.ravel(), other.influence.ravel())[0, 1] > 0.95
    assert one.record.silent_blocks == other.record.silent_blocks
