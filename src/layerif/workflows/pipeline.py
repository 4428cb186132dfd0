"""Follow a recipe: score, plan, prune by each plan, measure the pruned models and the dense one,
and compare the plans on the same items; and where it asks for that, train the plans of experts.

Each result carries the fingerprint of what it was made from, so that nothing finished is done
twice, a changed option redoes just what depends on it, and an interrupted run goes on after
its last finished step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from layerif.artifacts import SCORES, Comparisons, LayerScores, MetricScores, Plan, Results
from layerif.compress.pruning.options import PruneOptions
from layerif.core.options import Options
from layerif.core.progress import note, progress
from layerif.data import Corpus
from layerif.evaluation.comparison import compare
from layerif.evaluation.options import EvaluateOptions
from layerif.influence.options import ScoreOptions
from layerif.metrics.options import MeasureOptions
from layerif.model.opening import Tokenizer, open_model
from layerif.plans.allocate import allocate
from layerif.plans.named import INFLUENCE, find_plan
from layerif.report.plots import leave_picture, plot_plan, plot_scores
from layerif.search.options import SearchOptions
from layerif.workflows.bench import COMPARISON_FILE
from layerif.workflows.compare_depth import compare_depth
from layerif.workflows.compare_experts import (
    Cells,
    compare_experts,
    plans_of,
    scorer,
)
from layerif.workflows.compare_models import compare_models
from layerif.workflows.folder import RunFolder
from layerif.workflows.options import BitsStudy, DepthStudy, ExpertsStudy
from layerif.workflows.preparing import TITLE, Prepared, prepared
from layerif.workflows.recipe import BitsStage, DepthStage, Recipe
from layerif.workflows.searching import check_unedited, search_into
from layerif.workflows.stages import evaluate_into, measure_into, prune_into, score_into

# Of a run folder, where the trained plans of experts are.
TRAINED_FOLDER = "finetuned"
# And the model quantised by plans of bits.
QUANTIZED_FOLDER = "quantized"
# And what it comes to without some of its layers.
DROPPED_FOLDER = "dropped"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a recipe came to.

    Attributes:
        pruned: results of the dense model, of uniform pruning, of the plans beside, and of pruning
            by LayerIF's plan.
        trained: what the plans of experts came to; empty without the stage `finetune`.
        quantized: results of the dense model and of those quantised by plans of bits; empty without
            the stage `bits`.
        dropped: results of the dense model and of those without some layers; empty without the
            stage `depth`.
    """

    pruned: dict[str, Results]
    trained: dict[str, Cells]
    quantized: dict[str, Results]
    dropped: dict[str, Results]


def run_recipe(
    recipe: Recipe, *, cache: Path | None = None, trust_remote_code: bool = False
) -> Outcome:
    """Carry out a recipe in its run folder.

    The folder ends with `comparison.json`: each plan beside the uniform one, item by item.

    Args:
        recipe: what to do; changed since the folder was written, just what depends on the change
            is done again.
        cache: where likelihoods are kept, see `evaluate`.
        trust_remote_code: run code that comes with the model, which no recipe can ask for.

    Raises:
        InputError: something the recipe asks for cannot be had, found before the first stage; or
            the folder holds something else, or a plan that was edited.
        NumericalError: a loss is not finite.
    """
    folder = RunFolder(Path(recipe.out))
    folder.check()
    data = prepared(recipe, trust_remote_code=trust_remote_code)
    opened = partial(
        open_model,
        dtype=recipe.dtype,
        device=recipe.device,
        trust_remote_code=trust_remote_code,
    )
    with folder.claimed(recipe.text()):
        return _Run(recipe, folder, data, opened, cache).outcome()


