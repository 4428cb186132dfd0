"""What a recipe needs, loaded and checked before its first stage, with no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from layerif.compress.pruning.targets import check_pattern
from layerif.data import (
    Corpus,
    Example,
    SelfText,
    Task,
    load_calibration,
    load_sources,
    load_task,
)
from layerif.data.chunks import check_context_length, cut, draw, usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.evaluation.evaluate import check_sources
from layerif.evaluation.options import EvaluateOptions
from layerif.finetuning.options import FinetuneOptions
from layerif.finetuning.rows import encoded_rows
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import Tokenizer, describe, open_skeleton, open_tokenizer, parse_device
from layerif.model.peft_adapters import with_adapter
from layerif.workflows.compare_depth import check_depth
from layerif.workflows.compare_experts import check_plans, check_titles
from layerif.workflows.compare_models import check_study
from layerif.workflows.options import BitsStudy, DepthStudy
from layerif.workflows.recipe import EvaluateStage, Recipe, ScoreStage

# What LayerIF's own plan is called beside others.
TITLE = "LayerIF"


@dataclass(frozen=True)
class Prepared:
    """Everything a recipe needs beside the model."""

    task: Task
    train: list[Example]
    validation: list[Example]
    calibration: Corpus | SelfText
    sources: list[Task | Corpus]


def prepared(recipe: Recipe, *, trust_remote_code: bool) -> Prepared:
    """What a recipe needs, and it is refused here if it cannot be followed.

    Raises:
        InputError: something that it asks for cannot be had.
    """
    data = _load(recipe, trust_remote_code)
    _check(recipe, data, trust_remote_code)
    return data


def _load(recipe: Recipe, trust_remote_code: bool) -> Prepared:
    seed, stage = recipe.seed, recipe.score
    data_dir = None if recipe.data_dir is None else Path(recipe.data_dir)
    styles = {stage.style, recipe.evaluate.style}
    tokenizer = None
    if "chat" in styles:
        tokenizer = open_tokenizer(recipe.model, trust_remote_code=trust_remote_code)

    def words(of: ScoreStage | EvaluateStage) -> dict[str, Any]:
        own = {"style": of.style, "template_options": of.template_options}
        return {**own, "tokenizer": tokenizer, "data_dir": data_dir}

    task = load_task(stage.task, **words(stage))
    return Prepared(
        task=task,
        train=stage.rows(task, "train", seed),
        validation=stage.rows(task, "validation", seed),
        calibration=load_calibration(recipe.prune.calibration, **words(stage)),
        sources=load_sources(recipe.evaluate.tasks, **words(recipe.evaluate)),
    )


def _check(recipe: Recipe, data: Prepared, trust_remote_code: bool) -> None:
    """Everything that can be found out before the first stage, with no weights."""
    parse_device(recipe.device)
    recipe.score.check(recipe.score.adapter)
    if not isinstance(data.calibration, Corpus):
        searches = {"beside": recipe.sparsity.beside, "bits": recipe.bits, "depth": recipe.depth}
        for what, asked in searches.items():
            if asked:
                raise InputError(
                    f"the plans of `{what}` read a corpus or a text file; give one as the "
                    f"calibration of pruning in place of {recipe.prune.calibration!r}, or leave "
                    f"`{what}` out"
                )
    bare = partial(open_skeleton, recipe.model, trust_remote_code=trust_remote_code)
    tokenizer = open_tokenizer(recipe.model, trust_remote_code=trust_remote_code)
    skeleton = bare()
    layers = describe(skeleton).layers
    for kind, stage in (("experts", recipe.experts), ("ranks", recipe.ranks)):
        if stage is not None and stage.total < layers:
            raise InputError(
                f"the recipe asks for {stage.total} {kind}, fewer than the {layers} decoder layers "
                f"of {recipe.model}, each of which needs one; ask for {layers} or more"
            )
    if recipe.finetune is not None:
        _check_finetuning(recipe, skeleton, tokenizer, data.task)
    max_length = usable_length(skeleton, recipe.score.max_length)
    encode_samples(tokenizer, data.train, max_length, "training")
    encode_samples(tokenizer, data.validation, max_length, "validation")
    _check_calibration(recipe, skeleton, tokenizer, data.calibration)
    if recipe.prune.nm is not None:
        check_pattern(find_decoder_layers(skeleton).projections, recipe.prune.nm)
    if recipe.score.adapter is not None:
        with_adapter(bare(), Path(recipe.score.adapter), recipe.score.adapter_name)
    check_sources(skeleton, tokenizer, data.sources, options=recipe.evaluate.part(EvaluateOptions))


def _check_calibration(
    recipe: Recipe, skeleton: Any, tokenizer: Tokenizer, calibration: Corpus | SelfText
) -> None:
    """Text too short for what reads it, and plans that cannot be searched for."""
    stage = recipe.prune
    if recipe.calibrates:
        check_context_length(skeleton, stage.context_length)
    if not isinstance(calibration, Corpus):
        return
    if recipe.calibrates:
        chunks = cut(tokenizer, calibration.text("calibration"), stage.context_length)
        draw(chunks, stage.calibration_samples, recipe.seed)
    if (bits := recipe.bits) is not None:
        check_study(skeleton, tokenizer, bits.plans, bits.part(BitsStudy), calibration)
    if (depth := recipe.depth) is not None:
        check_depth(skeleton, tokenizer, depth.plans, depth.part(DepthStudy), calibration)


def _check_finetuning(recipe: Recipe, skeleton: Any, tokenizer: Tokenizer, task: Task) -> None:
    """Plans of experts that cannot be made, rows that cannot be trained or measured on."""
    stage = recipe.finetune
    assert stage is not None
    if recipe.experts is None:
        raise InputError(
            "the recipe fine-tunes by a plan of experts and makes none; add the stage `experts`, "
            "or leave `finetune` out"
        )
    options = stage.part(FinetuneOptions)
    check_titles(["uniform", *stage.plans, TITLE])
    check_plans(stage.plans, recipe.experts.total, model=skeleton, options=options)
    train, validation = stage.rows(task, recipe.seed)
    encoded_rows(skeleton, tokenizer, train, validation, options)
    check_sources(skeleton, tokenizer, [task], options=stage.measuring)
