"""What artifacts promise: they come back as they were saved, and refuse what is not theirs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from helpers.artifact_samples import MODEL, make_manifest, make_results, make_scores, write
from layerif.artifacts import (
    LayerScores,
    Manifest,
    Measurement,
    Plan,
    PrunedModule,
    Results,
    versions,
)
from layerif.artifacts.scores import INFLUENCE_FILE, SCORES_FILE
from layerif.core.files import json_text
from layerif.errors import InputError


class TestLayerScores:
    def test_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        # Would see: a detour through float32 or decimal text, a lost sign of zero.
        influence = np.random.default_rng(1).normal(size=(5, 7)) * 1e-9
        influence[0, :3] = [-0.0, 5e-324, 0.1 + 0.2]
        scores = make_scores(influence)
        scores.save(tmp_path / "run")
        back = LayerScores.load(tmp_path / "run")
        for name in ("influence", "projection_influence", "train_losses"):
            ours, theirs = getattr(scores, name), getattr(back, name)
            assert theirs.dtype == np.float64
            assert theirs.shape == ours.shape
            assert theirs.tobytes() == ours.tobytes()
        assert back.record == scores.record
        assert back.projections == scores.projections
        assert back.model == scores.model
        assert back == scores

    def test_come_back_from_arrays_of_any_layout(self, tmp_path: Path) -> None:
        # Would see: the buffer of a transposed array written as if it were in row order.
        scores = make_scores(np.random.default_rng(1).normal(size=(7, 5)).T)
        scores.save(tmp_path)
        assert LayerScores.load(tmp_path) == scores

    def test_are_equal_only_if_all_is_equal(self) -> None:
        scores = make_scores()
        assert scores == make_scores()
        assert scores != replace(scores, influence=scores.influence + 1e-15)
        assert scores != replace(scores, train_losses=scores.train_losses[::-1].copy())
        assert scores != replace(scores, projections=scores.projections[::-1])
        assert scores != replace(scores, record=scores.record.model_copy(update={"seed": 4}))
        assert scores != scores.summary()

    def test_summary_holds_the_aggregations_of_the_matrix(self, tmp_path: Path) -> None:
        scores = make_scores()
        rows = scores.influence.tolist()
        by_hand = {
            "all": [fsum(row) for row in rows],
            "positive": [fsum(v for v in row if v > 0) for row in rows],
            "top": [fsum(sorted(row)[-3:]) for row in rows],  # a quarter of twelve
            "negative": [-fsum(v for v in row if v < 0) for row in rows],
        }
        summary = scores.summary()
        assert summary["scores"].keys() == by_hand.keys()
        for how, expected in by_hand.items():
            np.testing.assert_allclose(summary["scores"][how], expected, rtol=0, atol=1e-14)
        assert summary["model"]["layer_sizes"] == MODEL.layer_sizes
        assert summary["record"]["sign"] == "helpful_positive"
        assert summary["projections"][3] == [1, "mlp.up_proj", 1500]
        scores.save(tmp_path)
        assert json.loads((tmp_path / SCORES_FILE).read_text("utf-8")) == summary

    def test_projections_add_up_to_the_layer_for_all_and_not_for_the_rest(self) -> None:
        scores = make_scores()
        layers = scores.aggregate_projections("all").reshape(5, 2).sum(1)
        np.testing.assert_allclose(layers, scores.aggregate("all"), atol=1e-14)
        # One layer whose projections disagree about a sample: no sum over rows can tell.
        opposed = replace(
            scores,
            influence=np.zeros((5, 12)),
            projection_influence=np.tile([[1.0], [-1.0]], (5, 12)),
        )
        assert opposed.aggregate("positive").tolist() == [0.0] * 5
        assert opposed.aggregate_projections("positive").tolist() == [12.0, 0.0] * 5

    @pytest.mark.parametrize("name", ["influence", "projection_influence", "train_losses"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_refuse_what_is_not_finite(self, name: str, bad: float) -> None:
        scores = make_scores()
        values = getattr(scores, name).copy()
        values.flat[3] = bad
        with pytest.raises(InputError, match=f"^{name} .*finite"):
            replace(scores, **{name: values})

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("influence", (4, 12)),
            ("influence", (5, 11)),
            ("influence", (12, 5)),
            ("influence", (60,)),
            ("projection_influence", (9, 12)),
            ("projection_influence", (10, 11)),
            ("projection_influence", (120,)),
            ("projection_influence", (5, 2, 12)),
            ("train_losses", (11,)),
            ("train_losses", (12, 1)),
            ("train_losses", ()),
        ],
    )
    def test_refuse_arrays_that_do_not_belong_together(
        self, name: str, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(InputError, match="10 projections") as e:
            replace(make_scores(), **{name: np.ones(shape)})
        assert str(shape) in str(e.value)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    make_scores().save(tmp_path / "run")
    return tmp_path / "run"


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header = json.loads((folder / SCORES_FILE).read_text("utf-8"))
    change(header)
    (folder / SCORES_FILE).write_text(json.dumps(header), "utf-8")


class TestDamagedRunFolders:
    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_truncated_matrix(self, run_folder: Path, kept: int) -> None:
        path = run_folder / INFLUENCE_FILE
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(InputError, match=INFLUENCE_FILE):
            LayerScores.load(run_folder)

    def test_matrix_gone(self, run_folder: Path) -> None:
        (run_folder / INFLUENCE_FILE).unlink()
        with pytest.raises(InputError, match=f"{INFLUENCE_FILE}.*exist"):
            LayerScores.load(run_folder)

    @pytest.mark.parametrize("name", ["influence", "projection_influence", "train_losses"])
    def test_array_gone(self, run_folder: Path, name: str) -> None:
        arrays = load_file(run_folder / INFLUENCE_FILE)
        del arrays[name]
        save_file(arrays, run_folder / INFLUENCE_FILE)
        with pytest.raises(InputError, match=f"lacks {name}"):
            LayerScores.load(run_folder)

    def test_array_of_another_run(self, run_folder: Path) -> None:
        arrays = load_file(run_folder / INFLUENCE_FILE)
        arrays["train_losses"] = arrays["train_losses"][:-1].copy()
        save_file(arrays, run_folder / INFLUENCE_FILE)
        with pytest.raises(InputError, match=r"\(11,\)"):
            LayerScores.load(run_folder)

    def test_header_gone(self, run_folder: Path) -> None:
        # A run that was cut short has the matrix and no header.
        (run_folder / SCORES_FILE).unlink()
        with pytest.raises(InputError, match=f"{SCORES_FILE}.*exist"):
            LayerScores.load(run_folder)

    def test_folder_gone(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="nowhere"):
            LayerScores.load(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda h: h.update(format="layerif.scores/9"), "format: "),
            (lambda h: h.pop("format"), "format: "),
            (lambda h: h["record"].update(colour="blue"), "record.colour"),
            (lambda h: h["record"].pop("damping"), "record.damping"),
            (lambda h: h["record"].update(sign="harmful"), "record.sign"),
            (lambda h: h["model"].update(layers="five"), "model.layers"),
            (lambda h: h["model"].update(layers=6), "model: layer_sizes"),
            (lambda h: h.pop("record"), "record: "),
            (lambda h: h.pop("projections"), "projections: "),
            (lambda h: h.update(projections=[[0, "q_proj"]]), "projections.0.2"),
            (lambda h: h.update(projections=None), "projections: "),
            (lambda h: h["projections"].pop(), "9 projections"),
            (lambda h: h["projections"].append(["x", "q", 1]), "projections.10.0"),
        ],
    )
    def test_header_changed(
        self, run_folder: Path, change: Callable[[dict[str, Any]], object], says: str
    ) -> None:
        edit_header(run_folder, change)
        with pytest.raises(InputError, match=says):
            LayerScores.load(run_folder)

    @pytest.mark.parametrize("text", ["[]", "3", "null", '"layerif.scores/1"'])
    def test_header_of_another_shape(self, run_folder: Path, text: str) -> None:
        (run_folder / SCORES_FILE).write_text(text)
        with pytest.raises(InputError, match="dictionary"):
            LayerScores.load(run_folder)

    def test_header_cut_short(self, run_folder: Path) -> None:
        path = run_folder / SCORES_FILE
        path.write_text(path.read_text("utf-8")[:-20], "utf-8")
        with pytest.raises(InputError, match="line 66"):
            LayerScores.load(run_folder)

    def test_a_pickle_is_never_run(self, run_folder: Path, tmp_path: Path) -> None:
        # Would see: a reader that falls back to torch.load or numpy with allow_pickle.
        marker = tmp_path / "marker"

        class Touch:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (marker,)

        pickled = pickle.dumps(Touch())
        pickle.loads(pickled)
        assert marker.exists(), "the pickle is live"
        marker.unlink()
        (run_folder / INFLUENCE_FILE).write_bytes(pickled)
        with pytest.raises(InputError, match=INFLUENCE_FILE):
            LayerScores.load(run_folder)
        assert not marker.exists()

    def test_a_save_that_fails_halfway_leaves_no_mixture(self, run_folder: Path) -> None:
        # Would see: a new matrix under the header of the old one, which loads and is wrong.
        other = make_scores(np.ones((5, 12)))
        task = {"name": "mrpc", "share": float("nan")}
        broken = replace(other, record=other.record.model_copy(update={"task": task}))
        with pytest.raises(ValueError, match="JSON"):
            broken.save(run_folder)
        assert (LayerScores.load(run_folder).influence == make_scores().influence).all()


class TestResultsAndManifest:
    def test_results_come_back(self, tmp_path: Path) -> None:
        make_results().save(tmp_path / "results.json")
        assert Results.load(tmp_path / "results.json") == make_results()

    def test_manifest_comes_back_with_its_plan(self, tmp_path: Path) -> None:
        make_manifest().save(tmp_path / "manifest.json")
        back = Manifest.load(tmp_path / "manifest.json")
        assert back == make_manifest()
        back.plan.check_fits(back.model, "sparsity")

    def test_sparsity_of_a_module_is_counted_not_asked(self) -> None:
        module = PrunedModule(module="layers.0.mlp.up_proj", asked=30, zeros=31, numel=64)
        assert module.sparsity == 31 / 64

    def test_a_manifest_with_a_plan_that_is_no_plan_is_refused(self, tmp_path: Path) -> None:
        value = make_manifest().model_dump(mode="json")
        value["plan"]["allocation"][2] = 1.2
        with pytest.raises(InputError, match=r"layer 2 .*1\.2"):
            Manifest.load(write(tmp_path, json.dumps(value)))

    def test_a_figure_that_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="finite number"):
            Measurement(name="wikitext2", metric="perplexity", value=float("inf"), count=1)
        text = json_text(make_results().model_dump(mode="json")).replace("54.7", "NaN")
        with pytest.raises(InputError, match="NaN"):
            Results.load(write(tmp_path, text))

    def test_one_artifact_is_not_taken_for_another(self, tmp_path: Path) -> None:
        make_results().save(tmp_path / "results.json")
        with pytest.raises(InputError, match=r"results.json: format: .*Plan"):
            Plan.load(tmp_path / "results.json")

    def test_records_cannot_be_changed_in_place(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            make_results().sparsity = 0.4  # type: ignore[misc]


def test_versions_are_those_installed() -> None:
    assert versions()["numpy"] == np.__version__
    assert versions()["torch"] == metadata.version("torch")
    assert set(versions()) == {"python", "layerif", "torch", "transformers", "numpy"}
