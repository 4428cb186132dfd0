"""Fine-tune an adapter on a task's rows, by a plan or without one."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from layerif.adapters import LogRouting
from layerif.artifacts import Finetuning, Plan, StepLoss, ValidationLoss
from layerif.core import processes
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.files import require_disk
from layerif.core.options import takes
from layerif.core.progress import note, progress
from layerif.data import Example
from layerif.data.batching import Encoded
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError, NumericalError
from layerif.estimates import largest, note_memory
from layerif.finetuning.attaching import complete_plan, trainable_parameters, with_new_adapter
from layerif.finetuning.batches import Batches
from layerif.finetuning.options import FinetuneOptions
from layerif.model.checks import check_tokens
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.modes import as_found, checkpointed, quiet_transformers
from layerif.model.opening import Tokenizer, describe, input_device, setting

# Of each trained number in float32: itself, its gradient, and AdamW's two means.
BYTES_PER_PARAMETER = 16
# transformers' names; its own `constant` has no warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
LOGGED = 200  # entries of the loss over a run, at most


@takes(FinetuneOptions)
def finetune(
    model: Any,
    tokenizer: Tokenizer,
    train: Sequence[Example],
    validation: Sequence[Example] = (),
    *,
    options: FinetuneOptions,
    plan: Plan | None = None,
    task: dict[str, Any] | None = None,
    steps: Steps = NO_STEPS,
) -> tuple[Any, Finetuning]:
    """Train a fresh adapter on completions, by transformers' Trainer and AdamW.

    Of several processes each comes here with the same, and runs its share of every batch.

    Args:
        model: a causal LM of transformers, without adapters; it is changed in place, and left as it
            was found where that fails.
        train: rows; their order is drawn again in every epoch.
        validation: rows whose loss is measured as training goes; may be empty.
        options: of the adapter and its training; each by keyword too.
        plan: experts or ranks of each layer; None for LoRA of one rank.
        task: name and origin of the rows, for the record.
        steps: where checkpoints are kept; a run that was cut short goes on after the last whole
            one, to the same weights.

    Returns:
        The PEFT model in evaluation mode, and the record of how it was trained.

    Raises:
        InputError: there are no rows, or none fits; or as `with_new_adapter`; or patience is asked
            for without validation rows; or there are more processes than rows in a batch.
        NumericalError: a loss is not finite, or the adapter is not.
    """
    complete_plan(model, plan, options)  # before the rows take their time
    items, measured, left_out = encoded_rows(model, tokenizer, train, validation, options)
    info = describe(model)
    batches = Batches(items, options, model)
    with as_found(model, unless_done=True):
        wrapped, method = with_new_adapter(model, plan, options)
        count = trainable_parameters(wrapped)
        tokens = sum(len(item.input_ids) for item in items)
        note(
            f"fine-tuning {count:,} parameters ({count * BYTES_PER_PARAMETER / 1e9:.2f} GB with "
            f"gradients and AdamW): {len(batches):,} steps of {options.batch_size} rows, "
            f"{len(items):,} rows of {tokens:,} tokens in an epoch"
        )
        if not options.gradient_checkpointing:
            most = max(largest(step.parts) for step in (batches[0], batches[len(batches) - 1]))
            kept = count * BYTES_PER_PARAMETER
            note_memory(unwrapped(wrapped), "fine-tuning", "inputs", most, kept=kept)
        started = time.monotonic()
        state = _train(wrapped, batches, measured, options, steps)
        wrapped.eval()
        best = state.best_global_step if options.patience is not None else None
        record = Finetuning(
            model=info,
            method=method,
            plan=plan,
            trainable_parameters=count,
            task=task or {},
            options=options.values(),
            rows={"train": len(items), "validation": len(measured), "left_out": left_out},
            steps=state.global_step,
            losses=[
                StepLoss(**{name: e[name] for name in StepLoss.model_fields if name in e})
                for e in state.log_history
                if "loss" in e
            ],
            evaluations=[
                ValidationLoss(step=e["step"], loss=e["eval_loss"])
                for e in state.log_history
                if "eval_loss" in e
            ],
            best_step=best or None,
            seconds=time.monotonic() - started,
            processes=processes.count(),
            setting=setting(model),
        )
    return wrapped, record


def encoded_rows(
    model: Any,
    tokenizer: Tokenizer,
    train: Sequence[Example],
    validation: Sequence[Example],
    options: FinetuneOptions,
) -> tuple[list[Encoded], list[Encoded], int]:
    """Training and validation rows as tokens, and how many of both do not fit.

    No longer ones than the model, a skeleton will do, has positions for.

    Raises:
        InputError: none fits, one has a token that the model has no embedding for, patience has
            nothing to go by, or a batch cannot be shared out.
    """
    if options.patience is not None and not validation:
        raise InputError(
            "patience stops training by the loss on validation rows, and there are none; give "
            "some, or leave patience out"
        )
    if options.batch_size < processes.count():
        raise InputError(
            f"a batch of {options.batch_size} rows cannot be shared out among "
            f"{processes.count()} processes; raise batch_size, or start fewer"
        )
    length = usable_length(model, options.max_length)
    found: list[list[Encoded]] = []
    for rows, what in ((train, "training"), (validation, "validation")):
        needed = rows or what == "training"
        found.append(
            encode_samples(tokenizer, rows, length, what, end=options.append_eos)[0]
            if needed
            else []
        )
        check_tokens(model, (item.input_ids for item in found[-1]))
    return found[0], found[1], len(train) + len(validation) - len(found[0]) - len(found[1])


def _train(
    model: Any,
    batches: Batches,
    validation: Sequence[Encoded],
    options: FinetuneOptions,
    steps: Steps,
) -> Any:
    """Run transformers' Trainer; the state it ends with."""
    from transformers import PrinterCallback

    from layerif.finetuning.trainer import (
        REMEDY,
        CompletionTrainer,
        KeepCheckpoints,
        StopEarly,
        checkpoint_in,
        discard_after,
        is_over,
        noted_step,
    )

    with ExitStack() as stack:
        stack.enter_context(quiet_transformers())
        stack.enter_context(_random_state_kept())
        # The Trainer turns off the cache of generation, for good.
        config = unwrapped(model).config
        stack.callback(setattr, config, "use_cache", getattr(config, "use_cache", True))
        folder = steps.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        advance = stack.enter_context(progress("fine-tuning", len(batches)))
        keep = KeepCheckpoints(steps, folder, advance, measured=bool(validation))
        callbacks: list[Any] = [keep, LogRouting()]
        if options.patience is not None:
            callbacks.append(StopEarly(options.patience))
        arguments = _arguments(model, folder, batches, options, measured=bool(validation))
        # One speaks for all: a disk that machines share may show the note to some of them later.
        _reserve(model, steps, folder, best=options.patience is not None)
        done = processes.agreed(lambda: noted_step(steps))
        if processes.is_first():
            discard_after(folder, done)
        resumed = None
        if done is not None:
            resumed = str(checkpoint_in(folder, done))
            note(f"going on after step {done} of {len(batches)}")
            advance(done)
            if options.patience is not None and is_over(Path(resumed), options.patience):
                # Killed after its last step: nothing is left but to take the best.
                batches, arguments.max_steps = batches.until(done), done
        trainer = CompletionTrainer(
            model, arguments, batches, validation, options.batch_tokens, callbacks
        )
        trainer.remove_callback(PrinterCallback)
        if options.gradient_checkpointing:
            layers = find_decoder_layers(unwrapped(model))
            stack.enter_context(checkpointed(layers.modules, training=True))
        # What routers are told of the last part would hold in a loop of the caller's own, too.
        stack.callback(setattr, trainer.routers, "scale", 1.0)
        trainer.train(resume_from_checkpoint=resumed)
        if steps.folder is None:
            # The best was written by the first process, to a folder that the others do not see.
            processes.spread([p.detach() for p in model.parameters() if p.requires_grad])
    if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
        # A gradient may overflow where the loss does not, and no loss comes after the last step.
        raise NumericalError(
            f"the adapter after step {trainer.state.global_step} has values that are not finite "
            f"({REMEDY})"
        )
    return trainer.state


