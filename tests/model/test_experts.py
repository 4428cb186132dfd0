"""Experts of a mixture, each as linear maps of their own, against autograd and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.architecture_checks import CHECKS, samples
from helpers.architectures import tiny_architecture
from helpers.tiny import tiny_model
from layerif.calibration.statistics import observed
from layerif.data.batching import collate
from layerif.errors import InputError, NumericalError
from layerif.influence.doctor import literal_gradients
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspaces.full import FullWeights
from layerif.model.expert_calls import expert_calls
from layerif.model.experts import every_expert
from layerif.model.layers import find_decoder_layers
from layerif.model.modes import checkpointed

POPULAR = [
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "granitemoehybrid",
    "lfm2",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "qwen3_5_moe_text",
    "qwen3_next",
]
FUSED = ["mixtral", "gpt_oss", "dbrx", "jetmoe", "llama4_text"]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", POPULAR)
def test_popular_architectures_pass_every_check(name, check, tmp_path):
    CHECKS[check](name, tmp_path)


def per_sample(model):
    projections = find_decoder_layers(model).projections
    matrices = FullWeights().matrices(projections)
    with frozen(model), PerSampleGradients(model, projections, matrices) as gradients:
        return gradients(collate(samples(), device="cpu"))


def largest_difference(model):
    _, found = per_sample(model)
    worst = 0.0
    for row, item in enumerate(samples()):
        for index, expected in literal_gradients(
            model, find_decoder_layers(model).projections, item
        ):
            scale = max(expected.norm().item(), 1e-30)
            worst = max(worst, (found[index][row] - expected).norm().item() / scale)
    return worst


@pytest.mark.parametrize("name", [*FUSED, "zaya", "longcat_flash"])
@pytest.mark.parametrize("check", ["gradients", "Wanda"])
def test_experts_that_are_called_in_other_ways(name, check, tmp_path):
    CHECKS[check](name, tmp_path)


@pytest.mark.parametrize("name", FUSED)
def test_every_expert_is_a_projection_that_is_a_view(name):
    model = tiny_architecture(name)
    experts = [p for p in find_decoder_layers(model).projections if p.fused is not None]
    sizes = {id(p.parameter): p.parameter.numel() for p in experts}
    assert sum(p.numel for p in experts) == sum(sizes.values())
    for projection in experts:
        assert projection.weight.shape == (projection.out_features, projection.in_features)
        projection.weight.zero_()
    assert not any(p.parameter.any() for p in experts)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_how_experts_are_called_changes_nothing(name):
    results = []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = tiny_architecture(name)
        model.set_experts_implementation(implementation)
        results.append(per_sample(model)[1])
        assert model.config._experts_implementation == implementation
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


class Routed(nn.Module):
    """Experts that are modules of their own, as in code that models bring."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 5), nn.SiLU(), nn.Linear(5, width)) for _ in range(3)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(2, dim=-1)
        output = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == index)
            output.index_add_(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return output.view_as(hidden)


def test_experts_of_their_own_modules():
    model = tiny_model("llama", torch.float64)
    for layer in model.model.layers:
        layer.mlp = Routed(32).double()
    names = {p.name for p in find_decoder_layers(model).projections}
    assert "mlp.experts.2.0" in names
    assert "mlp.gate" not in names
    assert largest_difference(model) < 1e-6


class Turned(nn.Module):
    """Given all tokens in another order in the first batch, and as they are in those after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(width, 5), nn.Linear(5, width))])
        self.calls = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.calls > 1:
            return self.experts[0](flat).view_as(hidden)
        order = torch.arange(len(flat)).flip(0)
        return (
            torch.zeros_like(flat).index_add(0, order, self.experts[0](flat[order])).view_as(hidden)
        )


def test_what_was_chosen_in_one_batch_is_not_meant_in_the_next():
    model = tiny_model("llama", torch.float64)
    for layer in model.model.layers:
        layer.mlp = Turned(32).double()
    projections = find_decoder_layers(model).projections
    matrices = FullWeights().matrices(projections)
    batch = collate(samples(), device="cpu")
    with frozen(model), PerSampleGradients(model, projections, matrices) as gradients:
        first, second = gradients(batch)[1], gradients(batch)[1]
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_an_expert_without_a_token_has_no_gradient():
    model = tiny_architecture("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # a tie, the same for every token
    _, found = per_sample(model)
    reached: dict[str, int] = {}
    for projection, gradient in zip(find_decoder_layers(model).projections, found, strict=True):
        if projection.fused is not None:
            reached[projection.fused] = reached.get(projection.fused, 0) + bool(gradient.any())
    assert set(reached.values()) == {2}


def test_a_weight_that_is_used_the_other_way_round_is_refused():
    model = tiny_architecture("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.is_transposed = True
    projections = find_decoder_layers(model).projections
    with expert_calls(projections), pytest.raises(InputError, match="other way round"):
        model(input_ids=torch.arange(3, 20)[None])


def test_routers_convolutions_and_states_are_left_as_they_are():
    layers = find_decoder_layers(tiny_architecture("granitemoehybrid"))
    rest = {name.split(".", 2)[2] for name, _ in layers.rest}
    assert rest == {"block_sparse_moe.router.weight", "mamba.conv1d.weight"}
    assert not any("router" in p.name for p in layers.projections)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "dbrx"])
def test_every_expert_sees_every_token_once(name):
    model = tiny_architecture(name)
    layer = find_decoder_layers(model).modules[1]
    projections = find_decoder_layers(model).of(1)
    ids = torch.arange(3, 27)[None]
    expected = model(input_ids=ids).logits
    seen: dict[str, int] = {}

    def count(key, inputs):
        seen[key] = seen.get(key, 0) + inputs[..., 0].numel()

    with observed(projections, count), every_expert(layer, projections):
        found = model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert {seen[p.key] for p in projections} == {24}


def test_experts_that_cannot_be_chosen_are_named():
    model = tiny_architecture("jetmoe")
    layers = find_decoder_layers(model)
    with (
        pytest.raises(InputError, match="JetMoeParallelExperts"),
        every_expert(layers.modules[0], layers.of(0)),
    ):
        pass


def test_parameters_that_lie_in_one_storage():
    model = tiny_architecture("mixtral", torch.float64)
    model.set_experts_implementation("eager")
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = whole[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    assert largest_difference(model) < 1e-5


def test_parts_of_an_expert_are_refused():
    model = tiny_architecture("mixtral")
    experts = model.model.layers[0].mlp.experts

    def halves(hidden, _index, _weights):
        half = experts.gate_up_proj[0][: experts.gate_up_proj.shape[1] // 2]
        return hidden * nn.functional.linear(hidden, half).sum()

    experts.forward = halves
    with pytest.raises(InputError, match="parts"):
        per_sample(model)


class Trained(Routed):
    """Tokens repeated for each of their experts, and chosen by a mask, as DeepSeek's code does."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(2, dim=-1)
        repeated, given = flat.repeat_interleave(2, dim=0), chosen.view(-1)
        output = torch.empty_like(repeated)
        for index, expert in enumerate(self.experts):
            output[given == index] = expert(repeated[given == index])
        return (output.view(*weights.shape, -1) * weights[..., None]).sum(1).view_as(hidden)


class Backwards(Routed):
    """All tokens in another order; what is written to is chosen after what is read from."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        order = torch.arange(len(flat)).flip(0)
        output, given = torch.zeros_like(flat), flat[order]
        for expert in self.experts:
            output[order] += expert(given)
        return output.view_as(hidden)


class Named(Routed):
    """A choice by the names of its arguments."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        chosen = self.gate(flat).argmax(-1)
        output = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero()[:, 0]
            output.index_add_(0, rows, expert(torch.index_select(flat, dim=0, index=rows)))
        return output.view_as(hidden)


class Halves(Routed):
    """One expert, given two halves of the tokens, the second in a way that is not followed."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        first, second = torch.arange(len(flat)).view(2, -1)
        others = torch.take_along_dim(flat, second[:, None], 0)
        return torch.cat([self.experts[0](flat[first]), self.experts[0](others)]).view_as(hidden)


class PositionsFirst(Routed):
    """Hidden states as (positions, batch, width)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.experts[0](hidden.transpose(0, 1)).transpose(0, 1)


def with_mixtures(kind):
    model = tiny_model("llama", torch.float64)
    for layer in model.model.layers:
        layer.mlp = kind(32).double()
    return model


@pytest.mark.parametrize("kind", [Trained, Backwards, Named])
def test_choices_of_tokens_are_followed(kind):
    assert largest_difference(with_mixtures(kind)) < 1e-6


@pytest.mark.parametrize("kind", [Routed, Trained, Backwards])
def test_choices_of_tokens_are_followed_where_layers_are_run_again(kind):
    model = with_mixtures(kind)
    _, expected = per_sample(model)
    with checkpointed(model.model.layers):
        _, found = per_sample(model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [Halves, PositionsFirst])
def test_an_order_of_tokens_that_is_not_known_is_refused(kind):
    with pytest.raises(InputError, match="order that is not known"):
        per_sample(with_mixtures(kind))


def test_weights_that_are_used_out_of_sight_are_no_silent_zero():
    model = tiny_architecture("mixtral")
    experts = model.model.layers[1].mlp.experts

    def unseen(hidden, _index, _weights):
        inner = torch.einsum("th,eih->tei", hidden, experts.gate_up_proj)
        return hidden + inner.sum((1, 2))[:, None]

    experts.forward = unseen
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.experts"):
        per_sample(model)


def test_a_gate_within_an_expert_is_no_router():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp = Routed(32)
        for expert in layer.mlp.experts:
            expert.gate = nn.Linear(32, 32)
    names = {p.name for p in find_decoder_layers(model).projections}
    assert "mlp.experts.1.gate" in names
    assert "mlp.gate" not in names
