"""Callbacks that tell transformers' Trainer, and trainers built on it, of routers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from layerif.adapters.balance import BatchState
from layerif.adapters.diagnostics import RoutingReport, routing
from layerif.adapters.layer import batch_state


class ScaleBalanceLoss(TrainerCallback):
    """Keeps the load-balancing loss at its coefficient where Trainer accumulates gradients.

    With `gradient_accumulation_steps` Trainer divides the loss of each batch by the number of
    batches that an optimizer step is made of (or by all of their tokens), before the backward pass.
    The gradient of load balancing comes in beside the loss and would not be divided, so it would
    be so many times too large. With this callback an optimizer step takes the mean over its
    batches, and the last of an epoch, which may have fewer, the mean over those. That is the
    gradient of one big batch where all batches have as many sequences; if the last of an epoch has
    fewer, these count more. Where the loss is scaled for float16, load balancing is scaled as much.

    The last step of a data set without a length is taken to be as large as the others, since its
    end is not known beforehand. Processes need nothing more: their gradients are averaged.

        trainer = Trainer(model, ..., callbacks=[ScaleBalanceLoss()])
    """

    _state: BatchState
    # Batches of the epoch that have yet to run; None where that is not known.
    _left: int | None
    _resumes: bool

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._state = batch_state(given["model"])
        self._resumes = not args.ignore_data_skip

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loader, each = given["train_dataloader"], args.gradient_accumulation_steps
        self._left = len(loader) if has_length(loader) else None
        if self._left and self._resumes:
            # As Trainer does: it goes on in the middle of the epoch that it was stopped in.
            self._left -= each * (state.global_step % -(-self._left // each))
        self._resumes = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        batches = args.gradient_accumulation_steps
        if self._left is not None:
            batches = max(1, min(batches, self._left))
            self._left -= batches
        scaler = getattr(given["optimizer"], "scaler", None)
        self._state.scale = (1.0 if scaler is None else scaler.get_scale()) / batches

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._state.scale = 1.0


class LogRouting(TrainerCallback):
    """Adds what the routers did since the last time to Trainer's logs of the training loss.

    The figures are those of `RoutingReport.summary`: router_entropy, dead_experts, largest_load.
    They are of the batches of this process; evaluation is not counted. Counts stay on the model's
    device, which is waited for only where something is logged.

    Callbacks that report (`report_to`) see only what those before them have added, and Trainer
    puts its own first: `before_others` puts this one before them.

        LogRouting().before_others(trainer)

    Attributes:
        adapter_name: the adapter that is observed.
    """

    def __init__(self, adapter_name: str = "default") -> None:
        self.adapter_name = adapter_name
        self._report = RoutingReport()
        self._observing = ExitStack()

    def before_others(self, trainer: Any) -> None:
        """Take the first place among a trainer's callbacks."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._observing.close()  # of a training that an error ended
        self._report = self._observing.enter_context(
            routing(given["model"], self.adapter_name, training_only=True)
        )

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        if "loss" not in logs:
            return  # of an evaluation, or of the whole training
        figures = self._report.summary()
        self._report.forget()
        logs.update(figures)
        # The history has a copy of the logs, made before callbacks are called.
        state.log_history[-1].update(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._observing.close()
