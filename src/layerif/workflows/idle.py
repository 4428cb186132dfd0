"""Which options count only together with others: given where it does nothing, one is refused.

One table for the commands and for the stages of recipes, by the names that recipes have for options
(those of the command line without dashes). What is not in it always counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layerif.core.options import Rule, Values
from layerif.data.options import STYLED, TaskOptions
from layerif.errors import InputError
from layerif.finetuning.options import FinetuneOptions, PlannedOptions
from layerif.influence.options import ScoreOptions


def _is(name: str, *values: Any) -> Callable[[Values], bool]:
    return lambda v: v.get(name) in values


def _given(name: str) -> Callable[[Values], bool]:
    return lambda v: v.get(name) is not None


def _words(value: Any) -> list[str]:
    """What an option lists: with commas on the command line, as a list in recipes."""
    if value is None or isinstance(value, list):
        return value or []
    return [word.strip() for word in str(value).split(",")]


# Tasks and corpora.


def _tasks(v: Values) -> list[str]:
    from layerif.data import is_task

    return [name for name in _words(v.get("tasks", v.get("task"))) if is_task(name)]


def _has_task(v: Values) -> bool:
    return bool(_tasks(v))


def _has_corpus(v: Values) -> bool:
    return len(_words(v.get("tasks"))) > len(_tasks(v))


def _styled(v: Values) -> bool:
    from layerif.data import has_style

    return any(has_style(name, v.get("style") or "alpaca") for name in _tasks(v))


TASK_STYLE = STYLED


# Influence.

SCORE = (*ScoreOptions.rules, *TaskOptions.rules)


# Metrics.


def _needs(what: str) -> Callable[[Values], bool]:
    def needs(v: Values) -> bool:
        from layerif.metrics import registry as metrics

        try:
            asked = metrics.complete_options(v["name"], {"of": v["of"]} if v.get("of") else {})
        except InputError:
            return True  # which the command says itself
        if what == "text":
            return metrics.reads_text(v["name"], asked)
        if what == "draws":
            return metrics.reads_text(v["name"], asked) or metrics.is_seeded(v["name"], asked)
        return metrics.reads_model(v["name"], asked)

    return needs


METRIC = (
    Rule("train_samples validation_samples max_length", _given("task"), "with {task}"),
    TASK_STYLE,
    Rule(
        "calibration calibration_samples context_length",
        lambda v: v.get("task") is None and _needs("text")(v),
        "for metrics that read calibration text, without {task}",
    ),
    Rule("batch_tokens data_dir", _needs("text"), "for metrics that run the model"),
    Rule("seed", _needs("draws"), "for metrics that draw text or numbers"),
    Rule("dtype device device_map", _needs("model"), "for metrics that read the model"),
)


# Plans.


def _of_influence(v: Values) -> bool:
    scores = v.get("scores")
    return scores is not None and (Path(scores).is_dir() or not Path(scores).suffix)


MODEL_CODE = Rule("trust_remote_code", _given("model"), "with {model}")
REPLACING = Rule("overwrite", _given("out"), "with {out}")

ALLOCATE_SPARSITY = (
    Rule(
        "rounds method target tokens held_out_tokens delta eta below above calibration "
        "calibration_samples context_length batch_tokens dtype device data_dir seed",
        _is("map", "marginal"),
        "with {map} marginal",
    ),
    Rule(
        "style",
        lambda v: v["map"] == "marginal" and _styled({**v, "tasks": v.get("target")}),
        "with {map} marginal and a {target} that has prompts in several styles",
    ),
    Rule(
        "aggregate",
        lambda v: v["map"] not in ("marginal", "uniform") and _of_influence(v),
        "for scores of influence under the maps layerif, owl and dlp",
    ),
    Rule("epsilon", _is("map", "layerif"), "with {map} layerif"),
    Rule(
        "smooth",
        lambda v: v["map"] == "layerif" and v.get("granularity") != "projection",
        "with {map} layerif and {granularity} layer",
    ),
    Rule("lam", _is("map", "owl", "dlp"), "with {map} owl or dlp"),
    Rule(
        "orientation on_constant",
        _is("map", "layerif", "owl", "dlp"),
        "with {map} layerif, owl or dlp",
    ),
    Rule("s_max", lambda v: v["map"] != "marginal", "with another {map} than marginal"),
    MODEL_CODE,
    REPLACING,
)

ALLOCATE_COUNTS = (
    Rule(
        "aggregate",
        lambda v: v["map"] == "power" and _of_influence(v),
        "for scores of influence with {map} power",
    ),
    Rule("beta orientation normalise compat on_constant", _is("map", "power"), "with {map} power"),
    Rule("shape", _is("map", "mola"), "with {map} mola"),
    Rule("rank", _given("model"), "with {model}"),
    MODEL_CODE,
    REPLACING,
)


# Pruning, evaluation, validation.


CALIBRATED = Rule(
    "calibration calibration_samples context_length batch_tokens hidden_states data_dir seed",
    lambda v: v.get("method") != "magnitude",
    "for the methods wanda and sparsegpt, which read calibration text",
)

OF_TASKS = Rule("scoring", _has_task, "for tasks")
OF_CORPORA = Rule("max_tokens context_length", _has_corpus, "for corpora")

EVALUATE = (
    Rule("shots", _given("harness"), "for tasks of lm-evaluation-harness, with {harness}"),
    Rule("adapter_name", _given("adapter"), "with {adapter}"),
    Rule("no_cache", _given("tasks"), "with {tasks}"),
    Rule(
        "samples max_length",
        lambda v: v.get("harness") is not None or _has_task(v),
        "for tasks",
    ),
    OF_TASKS,
    OF_CORPORA,
    TASK_STYLE,
    REPLACING,
)

VALIDATE = (
    Rule(
        "task train_samples validation_samples steps rate rank alpha max_length",
        _is("truth", "capacity"),
        "with {truth} capacity",
    ),
    TASK_STYLE,
    Rule(
        "sparsity calibration calibration_samples context_length",
        lambda v: v.get("truth") != "capacity",
        "with {truth} isolated or operating_point",
    ),
    Rule("delta", _is("truth", None, "operating_point"), "with {truth} operating_point"),
)


# Fine-tuning.

TRAINING = (*FinetuneOptions.rules, TASK_STYLE)
FINETUNE = (*PlannedOptions.rules, TASK_STYLE)


def _lists(name: str, *words: str) -> Callable[[Values], bool]:
    return lambda v: not set(words).isdisjoint(_words(v.get(name)))


COMPARED_SCORES = Rule("scores", _lists("plans", "layerif"), "where layerif is among {plans}")

COMPARE_SPARSITY = (
    COMPARED_SCORES,
    Rule(
        "tries",
        lambda v: bool(set(_words(v.get("plans"))) - {"uniform"}),
        "where another plan than uniform is among {plans}",
    ),
    Rule("samples max_length", _has_task, "for tasks"),
    Rule("max_tokens", _has_corpus, "for corpora"),
    TASK_STYLE,
)

COMMANDS: Mapping[str, tuple[Rule, ...]] = {
    "score": SCORE,
    "doctor": (TASK_STYLE,),
    "metric": METRIC,
    "allocate sparsity": ALLOCATE_SPARSITY,
    "allocate experts": ALLOCATE_COUNTS,
    "allocate ranks": ALLOCATE_COUNTS,
    "prune": (CALIBRATED,),
    "evaluate": EVALUATE,
    "validate": VALIDATE,
    "finetune": FINETUNE,
    "compare sparsity": COMPARE_SPARSITY,
    "compare experts": (COMPARED_SCORES, *TRAINING),
    "tasks show": (
        Rule("model trust_remote_code", _is("style", "chat"), "with {style} chat"),
        Rule("style", lambda v: _styled({**v, "task": v["name"]}), TASK_STYLE.when),
    ),
}

# The stages of a recipe, which have each other's values in reach: `prune.method` and the like.
STAGES: Mapping[str, tuple[Rule, ...]] = {
    "score": SCORE,
    "sparsity": (
        Rule("rounds round_tokens", _lists("beside", "marginal"), "where marginal is in {beside}"),
    ),
    "finetune": FinetuneOptions.rules,
    "prune": (
        Rule(
            "calibration samples context_length batch_tokens",
            lambda v: v["method"] != "magnitude" or _lists("beside", "owl", "dlp", "marginal")(v),
            "for the methods wanda and sparsegpt, and for the plans owl, dlp and marginal",
        ),
        Rule("hidden_states", CALIBRATED.active, CALIBRATED.when),
    ),
    "evaluate": (
        Rule("samples max_length scoring", _has_task, "for tasks"),
        OF_CORPORA,
        TASK_STYLE,
    ),
}
