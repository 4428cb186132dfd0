"""Several plans on one model: tuned alike, spent alike, measured on the same items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerif.artifacts import (
    Comparisons,
    LayerScores,
    MetricScores,
    Plan,
    Results,
    hash_texts,
)
from layerif.compress.compressor import put_back
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.targets import check_pattern
from layerif.compress.quantization.options import QuantizeOptions
from layerif.compress.quantization.runner import quantize
from layerif.compress.quantization.sizes import plan_bytes
from layerif.core.caching import remembered
from layerif.core.files import write_json
from layerif.core.options import Options
from layerif.core.progress import note, progress
from layerif.data import Corpus, Task
from layerif.data.batching import Encoded
from layerif.data.chunks import check_context_length, cut, draw
from layerif.errors import InputError
from layerif.evaluation.comparison import compare
from layerif.evaluation.evaluate import check_sources
from layerif.evaluation.options import EvaluateOptions
from layerif.evaluation.summed import summed_nats
from layerif.metrics.measuring import metric_scores
from layerif.metrics.options import MeasureOptions
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, describe
from layerif.plans.named import INFLUENCE, check_influence, find_plan
from layerif.search.registry import KINDS, options_of
from layerif.workflows.bench import COMPARISON_FILE, Bench
from layerif.workflows.folder import RunFolder
from layerif.workflows.options import BitsStudy, ModelStudy
from layerif.workflows.searching import check_unedited, search_into

# What spends a plan of each kind in place, and its options.
SPENT: dict[str, tuple[Callable[..., Any], type[Options]]] = {
    "sparsity": (prune, PruneOptions),
    "bits": (quantize, QuantizeOptions),
}
TUNING_FILE = "tuning.json"


def compare_models(  # noqa: PLR0913  # where to, the model, what on, the options
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    study: ModelStudy,
    *,
    calibration: Corpus,
    on: Sequence[Task | Corpus],
    options: EvaluateOptions,
    influence: LayerScores | None = None,
    cache: Path | None = None,
) -> dict[str, Results]:
    """Tune, spend and measure each plan of the study's kind, and compare all with the uniform one.

    The folder gets each plan, its results, `tuning.json` and `comparison.json`. What is finished
    there is not done again.

    Args:
        model: a causal LM; its weights are as before afterwards.
        names: the plans; the uniform one always comes first.
        calibration: of pruning or quantisation, metrics and tuning.
        on: what the compressed models are measured on.
        options: of `evaluate`.
        influence: scores for the plan `layerif`.
        cache: where likelihoods of the model itself are kept, see `evaluate`.

    Raises:
        InputError: a plan lacks what it needs, or as `check_study`, before any long work; or the
            folder holds something else, or a plan that was edited.
        NumericalError: what is measured is not finite.
    """
    if influence is None:
        check_influence(names, study.kind)
    model = unwrapped(model)
    held_out = check_study(model, tokenizer, names, study, calibration)
    if influence is not None and influence.model.layer_sizes != describe(model).layer_sizes:
        raise InputError(
            f"the scores are of {influence.model.name}, whose layers are not those of this model; "
            "expected scores of the model that is compressed"
        )
    check_sources(model, tokenizer, on, options=options)
    bench = _Bench(folder, model, tokenizer, study, calibration, held_out, cache)
    claimed = RunFolder(folder, study.name)
    with claimed.claimed():
        results: dict[str, Results] = {"dense": bench.measured("dense", None, on, options)}
        tuning: dict[str, Any] = {}
        # How often each compresses: for its tries, and to be measured.
        runs = {n: compressions(n, study) for n in dict.fromkeys(("uniform", *names))}
        with progress("plans, by times compressed", sum(runs.values()), bar=False) as advance:
            for name, times in runs.items():
                plan, tuning[name] = bench.best(name, influence)
                if isinstance(study, BitsStudy):
                    tuning[name]["bytes"] = plan_bytes(plan, find_decoder_layers(model), study)
                if find_plan(name, study.kind).searched is None:  # others are saved already
                    claimed.keep_plan(name, plan)
                results[name] = bench.measured(name, plan, on, options)
                advance(times)
        write_json(folder / TUNING_FILE, tuning)
        compressed = {name: found for name, found in results.items() if name != "dense"}
        if len(compressed) > 1:
            losses = {name: tuning[name]["held_out_loss"] for name in compressed}
            pairs = beside(losses, study.kind)
            comparisons = compare(compressed, "uniform", beside=pairs)
            Comparisons(comparisons=comparisons).save(folder / COMPARISON_FILE)
    return results


def check_study(
    model: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    study: ModelStudy,
    calibration: Corpus,
) -> list[Encoded]:
    """Refuse what cannot be compared; of the model a skeleton will do.

    Returns:
        The chunks that tries are judged by.

    Raises:
        InputError: there is no such plan, or one with fewer tries than others; a total that no plan
            can have; a text too short, or chunks longer than the model's positions.
    """
    layers = find_decoder_layers(model)
    for name in names:
        named, tries = find_plan(name, study.kind), study.tries
        if named.tuned is not None and (most := len(named.tries(study.kind, tries))) < tries:
            raise InputError(f"the plan {name} has {most} values to try, not {tries}")
        if named.searched is not None:
            KINDS.find(study.kind)(layers, study.total, study.part(options_of(study.kind)))
    check_context_length(model, study.context_length)
    if (nm := getattr(study, "nm", None)) is not None:
        check_pattern(layers.projections, nm)
    chunks = cut(tokenizer, calibration.text("calibration"), study.context_length)
    wanted = -(-study.held_out_tokens // study.context_length)
    # The first of the same draw are those that compression takes.
    drawn = draw(chunks, study.calibration_samples + wanted, study.seed)
    return drawn[study.calibration_samples :]


def compressions(name: str, study: ModelStudy) -> int:
    """How often a plan's tries compress the model, its measurement counted.

    Of a search by random moves, which goes by seconds, as for one of rounds.
    """
    named, tries = find_plan(name, study.kind), study.tries
    if named.searched is None:
        return len(named.tries(study.kind, tries)) + 1
    if named.searched["strategy"] == "quadratic":
        return 4  # for the question, the uniform plan, and its own
    return tries + 2 + 2 * (named.searched.get("start") == "quadratic")


def beside(losses: Mapping[str, float], kind: str) -> list[tuple[str, str]]:
    """The pair that is compared beside each plan with the uniform one.

    The best of our searched plans also meets the best of its rivals, as tuning would choose both.

    Args:
        losses: of each plan on the held-out text.
        kind: of the plans.
    """
    ours = [name for name in losses if find_plan(name, kind).ours]
    rivals = [name for name in losses if name not in ("uniform", *ours)]
    if not ours or not rivals:
        return []
    best, rival = (min(names, key=lambda name: losses[name]) for names in (ours, rivals))
    return [(best, rival)]


def _tried(how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a search, or its generations, each with its loss on the held-out text."""
    generations = how.get("trace", ())
    return [*how.get("rounds", ()), *({**g, "held_out_loss": g["loss"]} for g in generations)]


