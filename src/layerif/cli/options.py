"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from layerif.core.choices import Preset
from layerif.core.options import GIVES_WAY, Rule
from layerif.data.options import SampleOptions

OutFolder = Annotated[Path, typer.Option(help="Folder to write to.")]
RunFolder = Annotated[Path, typer.Option(help="Run folder to write to.")]
PresetOption = Annotated[
    Preset | None,
    typer.Option(help="paper: LayerIF's own setting in place of the defaults; what is given wins."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of parquet data sets, instead of the hub.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON for machines.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result that layerif wrote to --out before.")
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Keep no likelihoods for later, and use none kept before."),
]


class MoreSampleOptions(SampleOptions):
    """How many rows of a task, where its validation rows are what is measured."""

    validation_samples: Annotated[int, Field(ge=1), GIVES_WAY] = 100
    """Validation rows of the task."""


def beside(names: str, other: str) -> Rule:
    """That options have an effect only where another one is given."""
    return Rule(names, lambda v: v.get(other) is not None, f"with {{{other}}}")


def likelihood_cache(*, no_cache: bool) -> Path | None:
    """Where the command line keeps likelihoods, by model and texts."""
    from layerif.core.files import cache_folder

    return None if no_cache else cache_folder() / "likelihoods"
