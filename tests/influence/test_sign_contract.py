"""The sign and the size of influence, from models that are really retrained.

A LoRA at one projection of a tiny Llama is trained to a minimum of

    F(theta) = 1/n sum_i w_i l_i(theta) + lambda/2 |theta - theta_0|^2,   w = 1.

There d theta / d w_i = -1/n H^-1 g_i with H = mean_i Hess(l_i) + lambda I, so the validation loss
falls by v^T H^-1 g_i / n for each unit of w_i. This is I_i / n with the Hessian of the loss where
`exact` has mean g_i g_i^T. So each sample is weighted up and down, the LoRA trained to the new
minimum, and the fall of the validation loss set beside what `score` predicts from the gradients.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig
from scipy.stats import pearsonr
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.data.base import Example
from layerif.data.batching import Batch, collate
from layerif.data.tokenizing import encode
from layerif.influence.scoring import score
from layerif.influence.subspaces.lora import FreshLora
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import find_decoder_layers

RANK, ALPHA = 2, 4.0
AT = "layers.1.mlp.down_proj"
EPSILON = 0.03
# B alone is close to a linear model, where the Hessian and the mean of g g^T agree nearly. A and B
# bend the loss by their product, which that mean does not hold: a larger lambda outweighs it.
RIDGES = {"B": 0.1, "A and B": 1.0}
# Sums modulo 10: those of the validation are not among those that are trained on.
PAIRS = [(a, b) for a in range(6) for b in range(6)]
TRAIN, VALIDATION = (
    [
        Example(f"{a}+{b}=", f"{(a + b) % 10}.")
        for row, (a, b) in enumerate(PAIRS)
        if row % 3 in rows
    ]
    for rows in ((0, 1), (2,))
)


class Retrained(NamedTuple):
    """A trained model, and what reweighting did.

    Attributes:
        model: at the minimum, with the adapter in it.
        change: (n,) fall of the validation loss for each unit of a sample's weight.
        newton: (n,) the same by the formula above, with the true Hessian.
    """

    model: Any
    change: np.ndarray
    newton: np.ndarray


class Problem:
    """F and its derivatives in the LoRA's weights, which stand in the model."""

    def __init__(self, model: nn.Module, weights: list[nn.Parameter], ridge: float) -> None:
        self.model, self.weights, self.ridge = model, weights, ridge
        self.start = self.theta
        self.train, self.validation = (batch_of(examples) for examples in (TRAIN, VALIDATION))

    @property
    def theta(self) -> torch.Tensor:
        return nn.utils.parameters_to_vector(self.weights).detach().clone()

    @theta.setter
    def theta(self, values: torch.Tensor) -> None:
        nn.utils.vector_to_parameters(values, self.weights)

    def losses(self, batch: Batch) -> torch.Tensor:
        return row_sums(token_losses(self.model, batch), batch) / batch.counts

    def flat(self, value: torch.Tensor, **graph: bool) -> torch.Tensor:
        gradients = torch.autograd.grad(value, self.weights, **graph)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def gradient(self, sample_weights: torch.Tensor) -> torch.Tensor:
        """Of F; the quadratic term by hand."""
        mean = (sample_weights * self.losses(self.train)).mean()
        return self.flat(mean) + self.ridge * (self.theta - self.start)

    def hessian(self) -> torch.Tensor:
        """Of F with all weights 1, row by row."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            gradient = self.flat(self.losses(self.train).mean(), create_graph=True)
            rows = [self.flat(entry, retain_graph=True) for entry in gradient]
        return torch.stack(rows) + self.ridge * torch.eye(len(rows), dtype=gradient.dtype)

    def minimise(self, sample_weights: torch.Tensor, inverse: torch.Tensor) -> None:
        """Steps with the inverse Hessian of a point nearby, until the gradient is gone."""
        for _ in range(60):
            gradient = self.gradient(sample_weights)
            if gradient.norm() < 1e-11:
                return
            self.theta = self.theta - inverse @ gradient
        pytest.fail(f"the gradient of the reweighted loss is still {gradient.norm():.1e}")

    def descend(self) -> None:
        """From the start to near the minimum."""
        optimizer = torch.optim.LBFGS(
            self.weights, max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            offset = nn.utils.parameters_to_vector(self.weights) - self.start
            value = self.losses(self.train).mean() + self.ridge / 2 * offset @ offset
            value.backward()
            return value

        optimizer.step(closure)
        optimizer.zero_grad()


def batch_of(examples: list[Example]) -> Batch:
    items, _ = encode(tiny_tokenizer(), [(e.prompt, e.completion) for e in examples], 64)
    return collate(items, device=torch.device("cpu"))


def float64_model() -> Any:
    """A tiny Llama whose norms are float64, too; those of transformers are always float32."""
    model = tiny_model("llama", torch.float64)
    for parent in [*model.modules()]:
        for name, module in parent.named_children():
            if isinstance(module, LlamaRMSNorm):
                norm = nn.RMSNorm(len(module.weight), module.variance_epsilon)
                norm.weight = module.weight
                setattr(parent, name, norm)
    return model


@cache
def retrained(trains: str) -> Retrained:
    """The LoRA's A and B trained, or its B alone, and retrained with each sample weighted anew."""
    model = float64_model()
    projection = next(p for p in find_decoder_layers(model).projections if p.key == AT)
    down = FreshLora(RANK, ALPHA, seed=0).down(projection)
    model.add_adapter(
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["down_proj"], layers_to_transform=[1])
    )
    model.eval()
    layer = model.model.layers[1].mlp.down_proj
    a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    a.data, b.data = down.double(), torch.zeros_like(b, dtype=torch.float64)
    problem = Problem(model, [b] if trains == "B" else [a, b], RIDGES[trains])
    ones = torch.ones(len(TRAIN), dtype=torch.float64)
    problem.descend()
    problem.minimise(ones, problem.hessian().inverse())
    hessian = problem.hessian()
    assert torch.linalg.eigvalsh(hessian)[0] > 0, "not a minimum"
    inverse, minimum = hessian.inverse(), problem.theta
    v = problem.flat(problem.losses(problem.validation).mean())
    rows = [problem.flat(loss, retain_graph=True) for loss in problem.losses(problem.train)]
    newton = torch.stack(rows) @ inverse @ v / len(TRAIN)
    change = []
    for sample in range(len(TRAIN)):
        after = []
        for sign in (1, -1):
            weights = ones.clone()
            weights[sample] += sign * EPSILON
            problem.theta = minimum
            problem.minimise(weights, inverse)
            with torch.no_grad():
                after.append(problem.losses(problem.validation).mean().item())
        change.append(-(after[0] - after[1]) / (2 * EPSILON))
    problem.theta = minimum
    return Retrained(model, np.array(change), newton.numpy())