def _reserve(model: Any, steps: Steps, folder: Path, *, best: bool) -> None:
    """Refuse beforehand what the disk has no room for: the checkpoints, and the adapter itself."""
    adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    # Each has AdamW's two means; beside the last one and the best, the next is written.
    size = adapter + (3 if best else 2) * 3 * adapter
    what = "checkpoints of the adapter's training"
    if steps.folder is None:
        require_disk(folder, size, what, remedy="set TMPDIR to a folder on another disk")
    else:
        steps.reserve(size, what, "checkpoint*")


def _arguments(
    model: Any, folder: Path, batches: Batches, options: FinetuneOptions, *, measured: bool
) -> Any:
    from transformers import TrainingArguments

    device = input_device(model)
    evaluate_every = options.evaluate_every or batches.steps_of_epoch
    best = options.patience is not None
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(batches),
        learning_rate=options.learning_rate,
        lr_scheduler_type=SCHEDULES[options.schedule],
        # Its rate is 0 at first: a run of one step would learn nothing.
        warmup_steps=min(math.ceil(options.warmup_ratio * len(batches)), len(batches) - 1),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch",
        eval_strategy="steps" if measured else "no",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=evaluate_every if best else options.checkpoint_every,
        save_total_limit=None,  # old ones go when a newer is noted as whole
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        logging_steps=max(1, len(batches) // LOGGED),
        logging_nan_inf_filter=False,
        use_cpu=device.type == "cpu",
        ddp_backend="gloo" if device.type == "cpu" and processes.count() > 1 else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        seed=options.seed,
        data_seed=options.seed,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # never DataParallel: batches are no tensors
    return arguments


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """The Trainer seeds what the whole process draws from; afterwards that is as it was."""
    import random

    import numpy as np

    plain, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)  # noqa: NPY002
