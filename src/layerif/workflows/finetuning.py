"""Fine-tuning as a stage: never done twice, and resumed where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerif.artifacts import ADAPTER, CARD_FILE, FINETUNING_FILE, Finetuning, Plan
from layerif.core.checkpoint import Steps
from layerif.core.files import new_folder, write_text
from layerif.core.processes import is_first
from layerif.data import Corpus, Task
from layerif.data.rows import Rows
from layerif.finetuning.finetune import finetune, routing_on
from layerif.finetuning.options import FinetuneOptions
from layerif.model.modes import as_found
from layerif.model.opening import Tokenizer
from layerif.model.quiet import quiet_transformers
from layerif.report.cards import adapter_card
from layerif.report.routing import plot_routing
from layerif.workflows.stage import Stage, fingerprint_of, hash_samples

ROUTING = "routing"


def finetune_into(  # noqa: PLR0913  # where to, the model, what on, the options
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    task: Task | Corpus,
    *,
    train: Rows,
    validation: Rows,
    plan: Plan | None,
    options: FinetuneOptions,
    overwrite: bool = False,
) -> Finetuning:
    """`finetune`, saved as PEFT saves an adapter, with the record beside it.

    Of a mixture of experts also how it sends the validation rows to them, with a picture.

    The adapter is taken out of the model again, which is as before, whatever happens. Of several
    processes each comes here with the same.

    Raises:
        InputError: as `finetune` and `resumable`; or the folder holds an adapter from different
            settings.
        NumericalError: as `finetune`.
    """
    asked = {**options.recorded(), "plan": plan and {plan.kind: plan.allocation}}
    wanted = fingerprint_of(model, hash_samples(train, validation), asked, tokenizer)
    # Whether some layer has several experts, between which tokens are sent.
    routed = plan is not None and plan.kind == "experts" and max(plan.allocation) > 1

    def work(steps: Steps) -> Finetuning:
        with as_found(model):
            adapted, record = finetune(
                model,
                tokenizer,
                train,
                validation,
                plan=plan,
                options=options,
                task={"name": task.name, **task.origin},
                steps=steps,
            )
            record = record.model_copy(update={"fingerprint": wanted})
            if is_first():
                with quiet_transformers(), new_folder(folder, ADAPTER) as part:
                    adapted.save_pretrained(part, save_embedding_layers=False)
                    record.save(part / FINETUNING_FILE)
                    write_text(part / CARD_FILE, adapter_card(record))
                    if validation and routed:
                        use = routing_on(adapted, tokenizer, validation, options)
                        use.save(part / f"{ROUTING}.json")
                        plot_routing(use, part / ROUTING)
        return record

    stage = Stage(ADAPTER, Finetuning.load, together=True)
    return stage.run(folder, wanted, work, overwrite=overwrite)