@dataclass(frozen=True)
class _Run:
    """A recipe that is followed, in its folder."""

    recipe: Recipe
    folder: RunFolder
    data: Prepared
    open: Callable[..., tuple[Any, Tokenizer]]
    cache: Path | None

    def outcome(self) -> Outcome:
        """All stages, one after the other."""
        scores = self._scores()
        plans = self._plans(scores)
        compared = {"uniform": plans["uniform"]}
        for name in self.recipe.sparsity.beside:
            title = find_plan(name, "sparsity").title or name
            note(f"{title}: the plan")
            compared[title] = self._plan_beside(name, scores)
        compared[TITLE] = plans["sparsity"]
        results = {"dense": self._measured("dense", None)}
        with progress("plans", len(compared), bar=False) as advance:
            for title, plan in compared.items():
                results[title] = self._measured(title.lower(), plan)
                advance()
        # A run asks whether a plan pays, not whether pruning costs: the dense model is left out.
        pruned = {title: results[title] for title in compared}
        comparisons = Comparisons(comparisons=compare(pruned, "uniform"))
        comparisons.save(self.folder.path / COMPARISON_FILE)
        return Outcome(
            results, self._trained(scores, plans), self._quantized(scores), self._dropped()
        )

    def _scores(self) -> LayerScores:
        data, stage = self.data, self.recipe.score
        note(f"scores: {len(data.train)} + {len(data.validation)} samples of {data.task.name}")
        return score_into(
            self.folder.path,
            *self.open(self.recipe.model, adapter=stage.adapter, adapter_name=stage.adapter_name),
            data.task,
            train=data.train,
            validation=data.validation,
            options=stage.part(ScoreOptions),
            overwrite=True,
        )

    def _plans(self, scores: LayerScores) -> dict[str, Plan]:
        """The plans of `sparsity`, of it `uniform`, and of `experts` and `ranks` if asked for."""
        stage = self.recipe.sparsity
        names = ("aggregate", "epsilon", "smooth", "orientation")
        how = {name: getattr(stage, name) for name in names}
        plans = {
            "sparsity": allocate(scores, "sparsity", stage.target, **how),
            "uniform": allocate(scores, "sparsity", stage.target, map="uniform"),
        }
        for name, counts in (("experts", self.recipe.experts), ("ranks", self.recipe.ranks)):
            if counts is not None:
                plans[name] = allocate(scores, name, **counts.model_dump())
        scored = self.folder.path / SCORES.mark
        leave_picture(plot_scores, scores, beside=scored, aggregate=stage.aggregate)
        for name, plan in plans.items():
            self.folder.keep_plan(name, plan)
            if name != "uniform":
                leave_picture(plot_plan, plan, beside=self.folder.path / f"{name}.json")
        return plans

    def _plan_beside(self, name: str, influence: LayerScores) -> Plan:
        """A plan that is measured beside LayerIF's, with its authors' own parameter."""
        sparsity, stage, text = self.recipe.sparsity, self.recipe.prune, self.data.calibration
        assert isinstance(text, Corpus)
        named, opened = find_plan(name, "sparsity"), self.open(self.recipe.model)
        if named.searched is not None:
            path = self.folder.path / f"{name}.json"
            check_unedited(path)
            return search_into(
                path,
                *opened,
                sparsity.target,
                calibration=text,
                options=stage.part(SearchOptions).but(
                    **named.searched,
                    rounds=sparsity.rounds,
                    seconds=sparsity.evolution_seconds,
                    tokens=sparsity.round_tokens,
                    held_out_tokens=sparsity.round_tokens,
                ),
                overwrite=True,
            )

        def scores(metric: str | None, options: Mapping[str, Any]) -> LayerScores | MetricScores:
            if metric in (None, INFLUENCE):
                return influence
            return measure_into(
                self.folder.path / f"{metric}.json",
                *opened,
                metric,
                on=text,
                options=stage.part(MeasureOptions),
                of_metric=dict(options),
                overwrite=True,
            )

        plan = named.plans("sparsity", sparsity.target, scores)[0]
        self.folder.keep_plan(name, plan)
        return plan

    def _measured(self, name: str, plan: Plan | None) -> Results:
        """Results of the model pruned by `plan` (dense for None), as its folder holds it."""
        recipe, measured = self.recipe, self.recipe.model
        if plan is not None:
            note(f"{name}: pruning")
            pruned = self.folder.path / ("pruned" if name == "layerif" else f"pruned-{name}")
            prune_into(
                pruned,
                *self.open(recipe.model),
                plan,
                calibration=self.data.calibration,
                options=recipe.prune.part(PruneOptions),
                overwrite=True,
            )
            measured = str(pruned)
        note(f"{name}: evaluating")
        return evaluate_into(
            self.folder.path / f"{name}-results.json",
            *self.open(measured),
            self.data.sources,
            options=recipe.evaluate.part(EvaluateOptions),
            cache=self.cache,
            overwrite=True,
        )

    def _quantized(self, scores: LayerScores) -> dict[str, Results]:
        """What each plan of bits came to; nothing without `bits`."""
        return self._compared(
            *(self.recipe.bits, BitsStudy, QUANTIZED_FOLDER, compare_models), influence=scores
        )

    def _dropped(self) -> dict[str, Results]:
        """What each plan of depth came to; nothing without `depth`."""
        return self._compared(self.recipe.depth, DepthStudy, DROPPED_FOLDER, compare_depth)

    def _compared(
        self,
        stage: BitsStage | DepthStage | None,
        study: type[Options],
        place: str,
        compare_plans: Callable[..., dict[str, Results]],
        **more: Any,
    ) -> dict[str, Results]:
        """What the plans of a stage came to, in a folder of their own; nothing without it."""
        text = self.data.calibration
        if stage is None:
            return {}
        assert isinstance(text, Corpus)
        note(f"{place}: {', '.join(stage.plans)}")
        return compare_plans(
            self.folder.path / place,
            *self.open(self.recipe.model),
            stage.plans,
            stage.part(study),
            calibration=text,
            on=self.data.sources,
            options=self.recipe.evaluate.part(EvaluateOptions),
            cache=self.cache,
            **more,
        )

    def _trained(self, scores: LayerScores, plans: Mapping[str, Plan]) -> dict[str, Cells]:
        """What each plan of experts came to, LayerIF's last; nothing without `finetune`."""
        stage, experts = self.recipe.finetune, self.recipe.experts
        if stage is None or experts is None:
            return {}
        note("fine-tuning")
        model, tokenizer = self.open(self.recipe.model)
        scored = scorer(model, scores, self.recipe.seed)
        others = plans_of(stage.plans, experts.total, scored, stage.rank)
        return compare_experts(
            self.folder.path / TRAINED_FOLDER,
            model,
            tokenizer,
            {**others, TITLE: plans["experts"]},
            stage.part(ExpertsStudy),
            task=self.data.task,
        )
