"""Which options count only together with others: given where it does nothing, one is refused.

One table for the commands and for the stages of recipes, by the names that recipes have for options
(those of the command line without dashes). What is not in it always counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from layerif.core.options import Rule, Values
from layerif.data.options import STYLED
from layerif.evaluation.options import has_corpus, has_task
from layerif.plans.named import INFLUENCE, PLANS, plans_among
from layerif.plans.options import CountsMapOptions, SparsityMapOptions


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


def _styled(v: Values) -> bool:
    from layerif.data import has_style

    return any(has_style(name, v.get("style") or "alpaca") for name in _tasks(v))


TASK_STYLE = STYLED


# Plans.


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
    *SparsityMapOptions.rules,
    MODEL_CODE,
    REPLACING,
)

ALLOCATE_COUNTS = (
    *CountsMapOptions.rules,
    Rule("rank", _given("model"), "with {model}"),
    MODEL_CODE,
    REPLACING,
)


# Pruning, evaluation, validation.


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


def _reads_influence(v: Values) -> bool:
    """Whether a plan compared is made from influence."""
    words = _words(v.get("plans"))
    return any(p.metric == INFLUENCE for kind in PLANS for p in plans_among(words, kind))


COMPARED_SCORES = Rule(
    "scores",
    _reads_influence,
    "where a plan made from influence, such as layerif, is among {plans}",
)

COMPARE_SPARSITY = (
    COMPARED_SCORES,
    Rule(
        "tries",
        lambda v: bool(set(_words(v.get("plans"))) - {"uniform"}),
        "where another plan than uniform is among {plans}",
    ),
    Rule("samples max_length", has_task, "for tasks"),
    Rule("max_tokens", has_corpus, "for corpora"),
    TASK_STYLE,
)

COMMANDS: Mapping[str, tuple[Rule, ...]] = {
    "allocate sparsity": ALLOCATE_SPARSITY,
    "allocate experts": ALLOCATE_COUNTS,
    "allocate ranks": ALLOCATE_COUNTS,
    "validate": VALIDATE,
    "compare sparsity": COMPARE_SPARSITY,
    "compare experts": (COMPARED_SCORES,),
    "tasks show": (
        Rule("model trust_remote_code", _is("style", "chat"), "with {style} chat"),
        Rule("style", lambda v: _styled({**v, "task": v["name"]}), TASK_STYLE.when),
    ),
}