def predicted(found: Retrained, trains: str, estimator: str) -> np.ndarray:
    """(n,) I / n by the engine, in the block of all that was trained."""
    model, subspace = found.model, "adapter"
    if trains == "B":
        # The engine's LoRA has the A that was trained with; its B is 0 where the model stands.
        model = float64_model()
        layer = found.model.model.layers[1].mlp.down_proj
        model.model.layers[1].mlp.down_proj.weight.data += layer.get_delta_weight("default")
        subspace = FreshLora(RANK, ALPHA, seed=0)
    scores = score(
        model,
        tiny_tokenizer(),
        TRAIN,
        VALIDATION,
        subspace=subspace,
        estimator=estimator,
        damping_value=RIDGES[trains],
        block="projection",
    )
    rows = [
        i for i, p in enumerate(scores.projections) if f"layers.{p.layer}.{p.name}".startswith(AT)
    ]
    return scores.projection_influence[rows].sum(0) / len(TRAIN)


@pytest.mark.parametrize("trains", list(RIDGES))
def test_reweighting_does_what_the_true_hessian_says(trains):
    found = retrained(trains)
    np.testing.assert_allclose(found.newton, found.change, atol=2e-3 * np.ptp(found.change))


@pytest.mark.parametrize("trains", list(RIDGES))
@pytest.mark.parametrize(
    ("estimator", "least"), [("exact", 0.9), ("datainf", 0.5), ("grad_dot", 0.5)]
)
def test_samples_that_help_have_positive_influence(trains, estimator, least):
    change, influence = retrained(trains).change, predicted(retrained(trains), trains, estimator)
    correlation = pearsonr(influence, change).statistic
    # Not centred, so that the zero between help and harm counts, too.
    cosine = influence @ change / np.linalg.norm(influence) / np.linalg.norm(change)
    print(f"{estimator}, {trains}: correlation {correlation:.3f}, cosine {cosine:.3f}")
    assert min(change) < 0 < max(change)
    assert correlation > least
    assert cosine > least
