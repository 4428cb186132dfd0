"""From scores to plans: exact totals, published vectors, what is recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from helpers.artifact_samples import MODEL, make_scores
from layerif.artifacts import LayerScores, ModelInfo, Plan
from layerif.core.choices import Aggregation
from layerif.errors import InputError
from layerif.plans.allocate import (
    allocate,
    allocate_experts,
    allocate_ranks,
    allocate_sparsity,
)
from layerif.plans.maps.scores import ConstantScoresError
from layerif.plans.named import find_plan

AGGREGATIONS = get_args(Aggregation)
VECTOR = [0.3, 2.0, -1.0, 0.7, 1.1]


@pytest.fixture(scope="module")
def mistral(paper: dict[str, Any]) -> ModelInfo:
    layers = paper["shape"]["layers"]
    return ModelInfo(
        name="Mistral-7B-v0.1",
        architecture="MistralForCausalLM",
        layers=layers,
        layer_sizes=[sum(paper["shape"]["numel"])] * layers,
    )


def weighted_mean(plan: Plan, sizes: list[int]) -> float:
    return fsum(s * n for s, n in zip(plan.allocation, sizes, strict=True)) / sum(sizes)


class TestSparsity:
    def test_agrees_with_the_published_vector(
        self, paper: dict[str, Any], mistral: ModelInfo
    ) -> None:
        # Would see: another epsilon, smoothing where none was asked, an orientation turned around.
        # The published values are of single precision.
        raw = paper["influence_raw_minmax"]
        plan = allocate_sparsity(raw, 0.7, epsilon=0.2, smooth=False, model=mistral)
        published = paper["sparsity_from_raw_S0.7_eps0.2"]
        np.testing.assert_allclose(plan.allocation, published, rtol=0, atol=5e-8)
        assert plan.total == 0.7
        assert plan.model == mistral
        assert plan.sizes == mistral.layer_sizes

    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.95, 1.0])
    @pytest.mark.parametrize("scores", [make_scores(), VECTOR], ids=["influence", "vector"])
    def test_weighted_mean_is_exact_for_layers_of_unequal_size(
        self, scores: Any, sparsity: float
    ) -> None:
        # Would see: a plain mean over layers; the sizes differ by more than a factor of two.
        model = None if isinstance(scores, LayerScores) else MODEL
        plan = allocate_sparsity(scores, sparsity, epsilon=0.5, model=model)
        assert weighted_mean(plan, MODEL.layer_sizes) == pytest.approx(sparsity, abs=1e-12)
        assert plan.total == sparsity
        assert plan.model == MODEL

    def test_without_a_model_layers_count_alike(self) -> None:
        plan = allocate_sparsity(VECTOR, 0.5, epsilon=0.3)
        assert fsum(plan.allocation) / 5 == pytest.approx(0.5, abs=1e-12)
        assert plan.model is None
        assert plan.sizes is None

    @pytest.mark.parametrize("how", AGGREGATIONS)
    def test_every_aggregation_is_the_one_asked_for(self, how: Aggregation) -> None:
        scores = make_scores()
        plan = allocate_sparsity(scores, 0.5, aggregate=how)
        plain = allocate_sparsity(scores.aggregate(how), 0.5, model=MODEL)
        assert plan.allocation == plain.allocation
        assert plan.how["aggregate"] == how

    def test_aggregations_lead_to_different_plans(self) -> None:
        plans = {
            tuple(allocate_sparsity(make_scores(), 0.5, aggregate=how).allocation)
            for how in AGGREGATIONS
        }
        assert len(plans) == len(AGGREGATIONS)

    @pytest.mark.parametrize("smooth", [True, False])
    def test_direct_prunes_high_scores_more_and_inverse_less(self, smooth: bool) -> None:
        rising = np.arange(7.0)
        direct = allocate_sparsity(rising, 0.5, smooth=smooth).allocation
        inverse = allocate_sparsity(rising, 0.5, smooth=smooth, orientation="inverse").allocation
        assert (np.diff(direct) > 0).all()
        assert (np.diff(inverse) < 0).all()

    def test_records_metric_map_and_parameters(self) -> None:
        plan = allocate_sparsity(
            make_scores(), 0.5, aggregate="top", epsilon=0.2, orientation="inverse", s_max=0.9
        )
        assert plan.how == {
            "metric": "influence",
            "aggregate": "top",
            "estimator": "datainf",
            "task": "mrpc",
            "map": "layerif",
            "epsilon": 0.2,
            "smoothing_window": 5,  # of 7 wanted: there are five layers
            "orientation": "inverse",
            "s_max": 0.9,
        }
        assert allocate_sparsity(VECTOR, 0.5, smooth=False).how["smoothing_window"] is None
        assert allocate_sparsity(range(4), 0.5).how["smoothing_window"] is None
        assert allocate_sparsity(range(9), 0.5).how["smoothing_window"] == 7
        assert allocate_sparsity(VECTOR, 0.5).how["metric"] == "given"
        in_memory = make_scores()
        record = in_memory.record.model_copy(update={"task": None})
        assert allocate_sparsity(replace(in_memory, record=record), 0.5).how["task"] is None

    def test_smoothing_is_on_unless_refused(self) -> None:
        zigzag = [0.0, 1.0] * 4
        smoothed, plain = (allocate_sparsity(zigzag, 0.5, smooth=s) for s in (True, False))
        assert smoothed.allocation == allocate_sparsity(zigzag, 0.5).allocation
        assert smoothed.allocation != plain.allocation

    def test_uniform_takes_no_notice_of_the_scores(self) -> None:
        for scores in (make_scores(), VECTOR, [1.0] * 5):
            plan = allocate_sparsity(scores, 0.6, map="uniform")
            assert plan.allocation == [0.6] * 5
            assert plan.how == {"map": "uniform"}

    def test_the_uniform_plan_keeps_to_s_max_too(self) -> None:
        with pytest.raises(InputError, match="s_max"):
            allocate_sparsity(make_scores(), 0.6, map="uniform", s_max=0.5)

    def test_no_layer_exceeds_s_max(self) -> None:
        plan = allocate_sparsity(make_scores(), 0.6, epsilon=1.0, s_max=0.7)
        assert max(plan.allocation) == 0.7
        assert weighted_mean(plan, MODEL.layer_sizes) == pytest.approx(0.6, abs=1e-12)

    def test_plans_survive_a_file(self, tmp_path: Path) -> None:
        # Would see: a total that no longer holds once the numbers went through text.
        plan = allocate_sparsity(make_scores(), 0.7, epsilon=0.37)
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        plan.check_fits(MODEL, "sparsity")


class TestExperts:
    def test_agrees_with_mola(self, paper: dict[str, Any], mistral: ModelInfo) -> None:
        raw = paper["influence_raw_minmax"]
        plan = allocate_experts(raw, 160, map="mola", model=mistral)
        published = paper["experts_T160"]["MoLA-2468"]
        assert plan.allocation == published
        assert plan.total == 160
        assert plan.how == {"map": "mola", "shape": [2, 4, 6, 8]}
        turned = allocate_experts(raw, 160, map="mola", shape=[8, 6, 4, 2])
        assert turned.allocation == published[::-1]

    @pytest.mark.parametrize("how", AGGREGATIONS)
    @pytest.mark.parametrize("total", [5, 6, 17, 40])
    def test_total_is_exact_and_every_layer_has_one(self, how: Aggregation, total: int) -> None:
        scores = make_scores()
        plan = allocate_experts(scores, total, aggregate=how)
        assert sum(plan.allocation) == total == plan.total
        assert min(plan.allocation) >= 1
        assert {type(value) for value in plan.allocation} == {int}
        assert plan.allocation == allocate_experts(scores.aggregate(how), total).allocation
        assert plan.how["aggregate"] == how

    def test_direct_gives_high_scores_more_and_inverse_fewer(self) -> None:
        scores = [1.0, 2.0, 3.0, 4.0]
        direct = allocate_experts(scores, 20).allocation
        assert direct == sorted(direct)
        assert direct[0] < direct[-1]
        assert allocate_experts(scores, 20, orientation="inverse").allocation == direct[::-1]

    def test_larger_beta_is_more_unequal(self) -> None:
        highest = [
            max(allocate_experts(VECTOR, 40, beta=beta).allocation) for beta in (0.5, 1, 3, 9)
        ]
        assert highest == sorted(set(highest))

    def test_records_metric_map_and_parameters(self) -> None:
        plan = allocate_experts(make_scores(), 30, aggregate="all", beta=2.5)
        assert plan.how == {
            "metric": "influence",
            "aggregate": "all",
            "estimator": "datainf",
            "task": "mrpc",
            "map": "power",
            "beta": 2.5,
            "orientation": "direct",
            "normalise": "minmax",
            "compat": "none",
        }
        assert plan.model == MODEL
        assert plan.sizes == MODEL.layer_sizes

    def test_uniform_takes_no_notice_of_the_scores(self) -> None:
        plan = allocate_experts([3.0] * 4, 10, map="uniform")
        assert plan.allocation == [3, 3, 2, 2]
        assert plan.how == {"map": "uniform"}

    def test_plans_survive_a_file(self, tmp_path: Path) -> None:
        plan = allocate_experts(make_scores(), 33)
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        plan.check_fits(MODEL, "experts")

    @pytest.mark.parametrize("map", ["power", "mola", "uniform"])
    def test_fewer_experts_than_layers_are_refused(self, map: Any) -> None:
        with pytest.raises(InputError, match=r"total of 4 .*5 layers"):
            allocate_experts(VECTOR, 4, map=map)

    def test_alphalora_is_within_one_of_the_published_vector(self, paper: dict[str, Any]) -> None:
        # Would see: alphas brought to [0, 1] first, or a residual spread over layers.
        alphas = np.mean(paper["pl_alpha_per_projection"], axis=1)
        published = np.array(paper["experts_T160"]["AlphaLoRA beta=2.5 (README)"])
        options: dict[str, Any] = {"beta": 2.5, "normalise": "none"}
        plan = allocate_experts(alphas, 160, compat="authors", **options)
        assert np.abs(np.array(plan.allocation) - published).max() <= 1
        assert (plan.how["normalise"], plan.how["compat"]) == ("none", "authors")
        # By largest remainders it is so, too, and one that is another.
        exact = allocate_experts(alphas, 160, **options).allocation
        assert np.abs(np.array(exact) - published).max() <= 1
        assert exact != plan.allocation
        assert np.abs(allocate_experts(alphas, 160, beta=2.5).allocation - published).max() > 1


class TestRanks:
    @pytest.mark.parametrize("options", [{}, {"beta": 1.0, "orientation": "inverse"}])
    @pytest.mark.parametrize("map", ["power", "mola", "uniform"])
    def test_are_given_out_as_experts_are(self, map: Any, options: dict[str, Any]) -> None:
        plan = allocate_ranks(make_scores(), 40, map=map, aggregate="top", **options)
        experts = allocate_experts(make_scores(), 40, map=map, aggregate="top", **options)
        assert plan.kind == "ranks"
        assert sum(plan.allocation) == 40 == plan.total
        assert plan.model_dump(exclude={"kind"}) == experts.model_dump(exclude={"kind"})

    def test_plans_survive_a_file(self, tmp_path: Path) -> None:
        plan = allocate_ranks(make_scores(), 33)
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        plan.check_fits(MODEL, "ranks")
        with pytest.raises(InputError, match=r"ranks; .*sparsity"):
            plan.check_fits(MODEL, "sparsity")


ALLOCATE: dict[str, Callable[..., Plan]] = {
    "sparsity": lambda scores, **options: allocate_sparsity(scores, 0.5, **options),
    "experts": lambda scores, **options: allocate_experts(scores, 10, **options),
    "ranks": lambda scores, **options: allocate_ranks(scores, 10, **options),
}


@pytest.mark.parametrize("kind", ALLOCATE)
class TestEveryKind:
    def test_scores_that_are_all_equal_are_an_error(self, kind: str) -> None:
        with pytest.raises(ConstantScoresError, match="all 5 are 2"):
            ALLOCATE[kind]([2.0] * 5)

    def test_scores_that_are_all_equal_give_the_uniform_plan_where_asked(self, kind: str) -> None:
        plan = ALLOCATE[kind]([2.0] * 5, on_constant="uniform")
        assert plan.allocation == ALLOCATE[kind]([2.0] * 5, map="uniform").allocation

    def test_negative_of_samples_that_all_help_says_nothing(self, kind: str) -> None:
        # Real: on plain text every sample helps every layer.
        scores = make_scores(np.random.default_rng(0).uniform(0.1, 1.0, (5, 12)))
        with pytest.raises(ConstantScoresError, match="all 5 are 0"):
            ALLOCATE[kind](scores, aggregate="negative")
        ALLOCATE[kind](scores, aggregate="positive")

    def test_unknown_words_are_answered_with_the_known_ones(self, kind: str) -> None:
        words = {"map": "cubic", "aggregate": "median", "orientation": "sideways"}
        for option, value in {**words, "on_constant": "guess"}.items():
            with pytest.raises(InputError, match=f"{option}='{value}': expected one of '"):
                ALLOCATE[kind](VECTOR, **{option: value})

    def test_scores_of_another_number_of_layers_than_the_model_are_refused(self, kind: str) -> None:
        with pytest.raises(InputError, match=r"4 scores, .*tiny/llama has 5"):
            ALLOCATE[kind](VECTOR[:4], model=MODEL)

    @pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], [1.0, np.nan], ["a", "b"], [1, [2, 3]]])
    def test_what_is_not_one_number_a_layer_is_refused(self, kind: str, scores: Any) -> None:
        with pytest.raises(InputError, match=r"^the scores "):
            ALLOCATE[kind](scores)


@pytest.mark.parametrize(("kind", "total"), [("sparsity", 0.5), ("experts", 20), ("ranks", 20)])
def test_shuffled_scores_give_the_same_levels_to_other_layers(kind, total):
    scores = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0]
    options = {"smooth": False} if kind == "sparsity" else {}
    plain = allocate(scores, kind, total, **options)
    shuffled = allocate(scores, kind, total, shuffle=0, **options)
    assert sorted(shuffled.allocation) == pytest.approx(sorted(plain.allocation))
    assert shuffled.allocation != plain.allocation
    assert shuffled.how["shuffle"] == 0
    assert "shuffle" not in plain.how


@pytest.mark.parametrize(("name", "place", "sign"), [("spare-first", 0, -1), ("prune-last", 5, 1)])
def test_controls_move_one_layer_alone(name, place, sign):
    scores = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0]
    (plan,) = find_plan(name, "sparsity").plans("sparsity", 0.5, lambda *_: scores)
    others = [level for layer, level in enumerate(plan.allocation) if layer != place]
    assert others == pytest.approx([others[0]] * 5)
    assert plan.allocation[place] - others[0] == pytest.approx(sign * 0.2)
    assert plan.realised_total == pytest.approx(0.5)
    assert plan.how == {"map": name.replace("-", "_"), "by": 0.2}
