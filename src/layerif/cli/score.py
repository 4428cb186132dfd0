"""`layerif score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.replay import finish
from layerif.data.options import LearntOptions, SampleOptions
from layerif.influence.options import ScoreOptions
from layerif.model.options import AdapterOptions, PlacedModelOptions

if TYPE_CHECKING:
    from layerif.artifacts import LayerScores
    from layerif.data.rows import Rows


@expanded
def score(
    context: typer.Context,
    model: PlacedModelOptions,
    task: LearntOptions,
    out: options.RunFolder,
    samples: SampleOptions,
    adapter: AdapterOptions,
    how: ScoreOptions,
    preset: options.PresetOption = None,
    keep_gradients: Annotated[
        bool,
        typer.Option(
            "--keep-gradients",
            help="Leave the gradients in the run folder, for `layerif solve`; see `layerif clean`.",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure the influence of training samples through each decoder layer.

    The loss of a sample is of its completion; of running text, in chunks of --max-length tokens, it
    is of every token. Writes scores.json, influence.safetensors and a picture to the run folder,
    and recipe.yaml, which replays it. Interrupted, the same command goes on where it was. `torchrun
    -m layerif score ...` shares the work out over processes, which all have to see the run folder.
    """
    from layerif.artifacts import SCORES
    from layerif.core.checkpoint import check_out
    from layerif.data import Corpus, Task

    how.check(adapter.adapter)
    check_out(out, SCORES, overwrite=overwrite)
    data = task.load(model.model, trust_remote_code=model.trust_remote_code)
    train: Rows
    validation: Rows
    if isinstance(data, Task):  # refused before weights are loaded
        train = samples.rows(data, "train", how.seed)
        validation = samples.rows(data, "validation", how.seed)

    from layerif.data.rows import text_rows
    from layerif.workflows.stages import score_into

    opened, tokenizer = model.open(**adapter.values())
    if isinstance(data, Corpus):
        size = {"max_length": how.max_length, "seed": how.seed}
        train, validation = text_rows(opened, tokenizer, data, samples.wanted(), **size)
    scores = score_into(
        out,
        opened,
        tokenizer,
        data,
        train=train,
        validation=validation,
        options=how,
        keep_gradients=keep_gradients,
        overwrite=overwrite,
    )
    show(context, scores, out, as_json=as_json)


def show(context: typer.Context, scores: LayerScores, out: Path, *, as_json: bool) -> None:
    """Scores that a run folder now holds: recipe, picture and table."""
    from layerif.artifacts import SCORES
    from layerif.core.processes import is_first
    from layerif.report.plots import leave_picture, plot_scores
    from layerif.report.tables import scores_table, sweep_lines

    if is_first():
        leave_picture(plot_scores, scores, beside=out / SCORES.mark)
    table, value = scores_table(scores), scores.summary()
    finish(context, out, table, value, *sweep_lines(scores), as_json=as_json)
