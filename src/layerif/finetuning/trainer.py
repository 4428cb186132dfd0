"""An adapter trained by transformers' Trainer: batches by tokens, a loss on completions alone."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from layerif.adapters import LogRouting, LoraMoeLinear, batch_state
from layerif.adapters.balance import BatchState
from layerif.core import processes
from layerif.core.checkpoint import Steps
from layerif.core.files import is_whole, require_disk, seal, writing_to
from layerif.core.progress import Advance, note, progress
from layerif.data.batching import Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.finetuning.batches import Batches, StepBatch
from layerif.finetuning.options import FinetuneOptions
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.modes import checkpointed, evaluation_mode
from layerif.model.opening import input_device
from layerif.model.quiet import quiet_transformers

CHECKPOINT = "checkpoint"  # the step that says which of the Trainer's checkpoints is whole
REMEDY = "try a smaller learning_rate, or dtype='float32'"
# transformers' names; its own `constant` has no warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
LOGGED = 200  # entries of the loss over a run, at most


class CompletionTrainer(Trainer):
    """Trains on `Batches`: a step of the optimiser is one batch, run in parts by tokens.

    The loss of a step is the mean over all completion tokens of its rows, of all processes; the
    load-balancing loss of routers is the mean over its rows. Neither depends on how a step is
    divided into parts, nor among how many processes.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        batches: Batches,
        validation: Sequence[Encoded],
        batch_tokens: int,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(
            model,
            args,
            train_dataset=batches,
            eval_dataset=validation or None,  # what `evaluate` runs; the Trainer asks for it early
            callbacks=list(callbacks),
        )
        self._validation, self._batch_tokens = validation, batch_tokens
        self._base = unwrapped(model)
        routed = any(isinstance(module, LoraMoeLinear) for module in model.modules())
        self.routers = batch_state(model) if routed else BatchState()

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not prepared by accelerate, which would share the batches out: each is shared out itself.
        return DataLoader(
            self.train_dataset, batch_size=1, shuffle=False, collate_fn=lambda batch: batch[0]
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        return [next(epoch_iterator) for _ in range(num_batches)], None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return  # every process comes here, and one file is written
        # The adapter alone: PEFT would ask the hub whether the vocabulary has grown.
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        with writing_to(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **options)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # an estimate that reads input_ids, which are not there yet

    def training_step(
        self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of this process's part of a step; its share of the loss."""
        model.train()
        device = input_device(self._base)
        world = processes.count()  # gradients are averaged over processes, and are to be summed
        total = torch.zeros((), device=self.args.device)
        for place, items in enumerate(inputs.parts):
            batch = collate(items, device=device, mask_padding=True)
            self.routers.scale = 0 if inputs.spare else world * len(items) / inputs.rows
            last = place + 1 == len(inputs.parts)
            with nullcontext() if last else self.accelerator.no_sync(model):
                nats = token_losses(self._base, batch, through=model).sum()
                loss = nats * (0 if inputs.spare else world / inputs.tokens)
                self.accelerator.backward(loss)
            total += loss.detach().to(total.device)
        if not bool(total.isfinite()):
            raise NumericalError(
                f"the loss of step {self.state.global_step + 1} is {total.item()}; stopped "
                f"({REMEDY})"
            )
        return total

    @torch.no_grad()
    def evaluate(self, *_args: Any, **_options: Any) -> dict[str, float]:
        """Mean over the validation rows of their mean nats a completion token."""
        device = input_device(self._base)
        total = torch.zeros(1, dtype=torch.float64)
        with evaluation_mode(self._base):
            for items in processes.share(pack(self._validation, self._batch_tokens, self._base)):
                batch = collate(items, device=device)
                rows = row_sums(token_losses(self._base, batch).double(), batch)
                total += (rows / batch.counts.to(rows.device)).sum().cpu()
        processes.add([total])
        if not bool(total.isfinite()):
            raise NumericalError(
                f"the validation loss after step {self.state.global_step} is {total.item()}; "
                f"stopped ({REMEDY})"
            )
        metrics = {"eval_loss": total.item() / len(self._validation)}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class KeepCheckpoints(TrainerCallback):
    """Says which of the Trainer's checkpoints is whole, so that a half-written one is passed over.

    Older ones go only after that, but for the best, where one is to be chosen. Also has the last
    step measured, and moves the progress bar.
    """

    def __init__(self, steps: Steps, folder: Path, advance: Advance, *, measured: bool) -> None:
        self._steps, self._folder = steps, folder
        self._advance, self._measured = advance, measured

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The Trainer goes by what it wrote in the checkpoint that it resumes from: by the best
        # one's full path, which holds until the folder is moved, and by how often it was saved.
        if state.best_global_step:
            state.best_model_checkpoint = str(checkpoint_in(self._folder, state.best_global_step))
        state.save_steps = args.save_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()
        if state.global_step >= state.max_steps and self._measured:
            control.should_evaluate = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.barrier()  # each process has written its part
        if processes.is_first():
            seal(checkpoint_in(self._folder, state.global_step))
            steps = {step for step in (state.global_step, state.best_global_step) if step}
            whole = {"step": torch.tensor(state.global_step), "kept": torch.tensor(sorted(steps))}
            self._steps.save(CHECKPOINT, whole)
            kept = {checkpoint_in(self._folder, step) for step in steps}
            for found in self._folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if found not in kept:
                    shutil.rmtree(found)


class StopEarly(TrainerCallback):
    """Stops when so many measurements in a row have brought no lower loss.

    They are counted in the history, which checkpoints hold, so that a run that was cut short stops
    where it would have; transformers' own count is lost then.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if _spent(state.log_history, self._patience):
            control.should_training_stop = True


def _noted_step(steps: Steps) -> int | None:
    """The step of the last checkpoint; None without any, or where one that is needed is damaged."""
    kept = steps.load(CHECKPOINT)
    if kept is None or steps.folder is None:
        return None
    for step in kept["kept"].tolist():
        checkpoint = checkpoint_in(steps.folder, step)
        if not is_whole(checkpoint):
            note(f"{checkpoint} is damaged: training begins again")
            return None
    return int(kept["step"])


def _discard_after(folder: Path, done: int | None) -> None:
    """Remove the checkpoints of steps after `done`, or all: PEFT reads a card that it replaces.

    Whatever a kill or a disk has left of them would stop the run that writes them again.
    """
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = checkpoint.name.rpartition("-")[2]
        if step.isdecimal() and (done is None or int(step) > done):
            shutil.rmtree(checkpoint)


def _is_over(checkpoint: Path, patience: int) -> bool:
    """Whether the run that wrote a checkpoint had stopped early there."""
    written = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return _spent(written["log_history"], patience)


def _spent(history: Sequence[dict[str, float]], patience: int) -> bool:
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def checkpoint_in(folder: Path, step: int) -> Path:
    """Where the Trainer writes the checkpoint of a step."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def train_adapter(
    model: Any,
    batches: Batches,
    validation: Sequence[Encoded],
    options: FinetuneOptions,
    steps: Steps,
) -> Any:
    """Run transformers' Trainer, from the last whole checkpoint on; the state it ends with."""
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
        _reserve(model, steps, folder, best=options.patience is not None)
        # One decides for all: a disk that machines share may show the note to some of them later.
        done = processes.agreed(lambda: _noted_step(steps))
        if processes.is_first():
            _discard_after(folder, done)
        resumed = None
        if done is not None:
            resumed = str(checkpoint_in(folder, done))
            note(f"going on after step {done} of {len(batches)}")
            advance(done)
            if options.patience is not None and _is_over(Path(resumed), options.patience):
                # Killed after its last step: nothing is left but to take the best.
                batches, arguments.max_steps = batches.until(done), done
        trainer = CompletionTrainer(
            model, arguments, batches, validation, options.batch_tokens, callbacks
        )
        trainer.remove_callback(PrinterCallback)
        if options.gradient_checkpointing:
            layers = find_decoder_layers(unwrapped(model))
            stack.enter_context(checkpointed(layers.modules, training=True))
        # Else the scale of the last part would hold in a training loop of the caller's own.
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
    """Refuse beforehand what the disk has no room for: the checkpoints, and the adapter."""
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
    plain, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)  # noqa: NPY002
