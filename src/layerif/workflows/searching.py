"""A search as a stage: never done twice, and resumed where it was interrupted."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from layerif.artifacts import Fingerprint, Plan, hash_texts
from layerif.core.checkpoint import Steps
from layerif.data import Corpus, Task
from layerif.errors import InputError
from layerif.model.opening import Tokenizer
from layerif.plans.allocate import note_cautions
from layerif.search.depth_options import DepthSearchOptions
from layerif.search.options import StrategyOptions
from layerif.search.searching import search_plan
from layerif.workflows.stage import Stage, fingerprint_of

# In a plan's `how`, where the fingerprint of what it was made from is kept.
FINGERPRINT = "fingerprint"
# And the hash of the plan itself, which tells whether a person has edited it since.
CONTENT = "content"


def search_into(  # noqa: PLR0913  # where to, the model, what on, the options
    path: Path | None,
    model: Any,
    tokenizer: Tokenizer,
    total: float,
    *,
    calibration: Corpus,
    options: StrategyOptions | DepthSearchOptions,
    target: Corpus | Task | None = None,
    kind: str = "sparsity",
    overwrite: bool = False,
) -> Plan:
    """`search_plan` for a kind of budget, saved as JSON; what is finished survives an interruption.

    Without a path the plan is only returned.

    Raises:
        InputError: as `search` and `resumable`; or the file holds another plan, or one that was
            edited.
        NumericalError: as `search`.
    """
    search = partial(
        search_plan,
        model,
        total,
        options=options,
        tokenizer=tokenizer,
        calibration=calibration,
        target=target,
        kind=kind,
    )
    if path is None:
        return search()
    data = hash_texts([calibration.text("calibration"), _content(target)])
    asked = {kind: total, "map": options.strategy, **options.effective()}
    del asked["strategy"]
    wanted = fingerprint_of(model, data, asked, tokenizer)

    def made_from(plan: Plan) -> Fingerprint | None:
        kept = plan.how.get(FINGERPRINT)
        if _edited(plan):
            raise InputError("it was edited since it was made")
        return None if kept is None else Fingerprint.parse(kept, f"{path}: {FINGERPRINT}")

    def work(steps: Steps) -> Plan:
        plan = search(steps=steps)
        made = {CONTENT: _hash(plan), FINGERPRINT: wanted.model_dump(mode="json")}
        how = {**plan.how, **made}
        plan = plan.model_copy(update={"how": how})
        note_cautions(plan)
        plan.save(path)
        return plan

    stage = Stage(Plan.file_kind(), Plan.load, made_from)
    return stage.run(path, wanted, work, overwrite=overwrite)


def check_unedited(path: Path) -> None:
    """Refuse to go on where a plan of ours now holds other numbers: nothing may replace them.

    Raises:
        InputError: it does.
    """
    if path.is_file() and _edited(Plan.load(path)):
        raise InputError(
            f"{path} was edited since it was made, and is not replaced; move it away, and the plan "
            "is made again"
        )


def _edited(plan: Plan) -> bool:
    return CONTENT in plan.how and plan.how[CONTENT] != _hash(plan)


def _hash(plan: Plan) -> str:
    """Of all that the plan says but how it was made."""
    return hash_texts([plan.model_dump_json(exclude={"how"})])


def _content(target: Corpus | Task | None) -> list[Any]:
    """What the loss may be taken on, as plain values."""
    if target is None:
        return []
    if isinstance(target, Corpus):
        return ["corpus", target.text("calibration")]
    return ["task", *(list(map(astuple, target.splits[s])) for s in ("train", "validation"))]
