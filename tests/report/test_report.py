"""Pictures and tables show the numbers of the artifacts, all of them, the same every time."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from rich.table import Table

from helpers.artifact_samples import MODEL, make_manifest, make_plan, make_results, make_scores
from layerif.artifacts import MetricScores, Plan, Results
from layerif.core.choices import Aggregation
from layerif.plans.allocate import allocate_experts, allocate_sparsity
from layerif.report.cards import pruned_card
from layerif.report.plots import ACCENT, plot_metric, plot_plan, plot_scores
from layerif.report.tables import (
    caveat_lines,
    manifest_lines,
    manifest_table,
    plan_table,
    results_table,
    scores_table,
)

EXPERTS = Plan(kind="experts", allocation=[1, 2, 3, 4, 10], model=MODEL)


def bars_of_svg(path: Path) -> np.ndarray:
    """(bars, 2) left edge and signed height, in points, of every shape in the colour of bars."""
    bars = []
    for shape in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path"):
        if f"fill: {ACCENT}" in shape.get("style", ""):
            numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", shape.get("d", ""))]
            x, y = numbers[0::2], numbers[1::2]
            # Drawn from the lower left corner on; y points down.
            bars.append((x[0], y[0] - y[2]))
    return np.array(bars)


def bars_of_png(path: Path) -> int:
    """Runs of columns that have the bars' colour somewhere."""
    colour = np.array([int(ACCENT[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    columns = (np.abs(imread(path)[:, :, :3] - colour).max(-1) < 2 / 255).any(0)
    return int((columns[1:] & ~columns[:-1]).sum())


class TestPlots:
    @pytest.mark.parametrize("aggregate", ["positive", "all"])
    def test_scores_are_bars_of_their_heights(self, tmp_path: Path, aggregate: Aggregation) -> None:
        # Would see: a layer left out or out of order, another aggregation drawn than named.
        influence = np.random.default_rng(5).normal(-0.2, 1.0, (5, 12))
        influence[2] = -np.abs(influence[2])  # one bar downwards for `all`, none for `positive`
        scores = make_scores(influence)
        files = plot_scores(scores, tmp_path / "scores", aggregate=aggregate)
        assert files == [tmp_path / "scores.png", tmp_path / "scores.svg"]
        bars = bars_of_svg(tmp_path / "scores.svg")
        assert len(bars) == 5
        assert (np.diff(bars[:, 0]) > 0).all()
        values = scores.aggregate(aggregate)
        heights = bars[:, 1] / np.abs(bars[:, 1]).max()
        np.testing.assert_allclose(heights, values / np.abs(values).max(), atol=1e-3)

    @pytest.mark.parametrize("kind", ["experts", "ranks"])
    def test_whole_numbers_are_bars_of_their_heights(self, tmp_path: Path, kind: Any) -> None:
        plot_plan(EXPERTS.model_copy(update={"kind": kind}), tmp_path / "plan")
        bars = bars_of_svg(tmp_path / "plan.svg")
        np.testing.assert_allclose(bars[:, 1] / bars[0, 1], EXPERTS.allocation, rtol=1e-3)
        assert bars_of_png(tmp_path / "plan.png") == 5

    def test_sparsities_are_bars_of_their_heights_above_the_axis(self, tmp_path: Path) -> None:
        plan = make_plan()
        plot_plan(plan, tmp_path / "plan")
        bars = bars_of_svg(tmp_path / "plan.svg")
        assert len(bars) == bars_of_png(tmp_path / "plan.png") == 5
        # The axis need not begin at 0: differences are what is to scale.
        steps, heights = np.diff(plan.allocation), np.diff(bars[:, 1])
        np.testing.assert_allclose(heights / heights[0], steps / steps[0], rtol=1e-2)

    @pytest.mark.parametrize("layers", [1, 32, 80])
    def test_one_bar_a_layer(self, tmp_path: Path, layers: int) -> None:
        plan = Plan(kind="experts", allocation=[2] * layers)
        plot_plan(plan, tmp_path / "plan")
        assert len(bars_of_svg(tmp_path / "plan.svg")) == layers
        assert bars_of_png(tmp_path / "plan.png") == layers

    def test_png_is_a_picture_of_the_size_promised(self, tmp_path: Path) -> None:
        png, svg = plot_scores(make_scores(), tmp_path / "scores")
        assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        height, width = imread(png).shape[:2]
        assert (width, height) == (1152, 512)  # 7.2 x 3.2 inches at 160 dots
        root = ElementTree.parse(svg).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("viewBox") == "0 0 518.4 230.4"  # the same in points

    def test_the_same_artifact_gives_the_same_files(self, tmp_path: Path) -> None:
        # Would see: a date or random identifiers inside, by which a rerun never compares equal.
        for draw, artifact in ((plot_scores, make_scores()), (plot_plan, EXPERTS)):
            first, second = (draw(artifact, tmp_path / str(n) / "a") for n in (1, 2))  # type: ignore[operator]
            for one, two in zip(first, second, strict=True):
                assert one.read_bytes() == two.read_bytes()

    def test_another_artifact_gives_other_files(self, tmp_path: Path) -> None:
        first = plot_plan(make_plan(), tmp_path / "a")
        second = plot_plan(make_plan(allocation=[0.5] * 5), tmp_path / "b")
        for one, two in zip(first, second, strict=True):
            assert one.read_bytes() != two.read_bytes()

    @pytest.mark.parametrize("values", [[0.0] * 3, [1.0] * 3, [0.0, 1.0], [0.5]])
    def test_plans_at_the_ends_can_be_drawn(self, tmp_path: Path, values: list[float]) -> None:
        plot_plan(Plan(kind="sparsity", allocation=values), tmp_path / "plan")
        assert len(bars_of_svg(tmp_path / "plan.svg")) == len(values)

    def test_scores_that_are_all_zero_can_be_drawn(self, tmp_path: Path) -> None:
        scores = make_scores(np.ones((5, 12)))
        plot_scores(scores, tmp_path / "scores", aggregate="negative")
        assert bars_of_svg(tmp_path / "scores.svg")[:, 1].tolist() == [0.0] * 5

    @pytest.mark.parametrize("unit", [1.0, -3e-5, 1e300, 5e-324])
    def test_scores_of_a_metric_are_bars_of_their_heights(
        self, tmp_path: Path, unit: float
    ) -> None:
        values = [unit * n for n in (3, 1, 4, 2, 5)]
        setting = make_results().setting
        scores = MetricScores(metric="own", scores=values, model=MODEL, seconds=1, setting=setting)
        plot_metric(scores, tmp_path / "metric")
        bars = bars_of_svg(tmp_path / "metric.svg")
        np.testing.assert_allclose(bars[:, 1] / bars[0, 1], np.array((3, 1, 4, 2, 5)) / 3, 1e-3)

    def test_a_name_is_no_formula_and_takes_no_room(self, tmp_path: Path) -> None:
        # Would see: a bad formula's ValueError after the work, axes without width, warnings.
        names = ("plain", r"cost$\frac$ 漢字", "W" * 200, "two\nlines")
        widths = []
        for number, name in enumerate(names):
            plan = EXPERTS.model_copy(update={"model": MODEL.model_copy(update={"name": name})})
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                plot_plan(plan, tmp_path / str(number))
            widths.append(np.diff(bars_of_svg(tmp_path / f"{number}.svg")[:, 0]))
        np.testing.assert_allclose(widths, [widths[0]] * len(names))

    def test_the_stem_may_hold_dots_and_a_new_folder(self, tmp_path: Path) -> None:
        # Would see: with_suffix, which would take ".5" off.
        written = plot_plan(EXPERTS, tmp_path / "new" / "at-0.5")
        assert [path.name for path in written] == ["at-0.5.png", "at-0.5.svg"]
        assert all(path.is_file() for path in written)
        assert len(list((tmp_path / "new").iterdir())) == 2

    def test_pyplot_and_its_global_state_are_left_alone(self, tmp_path: Path) -> None:
        EXPERTS.save(tmp_path / "plan.json")
        code = (
            "import sys, matplotlib\n"
            "from layerif.artifacts import Plan\n"
            "from layerif.report.plots import plot_plan\n"
            f"folder = {str(tmp_path)!r}\n"
            "plot_plan(Plan.load(folder + '/plan.json'), folder + '/plan')\n"
            "print('matplotlib.pyplot' in sys.modules, matplotlib.rcParams['svg.hashsalt'])\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True
        )
        assert run.stdout == "False None\n", run.stderr


def render(table: Table, width: int = 120) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return [line for line in console.export_text().splitlines() if line.strip()]


def rows(table: Table, width: int = 120) -> list[list[str]]:
    """The cells of the rows that begin with the number of a layer, as they are shown."""
    split = (line.split() for line in render(table, width))
    return [cells for cells in split if cells and cells[0].isdigit()]


class TestTables:
    @pytest.mark.parametrize("aggregate", ["positive", "negative"])
    def test_scores(self, aggregate: Aggregation) -> None:
        scores = make_scores()
        table = scores_table(scores, aggregate)
        title, head, below = render(table)[:3]
        assert "tiny/llama, mrpc" in title
        names = list(dict.fromkeys(["all", "positive", "top", aggregate]))
        assert head.split() == ["helpful"]
        assert below.split() == ["layer", *names, "samples", aggregate]
        shown = rows(table)
        assert [int(row[0]) for row in shown] == [0, 1, 2, 3, 4]
        for column, name in enumerate(names, start=1):
            found = [float(row[column]) for row in shown]
            np.testing.assert_allclose(found, scores.aggregate(name), rtol=1e-3)
        values = scores.aggregate(aggregate)
        helpful = [sum(v > 0 for v in row) / 12 for row in scores.influence]
        assert [row[len(names) + 1] for row in shown] == [f"{share:.0%}" for share in helpful]
        longest = max(shown, key=lambda row: len(row[-1]))
        assert int(longest[0]) == values.argmax()

    def test_scores_that_are_all_zero(self) -> None:
        shown = rows(scores_table(make_scores(np.ones((5, 12))), "negative"))
        assert shown == [[str(layer), "12", "12", "3", "0", "100%"] for layer in range(5)]

    def test_bars_keep_their_proportions_where_there_is_no_room(self) -> None:
        # Cut off at the edge, those of 10 and 4 experts would look alike.
        shown = rows(plan_table(EXPERTS), width=28)
        assert [len(row[2]) for row in shown] == [round(6 * n / 10) for n in EXPERTS.allocation]
        assert "…" not in str(shown)

    def test_sparsity_plan(self) -> None:
        plan = make_plan()
        table = plan_table(plan)
        # (0.4 x 3 + 0.45 x 3 + 0.5 x 5 + 0.55 x 3 + 0.6 x 7) / 21
        assert "51.90% overall" in render(table)[0]
        assert [row[1] for row in rows(table)] == ["40.00%", "45.00%", "50.00%", "55.00%", "60.00%"]

    def test_experts_plan(self) -> None:
        table = plan_table(EXPERTS)
        assert "20 in all" in render(table)[0]
        shown = rows(table)
        assert [row[1] for row in shown] == ["1", "2", "3", "4", "10"]
        bars = [len(row[2]) for row in shown]
        assert bars == [round(24 * n / 10) for n in EXPERTS.allocation]

    @pytest.mark.parametrize(
        "plan", [allocate_sparsity(make_scores(), 0.5), allocate_experts(make_scores(), 20)]
    )
    def test_what_is_allocated_can_be_shown(self, plan: Plan) -> None:
        assert len(rows(plan_table(plan))) == 5

    def test_manifest_shows_asked_beside_counted(self) -> None:
        # Would see: layer 1 taking the modules of layers 10 to 12 for its own.
        layers = 13
        value = make_manifest().model_dump()
        value["model"] |= {"layers": layers, "layer_sizes": [100] * layers}
        value["plan"] = {"kind": "sparsity", "allocation": [0.5] * layers}
        value["modules"] = [
            {"module": f"layers.{layer}.{name}", "asked": 25, "zeros": zeros, "numel": 50}
            for layer in range(layers)
            for name, zeros in (("q_proj", 25 + layer), ("up_proj", 25))
        ]
        table = manifest_table(type(make_manifest()).model_validate(value))
        assert "tiny/llama pruned by wanda: 50.00% zeros" in render(table)[0]
        assert [row[:3] for row in rows(table)] == [
            [str(layer), "50.00%", f"{50 + layer}.00%"] for layer in range(layers)
        ]

    def test_manifest_shows_patterns_and_the_largest_error_of_a_layer(self) -> None:
        value = make_manifest().model_dump() | {"nm": "2:4", "method": "sparsegpt"}
        value["modules"] = [
            {"module": f"layers.{layer}.{name}", "asked": 50, "zeros": 50, "numel": 100}
            | {"pattern": pattern, "error": error, "damping": damping}
            for layer in range(5)
            for name, pattern, error, damping in (
                ("q_proj", "2:4", 0.02, 0.01),
                ("up_proj", "1:4" if layer else "2:4", 0.051, 0.1 if layer == 3 else 0.01),
            )
        ]
        value["plan"]["allocation"] = [0.5, 0.5, 0.5, 0.5, 0.6]
        manifest = type(make_manifest()).model_validate(value)
        shown = rows(manifest_table(manifest))
        assert shown[0][:5] == ["0", "50.00%", "50.00%", "2:4", "5.10%"]
        assert shown[4][:6] == ["4", "60.00%", "50.00%", "1:4", "2:4", "5.10%"]
        assert manifest_lines(manifest) == [
            "The plan asks for 52.0000% zeros; 50.0000% is the nearest that 2:4 with its N by "
            "projection can be.",
            "1 Hessian needed more damping than 0.01: layers.3.up_proj (0.1)",
        ]

    def test_results_have_a_column_a_measurement_and_a_row_a_model(self) -> None:
        dense = make_results().model_copy(update={"sparsity": 0.0})
        table = results_table({"dense": dense, "LayerIF": make_results()}, "After pruning")
        headers = [str(column.header) for column in table.columns]
        assert headers == [
            "",
            "sparsity",
            "wikitext2\nperplexity ↓",
            "mrpc\naccuracy ↑",
            "mrpc\nanswer loss ↓",
        ]
        lines = render(table)
        assert lines[0].strip() == "After pruning"
        # 54.7; 62.5 % within 50 % to 75 %; 0.7 nats.
        assert lines[-2].split() == ["dense", "0.00%", "54.70", "62.5%", "±", "12.5%", "0.700"]
        assert lines[-1].split() == ["LayerIF", "50.00%", "54.70", "62.5%", "±", "12.5%", "0.700"]

    def test_perplexity_has_its_interval_where_one_is_known(self) -> None:
        value: dict[str, Any] = make_results().model_dump()
        value["measurements"][0] |= {"low": 52.0, "high": 58.0}
        results = {"dense": Results.model_validate(value)}
        assert render(results_table(results, "t"))[-1].split()[2:5] == ["54.70", "±", "3.00"]
        assert caveat_lines(results)[0] == (
            "Measured on wikitext2: 10,000 tokens, ± half a 95 % interval."
        )

    def test_caveats_stand_beside_the_figures(self) -> None:
        assert list(caveat_lines({"dense": make_results()})) == [
            "Measured on wikitext2: 10,000 tokens.",
            "Measured on mrpc: 80 rows, ± half a 95 % interval. Chance is 50%.",
            "tiny/llama is dequantised from Q4_K_M, not the published checkpoint.",
        ]
        plain = make_results().model_copy(update={"model": MODEL})
        assert len(caveat_lines({"dense": plain})) == 2

    def test_generated_answers_are_called_so_and_those_not_read_counted_apart(self) -> None:
        value: dict[str, Any] = make_results().model_dump()
        details = {"parse_failures": 3, "accuracy_of_parsed": 0.65, "chance": 0.5}
        value["measurements"][1] |= {"scoring": "generation", "details": details}
        results = Results.model_validate(value)
        table = results_table({"dense": results}, "t")
        assert [str(column.header) for column in table.columns][3:] == [
            "mrpc\ngeneration\naccuracy ↑"
        ]
        line = (
            "3 of 80 answers on mrpc could not be read, and count as wrong; "
            "of the others 65.0% are right."
        )
        assert list(caveat_lines({"dense": results})).count(line) == 1
        # Of several models, each with its own.
        details["parse_failures"] = 0
        results.measurements[1].details["accuracy_of_parsed"] = None
        lines = caveat_lines({"dense": Results.model_validate(value), "pruned": results})
        assert [line for line in lines if "could not" in line] == [
            "3 of 80 answers of pruned on mrpc could not be read, and count as wrong."
        ]

    @pytest.mark.parametrize("name", ["run [draft]", "models/[/x]", "[bold]m"])
    def test_names_with_brackets_are_shown_as_they_are(self, name: str) -> None:
        # Would see: names read as markup of the terminal library, which drops them or stops.
        value: dict[str, Any] = make_results().model_dump()
        value["measurements"][0]["name"] = name
        table = results_table({name: Results.model_validate(value)}, name)
        lines = render(table)
        assert sum(name in line for line in lines) == 3  # title, column, row


def test_a_card_says_nothing_of_seconds_or_hashes():
    manifest = make_manifest()
    how = {"map": "marginal", "eta": 0.06, "rounds": [{"seconds": 1.5}], "content": "0f" * 32}
    plan = manifest.plan.model_copy(update={"how": how})
    card = pruned_card(manifest.model_copy(update={"plan": plan}))
    assert "map marginal, eta 0.06" in card
    assert "seconds" not in card
    assert "0f0f" not in card
