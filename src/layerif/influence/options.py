"""What scoring is asked for: first the gradients, then the influence that is solved from them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from layerif.core.choices import BlockGranularity, Keep, Normalise, PaddingSide
from layerif.core.options import RESULTS_UNCHANGED, Options, Rule, Shown, Values
from layerif.errors import InputError
from layerif.influence.estimators.registry import ESTIMATORS, is_damped, is_iterative
from layerif.influence.subspaces.registry import SUBSPACES, subspace_kind

# At most above every eigenvalue of float32 gradients, and far enough from where float64 ends.
DampingFactor = Annotated[float, Field(gt=0, le=1e100)]


@dataclass(frozen=True)
class Damping:
    """lambda in H = mean_i g_i g_i^T + lambda I: a rule, or a number.

    Attributes:
        factor: of the rule lambda = factor * mean_i |g_i|^2 / d, for each block by itself. The mean
            of H's eigenvalues without lambda is mean |g|^2 / d, so 0.1 is a tenth of it.
        value: lambda itself in every block, in place of the rule; unit of a squared gradient.
    """

    factor: float = 0.1
    value: float | None = None

    def of(self, mean_square: float, size: int) -> float:
        """lambda of a block with mean_i |g_i|^2 = `mean_square` and d = `size`.

        It is 0 for a silent block, one without any gradient, whatever the rule or the number.
        """
        if mean_square == 0:
            return 0.0
        return self.factor * mean_square / size if self.value is None else self.value


class ProbeOptions(Options):
    """What gradients of a fresh LoRA depend on."""

    title = "Gradients"

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the LoRA subspace."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Alpha of the LoRA subspace."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens kept of an example; a longer prompt is cut from the left."""
    batch_tokens: Annotated[int, Field(ge=1)] = 1024
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""


class CollectOptions(ProbeOptions):
    """Whose gradients are collected, and where they are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "rank alpha",
            lambda v: v["subspace"] == "fresh_lora" or bool(v.get("warmup_steps")),
            "with {subspace} fresh_lora, or with {warmup_steps}",
        ),
        Rule("size", lambda v: v["subspace"] == "two_sided", "with {subspace} two_sided"),
        Rule(
            "adapter warmup_steps",
            lambda v: v["subspace"] == "adapter",
            "with {subspace} adapter",
        ),
    )

    subspace: Annotated[Any, SUBSPACES] = "fresh_lora"
    """Whose gradients are compared: those of a fresh LoRA on every projection (fresh_lora), of
    random projections of the weights (two_sided), of all weights (full), or of an adapter."""
    size: Annotated[int, Field(ge=1)] = 16
    """Size of the two-sided projections."""
    adapter_name: str = "default"
    """Which adapter, where the folder or model holds several."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Fine-tune a fresh LoRA on the training samples for this many steps, score it, and remove
    it; for the subspace adapter."""
    keep: Annotated[Keep, RESULTS_UNCHANGED] = "auto"
    """Where training gradients are kept; passes keeps none and computes them again."""
    memory: Annotated[
        float | None, Field(gt=0), RESULTS_UNCHANGED, Shown("nine tenths of what is free")
    ] = None
    """GB that gradients and estimator may take."""
    gradient_checkpointing: Annotated[bool, RESULTS_UNCHANGED] = False
    """Run layers again in the backward pass: less memory, a third more time."""
    padding_side: Annotated[PaddingSide, RESULTS_UNCHANGED] = "right"
    """Side of a batch that is padded, which changes rounding alone; padding on the left is masked,
    and float64 models with eager attention cannot take that."""


class SolveOptions(Options):
    """How influence follows from gradients; estimators read their options here."""

    title = "Influence"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "damping",
            lambda v: is_damped(v["estimator"]) and v.get("damping_value") is None,
            "for estimators with a damping, without {damping_value}",
        ),
        Rule(
            "damping_value damping_sweep",
            lambda v: is_damped(v["estimator"]),
            "for estimators with a damping, such as datainf, exact, cg, lissa and ekfac",
        ),
        Rule(
            "tolerance max_iterations",
            lambda v: is_iterative(v["estimator"]),
            "for estimators that iterate, such as cg and lissa",
        ),
    )

    estimator: Annotated[str, ESTIMATORS] = "datainf"
    """How influence is estimated."""
    damping: DampingFactor = 0.1
    """Damping of each block's Hessian: lambda = damping * mean(|g|^2) / d."""
    damping_value: DampingFactor | None = None
    """lambda itself, in place of that rule."""
    damping_sweep: tuple[DampingFactor, ...] = ()
    """More factors, as in 0.01,1,100: how far the ranking of layers depends on them."""
    block: BlockGranularity = "matrix"
    """What one inverse Hessian covers."""
    normalise: Normalise = "none"
    """per_parameter divides the influence of a block by its parameters."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-8
    """Relative residual at which cg and lissa stop."""
    max_iterations: Annotated[int, Field(ge=1)] = 1000
    """Iterations after which cg and lissa stop at the latest."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""

    @property
    def dampings(self) -> tuple[Damping, ...]:
        """What every block is solved at: the damping, and those of the sweep."""
        return (Damping(self.damping, self.damping_value), *map(Damping, self.damping_sweep))

    def check_sweep(self) -> None:
        """Refuse a sweep over a damping that the estimator does not have.

        Raises:
            InputError: there is one.
        """
        if self.damping_sweep and not is_damped(self.estimator):
            raise InputError(
                f"the estimator {self.estimator} has no damping to sweep over; leave out "
                "damping_sweep, or choose datainf, exact or ekfac"
            )