class _Bench(Bench):
    """One dense model, compressed again and again."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        tokenizer: Tokenizer,
        study: ModelStudy,
        calibration: Corpus,
        held_out: list[Encoded],
        cache: Path | None,
    ) -> None:
        super().__init__(folder, model, tokenizer, cache)
        self._study, self._calibration, self._held_out = study, calibration, held_out
        self._layers = find_decoder_layers(model)
        self._metrics: dict[tuple[Any, ...], MetricScores] = {}

    def best(self, name: str, influence: LayerScores | None) -> tuple[Plan, dict[str, Any]]:
        """The plan of a way with the least loss on the held-out text, and what was tried."""
        study, named = self._study, find_plan(name, self._study.kind)
        if named.searched is not None:
            path = self.folder / f"{name}.json"
            check_unedited(path)
            plan = search_into(
                path,
                self.model,
                self.tokenizer,
                study.total,
                calibration=self._calibration,
                options=study.part(options_of(study.kind)).but(
                    rounds=study.tries, seconds=study.evolution_seconds, **named.searched
                ),
                kind=study.kind,
                overwrite=True,
            )
            tried = _tried(plan.how)
            return plan, {"tried": tried, "held_out_loss": min(t["held_out_loss"] for t in tried)}

        def scores(metric: str | None, options: Mapping[str, Any]) -> LayerScores | MetricScores:
            if metric == INFLUENCE and influence is not None:
                return influence
            return self._metric(metric or "uniform", **options)

        plans = named.plans(study.kind, study.total, scores, tries=study.tries)
        tried = []
        for number, plan in enumerate(plans, start=1):
            note(f"{name}: try {number} of {len(plans)}")
            tried.append({**plan.how, "held_out_loss": self._loss(plan)})
        losses = [each["held_out_loss"] for each in tried]
        least = int(np.argmin(losses))
        return plans[least], {"tried": tried, "held_out_loss": losses[least]}

    def _metric(self, name: str, **options: Any) -> MetricScores:
        key = (name, *options.items())
        if key not in self._metrics:
            study = self._study
            self._metrics[key] = metric_scores(
                self.model,
                name,
                **options,
                options=study.part(MeasureOptions),
                tokenizer=self.tokenizer,
                calibration=self._calibration,
            )
        return self._metrics[key]

    def _loss(self, plan: Plan) -> float:
        """Mean nats a token of the held-out text."""
        data = hash_texts([chunk.input_ids for chunk in self._held_out])

        def compute(_steps: Any) -> dict[str, torch.Tensor]:
            with self.changed(plan), evaluation_mode(self.model):
                nats = summed_nats(
                    self.model,
                    self._held_out,
                    batch_tokens=self._study.batch_tokens,
                    doing="held-out text",
                    name_of=lambda row: f"chunk {row} of the held-out text",
                )
            return {"nats": torch.from_numpy(nats)}

        wanted = self.fingerprint(plan, data)
        nats = remembered(self.folder / "tries", wanted, compute)["nats"]
        return float(nats.sum()) / sum(chunk.scored for chunk in self._held_out)

    def asked(self, plan: Plan) -> dict[str, Any]:
        shares = plan.modules or plan.allocation
        study = self._study.recorded()
        for tuning in ("tries", "evolution_seconds"):
            study.pop(tuning, None)
        return {
            "plan": [s if isinstance(s, int | float) else s.level for s in shares],
            "study": study,
            "calibration": hash_texts([self._calibration.text("calibration")]),
        }

    @contextmanager
    def changed(self, plan: Plan | None) -> Iterator[None]:
        """The model compressed by a plan inside, dense again afterwards."""
        if plan is None:
            yield
            return
        spend, kind = SPENT[self._study.kind]
        with put_back(self._layers.projections):
            spend(
                self.model,
                plan,
                options=self._study.part(kind),
                tokenizer=self.tokenizer,
                calibration=self._calibration,
            )
            yield
