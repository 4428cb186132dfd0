"""A stage: work that writes one result, is never done twice, and goes on after an interruption.

A result carries the fingerprint of what it was made from. Asked for again, a stage reuses it; a
result from different settings is refused, or with `overwrite` replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from layerif.core.checkpoint import Steps, resumable, tidy
from layerif.core.files import Kind, check_target
from layerif.core.fingerprint import Fingerprint, hash_model, hash_texts
from layerif.core.processes import is_first
from layerif.core.progress import note
from layerif.core.record import JsonArtifact
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.data import Corpus, Task
    from layerif.data.rows import Rows
    from layerif.evaluation.options import EvaluateOptions
    from layerif.model.opening import Tokenizer

# What opens models and texts is imported where it is used: `layerif solve` does without.

R = TypeVar("R")
J = TypeVar("J", bound=JsonArtifact)


class Origin(Protocol):
    """What a result is made from: mostly a fingerprint."""

    def differences(self, found: Any, /) -> str:
        """In what another one differs from it, in words."""


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One kind of work, whose results are of one kind.

    Attributes:
        kind: of the result's files.
        load: reads it from its file or folder, or from the file in it that marks it as whole.
        made_from: what a result was made from.
        together: whether several processes share the work out.
    """

    kind: Kind
    load: Callable[[Path], R]
    made_from: Callable[[R], Origin | None] = attrgetter("fingerprint")
    together: bool = False

    def run(
        self,
        out: Path,
        wanted: Fingerprint,
        work: Callable[[Steps], R],
        *,
        overwrite: bool,
        resumed_by: Fingerprint | None = None,
    ) -> R:
        """The result at `out` where it was made from what is wanted; else the work is done.

        Args:
            out: the file or folder of the result.
            wanted: what it is to be made from.
            work: makes the result and saves it; its steps survive an interruption.
            overwrite: whether a result from different settings may be replaced.
            resumed_by: what the steps depend on, where that is less than the result does.

        Raises:
            InputError: as `found` and `resumable`.
        """
        if done := self.found(out, wanted, overwrite=overwrite):
            return done
        kept = resumed_by or wanted
        with resumable(out, kept, restart=overwrite, together=self.together) as steps:
            return work(steps)

    def found(self, out: Path, wanted: Origin, *, overwrite: bool) -> R | None:
        """The finished result at `out`, where it was made from what is wanted; else None.

        Raises:
            InputError: it is from different settings, and may not be replaced, saying which part
                differs; or what is there is no such result.
        """
        if not self.kind.is_finished(out):
            check_target(out, self.kind)
            return None
        try:
            found = self.load(out / self.kind.mark if self.kind.whole else out)
            made_from = self.made_from(found)
            if made_from == wanted:
                note(f"{out} already holds this result: nothing is done again")
                if is_first():
                    tidy(out)
                return found
            why = "it does not say what it was made from"
            if made_from is not None:
                why = wanted.differences(made_from)
        except InputError as error:
            why = str(error)
        if not overwrite:
            raise InputError(
                f"{out} already holds another result: {why}; choose another `out`, or pass "
                "overwrite=True to replace it"
            )
        check_target(out, self.kind)
        note(f"{out} is made again: {why}")
        return None


def json_stage(
    path: Path,
    wanted: Fingerprint,
    artifact: type[J],
    work: Callable[[Steps], J],
    *,
    overwrite: bool,
) -> J:
    """A stage whose result is one JSON file that says what it was made from."""

    def saved(steps: Steps) -> J:
        result = work(steps).model_copy(update={"fingerprint": wanted})
        result.save(path)
        return result

    stage = Stage(artifact.file_kind(), artifact.load)
    return stage.run(path, wanted, saved, overwrite=overwrite)


def hash_samples(train: Rows, validation: Rows) -> str:
    """The hash of the rows that a stage reads."""
    return hash_texts([[astuple(row) for row in rows] for rows in (train, validation)])


def content_of(source: Task | Corpus, options: EvaluateOptions) -> list[Any]:
    """What is measured of a source, as plain values."""
    from layerif.data import Corpus

    if isinstance(source, Corpus):
        return [source.name, source.text("evaluation")]
    rows = source.sample("test", options.samples, options.seed)
    return [source.name, *map(astuple, rows)]


def fingerprint_of(
    model: Any, data: str, options: dict[str, Any], tokenizer: Tokenizer | None = None
) -> Fingerprint:
    """What a stage's result depends on: the model, the hash of its texts, and its options.

    Args:
        tokenizer: what the texts are read by; None where none are read.
    """
    from layerif.model.opening import setting

    made_with = setting(model).model_dump() | read_with(model, tokenizer)
    return Fingerprint(model=hash_model(model), data=data, options={**options, **made_with})


def read_with(model: Any, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """How texts become a model's batches, where that is not plainly: for a fingerprint.

    The tokens that the tokenizer puts in front of every text and those behind it, which we leave
    out; and the lengths at which batches are divided for the sake of the model's positions.
    """
    from layerif.data.batching import rope_borders
    from layerif.data.tokenizing import around

    found = {
        "tokens_around": tokenizer is not None and around(tokenizer),
        "rope_borders": rope_borders(model),
    }
    return {name: value for name, value in found.items() if value and any(value)}