class ScoreOptions(CollectOptions, SolveOptions):
    """How influence is measured."""

    rules: ClassVar[tuple[Rule, ...]] = (*CollectOptions.rules, *SolveOptions.rules)
    # LayerIF's setting (arXiv 2505.23811; its scripts where the paper is silent): 84 steps are its
    # three epochs of MRPC. Not mirrored: dropout of 0.05 in the warm-up, and an end-of-text token.
    presets: ClassVar[Mapping[str, Values]] = {
        "paper": {
            "style": "alpaca",
            "train_samples": 300,
            "validation_samples": 96,
            "subspace": "adapter",
            "rank": 8,
            "alpha": 16.0,
            "warmup_steps": 84,
            "estimator": "datainf",
            "damping": 0.1,
            "block": "matrix",
            "max_length": 256,
        }
    }

    @classmethod
    def preset_options(cls, word: str, given: Container[str]) -> dict[str, Any]:
        """The options of a preset but for those that are given.

        An adapter that is given, or another subspace, takes the place of the preset's warm-up.
        """
        chosen = {name: value for name, value in cls.presets[word].items() if name not in given}
        if "adapter" in given or "subspace" in given:
            chosen.pop("warmup_steps", None)
        return chosen

    def check(self, adapter: object) -> None:
        """Refuse what cannot be scored together, before a model is opened.

        Args:
            adapter: the folder of an adapter that the model is opened with; None for none.

        Raises:
            InputError: options that exclude each other; says which and what helps.
        """
        self.check_sweep()
        kind = subspace_kind(self.subspace)
        if kind.of_adapter and (adapter is None) == (self.warmup_steps == 0):
            raise InputError(
                f"the subspace {self.subspace} needs one adapter: give its folder by adapter=DIR, "
                "or a number of steps by warmup_steps=N to fine-tune a fresh one first"
            )
        if not kind.of_adapter and (self.warmup_steps or adapter is not None):
            raise InputError(
                "an adapter, given or warmed up, is for subspace='adapter', and the subspace is "
                f"{self.subspace}; choose that, or leave the adapter out"
            )
        kept = ESTIMATORS.find(self.estimator).passes is None
        if not kind.formed and (kept or self.keep in ("memory", "disk")):
            raise InputError(
                f"the gradients of the subspace {self.subspace} are never formed, so they cannot "
                "be kept"
                + (f", and the estimator {self.estimator} has them kept" if kept else "")
                + "; use datainf, grad_dot, cosine or ekfac with keep='auto', or another subspace"
            )
        if self.keep == "passes" and kept:
            raise InputError(
                f"the estimator {self.estimator} reads gradients more often than passes can be "
                "afforded; use datainf, grad_dot, cosine or ekfac, or another value of keep"
            )
