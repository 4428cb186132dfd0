"""What artifacts promise: they come back as they were saved, and refuse what is not theirs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib import metadata
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from layerif.artifacts import (
    Allocation,
    LayerScores,
    Manifest,
    Measurement,
    ModelInfo,
    ProjectionInfo,
    PrunedModule,
    Results,
    ScoringRecord,
    Setting,
    versions,
)
from layerif.artifacts.scores import INFLUENCE_FILE, SCORES_FILE
from layerif.errors import InputError
from layerif.runs import json_text

SETTING = Setting(dtype="float32", device="cpu", versions={"python": "3.12.0", "torch": "2.9.0"})
# Layers of different size, as some architectures have them.
MODEL = ModelInfo(
    name="tiny/llama",
    architecture="LlamaForCausalLM",
    layers=5,
    layer_sizes=[3000, 3000, 5000, 3000, 7000],
)


def make_scores(influence: np.ndarray | None = None) -> LayerScores:
    """Scores of five layers with two projections each, on a dozen samples, of either sign."""
    generator = np.random.default_rng(0)
    if influence is None:
        influence = generator.normal(0.1, 1.0, (MODEL.layers, 12))
    share = generator.uniform(0.2, 0.8, influence.shape)
    both = np.stack([influence * share, influence * (1 - share)], axis=1)
    return LayerScores(
        influence=influence,
        projection_influence=both.reshape(-1, influence.shape[1]),
        train_losses=generator.uniform(0.5, 4.0, influence.shape[1]),
        projections=tuple(
            ProjectionInfo(layer=layer, name=name, numel=size // 2)
            for layer, size in enumerate(MODEL.layer_sizes)
            for name in ("self_attn.q_proj", "mlp.up_proj")
        ),
        model=MODEL,
        record=ScoringRecord(
            estimator="datainf",
            subspace="fresh_lora",
            subspace_options={"rank": 8, "alpha": 16.0, "seed": 0},
            block="matrix",
            damping=0.1,
            sign="helpful_positive",
            seed=3,
            max_length=256,
            task={"name": "mrpc", "origin": "Größe 1 → 2"},
            train_samples=influence.shape[1],
            validation_samples=4,
            dropped_train=[2, 9],
            dropped_validation=[],
            silent_blocks=["layers.0.mlp.up_proj"],
            validation_loss=1.25,
            seconds=0.125,
            setting=SETTING,
        ),
    )


def make_plan(**changes: Any) -> Allocation:
    values: dict[str, Any] = {
        "kind": "sparsity",
        "allocation": [0.4, 0.45, 0.5, 0.55, 0.6],
        "layer_sizes": MODEL.layer_sizes,
        "model": MODEL,
        "how": {"map": "layerif", "epsilon": 0.2},
    }
    return Allocation(**values | changes)


EXPERTS = {"kind": "experts", "allocation": [1, 2, 3, 4, 5], "total": 15}


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
        with pytest.raises(InputError, match=f"^{name} holds values that are not finite"):
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
        with pytest.raises(InputError, match="do not belong to 5 layers with 10 projections") as e:
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
        with pytest.raises(InputError, match="run are incomplete or damaged"):
            LayerScores.load(run_folder)

    def test_matrix_gone(self, run_folder: Path) -> None:
        (run_folder / INFLUENCE_FILE).unlink()
        with pytest.raises(InputError, match=f"incomplete or damaged.*{INFLUENCE_FILE}"):
            LayerScores.load(run_folder)

    @pytest.mark.parametrize("name", ["influence", "projection_influence", "train_losses"])
    def test_array_gone(self, run_folder: Path, name: str) -> None:
        arrays = load_file(run_folder / INFLUENCE_FILE)
        del arrays[name]
        save_file(arrays, run_folder / INFLUENCE_FILE)
        with pytest.raises(InputError, match=f"incomplete or damaged: '{name}'"):
            LayerScores.load(run_folder)

    def test_array_of_another_run(self, run_folder: Path) -> None:
        arrays = load_file(run_folder / INFLUENCE_FILE)
        arrays["train_losses"] = arrays["train_losses"][:-1].copy()
        save_file(arrays, run_folder / INFLUENCE_FILE)
        with pytest.raises(InputError, match=r"train losses of shape \(11,\)"):
            LayerScores.load(run_folder)

    def test_header_gone(self, run_folder: Path) -> None:
        # A run that was cut short has the matrix and no header.
        (run_folder / SCORES_FILE).unlink()
        with pytest.raises(InputError, match=f"{SCORES_FILE} does not exist; expected the scores"):
            LayerScores.load(run_folder)

    def test_folder_gone(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no run folder at .*nowhere"):
            LayerScores.load(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda h: h.update(format="layerif.scores/9"), "not in the form layerif.scores/1"),
            (lambda h: h.pop("format"), "not in the form layerif.scores/1"),
            (lambda h: h["record"].update(colour="blue"), "record in .*: colour: Extra inputs"),
            (lambda h: h["record"].pop("damping"), "record in .*: damping: Field required"),
            (lambda h: h["record"].update(sign="harmful"), "record in .*: sign: Input should be"),
            (lambda h: h["model"].update(layers="five"), "model in .*: layers: Input should be"),
            (lambda h: h["model"].update(layers=6), "do not belong to 6 layers"),
            (lambda h: h.pop("record"), "incomplete or damaged: 'record'"),
            (lambda h: h.pop("projections"), "incomplete or damaged: 'projections'"),
            (lambda h: h.update(projections=[[0, "q_proj"]]), "incomplete or damaged: not enough"),
            (lambda h: h.update(projections=None), "incomplete or damaged: 'NoneType'"),
            (lambda h: h["projections"].pop(), "do not belong to 5 layers with 9 projections"),
            (lambda h: h["projections"].append(["x", "q", 1]), "a projection in .*: layer: Input"),
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
        with pytest.raises(InputError, match="not in the form"):
            LayerScores.load(run_folder)

    def test_header_cut_short(self, run_folder: Path) -> None:
        path = run_folder / SCORES_FILE
        path.write_text(path.read_text("utf-8")[:-20], "utf-8")
        with pytest.raises(InputError, match="is not valid JSON"):
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
        with pytest.raises(InputError, match="incomplete or damaged"):
            LayerScores.load(run_folder)
        assert not marker.exists()

    def test_a_save_that_fails_halfway_leaves_no_mixture(self, run_folder: Path) -> None:
        # Would see: a new matrix under the header of the old one, which loads and is wrong.
        other = make_scores(np.ones((5, 12)))
        task = {"name": "mrpc", "share": float("nan")}
        broken = replace(other, record=other.record.model_copy(update={"task": task}))
        with pytest.raises(ValueError, match="not JSON compliant"):
            broken.save(run_folder)
        with pytest.raises(InputError, match=f"{SCORES_FILE} does not exist"):
            LayerScores.load(run_folder)


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.json"
    path.write_text(text, "utf-8")
    return path


class TestAllocation:
    def test_sparsity_comes_back(self, tmp_path: Path) -> None:
        plan = make_plan()
        plan = plan.model_copy(update={"total": plan.realised_total})
        plan.save(tmp_path / "plan.json")
        assert Allocation.load(tmp_path / "plan.json") == plan

    def test_experts_come_back_as_whole_numbers(self, tmp_path: Path) -> None:
        # Would see: 1.0 in the file, where a person expects to edit 1.
        path = tmp_path / "plan.json"
        plan = Allocation.parse(EXPERTS | {"how": {"top_k": [1, 2, 2, 2, 2]}}, "here")
        plan.save(path)
        in_file = json.loads(path.read_text())["allocation"]
        assert in_file == [1, 2, 3, 4, 5]
        assert {type(value) for value in in_file} == {int}
        back = Allocation.load(path)
        assert back == plan
        assert {type(value) for value in back.allocation} == {int}
        assert back.realised_total == 15

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
    def test_every_sparsity_survives_the_text(self, values: list[float]) -> None:
        plan = Allocation(kind="sparsity", allocation=values)
        back = Allocation.parse(json.loads(json_text(plan.model_dump(mode="json"))), "here")
        assert np.array(back.allocation).tobytes() == np.array(values).tobytes()

    def test_a_hand_written_plan_needs_two_fields(self, tmp_path: Path) -> None:
        plan = Allocation.load(
            write(tmp_path, '{"kind": "sparsity", "allocation": [0.25, 0.5, 0]}')
        )
        assert plan.allocation == [0.25, 0.5, 0]
        assert plan.realised_total == 0.25
        assert plan.total is None
        assert plan.model is None
        assert plan.how == {}

    def test_total_is_weighted_by_layer_size(self) -> None:
        plan = make_plan()
        sizes = MODEL.layer_sizes
        exact = sum(Fraction(s) * n for s, n in zip(plan.allocation, sizes, strict=True))
        assert plan.realised_total == pytest.approx(float(exact / sum(sizes)), abs=1e-15)
        plain = make_plan(model=None, layer_sizes=None, total=None)
        assert plain.realised_total == pytest.approx(sum(plan.allocation) / 5, abs=1e-15)

    def test_an_edited_layer_that_breaks_the_total_is_refused(self, tmp_path: Path) -> None:
        plan = make_plan(allocation=[0.5] * 5, total=0.5, model=None)
        plan.save(tmp_path / "plan.json")
        text = (tmp_path / "plan.json").read_text()
        path = write(tmp_path, text.replace("[0.5, 0.5, ", "[0.5, 0.7, "))
        # 0.2 of one layer of 3000 among 21000.
        with pytest.raises(InputError, match=r"weighted mean .* 0\.52857143, but total says 0\.5;"):
            Allocation.load(path)
        path = write(tmp_path, json.dumps(EXPERTS | {"allocation": [1, 2, 3, 4, 7]}))
        with pytest.raises(InputError, match="sum of the allocation is 17, but total says 15;"):
            Allocation.load(path)

    def test_rounding_by_hand_is_no_break(self, tmp_path: Path) -> None:
        thirds = '{"kind": "sparsity", "allocation": [0.3333333, 0.3333333], "total": 0.3333337}'
        assert Allocation.load(write(tmp_path, thirds)).total == 0.3333337

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"kind": "sparsity", "allocation": [0.5, 1.5]}', "layer 1 has sparsity 1.5"),
            ('{"kind": "sparsity", "allocation": [-0.1, 0.5]}', "layer 0 has sparsity -0.1"),
            ('{"kind": "sparsity", "allocation": [0.5, NaN]}', "NaN is not a number"),
            ('{"kind": "sparsity", "allocation": [0.5, -Infinity]}', "-Infinity is not a number"),
            ('{"kind": "sparsity", "allocation": [0.5, 1e999]}', "should be a finite number"),
            ('{"kind": "sparsity", "allocation": [0.5], "total": NaN}', "NaN is not a number"),
            ('{"kind": "sparsity", "allocation": [0.5], "how": {"a": NaN}}', "NaN is not a number"),
            ('{"kind": "sparsity", "allocation": []}', "at least 1 item"),
            ('{"kind": "sparsity", "allocation": 0.5}', "allocation.*should be a valid list"),
            ('{"kind": "sparsity", "allocation": [[0.5]]}', "should be a valid number"),
            ('{"kind": "sparsity", "allocation": [null]}', "should be a valid number"),
            ('{"kind": "sparsity"}', "allocation: Field required"),
            ('{"allocation": [0.5]}', "kind: Field required"),
            ('{"kind": "heads", "allocation": [1]}', "kind: Input should be 'sparsity', 'exp"),
            ('{"kind": "experts", "allocation": [2, 2.5]}', "layer 1 has 2.5 experts"),
            ('{"kind": "experts", "allocation": [0, 3]}', "layer 0 has 0 experts"),
            ('{"kind": "experts", "allocation": [3, -1]}', "layer 1 has -1 experts"),
            ('{"kind": "ranks", "allocation": [8, 0.5]}', "layer 1 has rank 0.5; each layer needs"),
            ('{"kind": "ranks", "allocation": [0, 8]}', "layer 0 has rank 0"),
            ('{"kind": "ranks", "allocation": [4, 8], "total": 13}', "the sum of .* is 12, but"),
            ('{"kind": "sparsity", "allocation": [0.5], "totl": 0.5}', "totl: Extra inputs"),
            (
                '{"kind": "sparsity", "allocation": [0.5, 0.5], "layer_sizes": [10]}',
                "allocation has 2 layers, layer_sizes 1",
            ),
            (
                '{"kind": "sparsity", "allocation": [0.5], "layer_sizes": [0]}',
                "every layer size must be at least 1",
            ),
            (
                '{"kind": "sparsity", "allocation": [0.5], "format": "layerif.allocation/2"}',
                "format: Input should be 'layerif.allocation/1'",
            ),
            ("[0.5, 0.5]", "the whole: Input should be a valid dictionary"),
            ('{"kind": "sparsity", "allocation": [0.5],}', "is not valid JSON .*line 1"),
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            Allocation.load(write(tmp_path, text))
        assert str(tmp_path / "plan.json") in str(error.value)

    def test_a_plan_of_a_model_has_as_many_layers_as_the_model(self, tmp_path: Path) -> None:
        text = json_text(make_plan().model_dump(mode="json") | {"layer_sizes": None})
        edited = text.replace("0.55, 0.6", "0.55")
        with pytest.raises(InputError, match="allocation has 4 layers, layer_sizes 5"):
            Allocation.load(write(tmp_path, edited))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"plan\.json does not exist; expected .* Allocation$"):
            Allocation.load(tmp_path / "plan.json")
        with pytest.raises(InputError, match=r"which is a folder$"):
            Allocation.load(tmp_path)

    def test_a_saved_plan_can_be_compared_line_by_line(self, tmp_path: Path) -> None:
        # Would see: one line a number, or all in one line, where a diff shows too much.
        make_plan().save(tmp_path / "a.json")
        make_plan(allocation=[0.4, 0.45, 0.3, 0.55, 0.6]).save(tmp_path / "b.json")
        a, b = ((tmp_path / name).read_text().splitlines() for name in ("a.json", "b.json"))
        assert '  "allocation": [0.4, 0.45, 0.5, 0.55, 0.6],' in a
        assert [(x, y) for x, y in zip(a, b, strict=True) if x != y] == [
            (
                '  "allocation": [0.4, 0.45, 0.5, 0.55, 0.6],',
                '  "allocation": [0.4, 0.45, 0.3, 0.55, 0.6],',
            )
        ]
        Allocation.load(tmp_path / "a.json").save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "a.json").read_bytes()

    def test_a_value_that_json_has_not_stops_the_save_and_spares_the_old_plan(
        self, tmp_path: Path
    ) -> None:
        # Would see: NaN among the parameters written as null.
        path = tmp_path / "plan.json"
        make_plan().save(path)
        with pytest.raises(ValueError, match="not JSON compliant"):
            make_plan(how={"epsilon": float("nan")}).save(path)
        assert Allocation.load(path) == make_plan()
        assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


class TestCheckFits:
    def test_the_model_it_was_made_for(self) -> None:
        make_plan().check_fits(MODEL, "sparsity")
        # Another checkpoint of the same shape will do: only shapes decide.
        make_plan().check_fits(MODEL.model_copy(update={"name": "tiny/other"}), "sparsity")

    def test_any_model_with_as_many_layers_if_made_for_none(self) -> None:
        plan = make_plan(model=None, layer_sizes=None)
        plan.check_fits(MODEL, "sparsity")
        with pytest.raises(InputError, match="the plan has 5 layers, but tiny/llama has 6"):
            plan.check_fits(MODEL.model_copy(update={"layers": 6}), "sparsity")

    def test_refuses_another_kind(self) -> None:
        with pytest.raises(InputError, match="allocates sparsity; a plan of experts is needed"):
            make_plan().check_fits(MODEL, "experts")

    def test_refuses_another_number_of_layers(self) -> None:
        other = ModelInfo(name="big", architecture="X", layers=6, layer_sizes=[3000] * 6)
        with pytest.raises(InputError, match=r"made for tiny/llama\) has 5 layers, but big has 6"):
            make_plan().check_fits(other, "sparsity")

    def test_refuses_layers_of_another_size_and_names_the_first(self) -> None:
        sizes = [3000, 3000, 5000, 4000, 8000]
        other = MODEL.model_copy(update={"name": "wide", "layer_sizes": sizes})
        with pytest.raises(InputError, match=r"layer 3 has 3,000 .* where wide has 4,000"):
            make_plan().check_fits(other, "sparsity")


def make_results() -> Results:
    return Results(
        model=MODEL.model_copy(update={"caveat": "dequantised from Q4_K_M"}),
        sparsity=0.5,
        measurements=[
            Measurement(name="wikitext2", metric="perplexity", value=54.7, count=10_000),
            Measurement(
                name="mrpc",
                metric="accuracy",
                value=0.625,
                low=0.5,
                high=0.75,
                count=80,
                details={"completion_loss": 0.7, "chance": 0.5, "dropped": [3]},
            ),
        ],
        how={"seed": 0, "samples": None, "data": {"mrpc": {"files": ["a.parquet"]}}},
        setting=SETTING,
    )


def make_manifest() -> Manifest:
    modules = [
        PrunedModule(module=f"layers.{layer}.q_proj", asked=size // 2, zeros=size // 2, numel=size)
        for layer, size in enumerate(MODEL.layer_sizes)
    ]
    return Manifest(
        model=MODEL,
        plan=make_plan(allocation=[0.5] * 5),
        method="wanda",
        sparsity=0.5,
        modules=modules,
        calibration={"samples": 8, "text": {"name": "wikitext2"}},
        seconds=1.5,
        setting=SETTING,
    )


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
        with pytest.raises(InputError, match=r"plan: layer 2 has sparsity 1\.2"):
            Manifest.load(write(tmp_path, json.dumps(value)))

    def test_a_figure_that_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValidationError, match="finite number"):
            Measurement(name="wikitext2", metric="perplexity", value=float("inf"), count=1)
        text = json_text(make_results().model_dump(mode="json")).replace("54.7", "NaN")
        with pytest.raises(InputError, match="NaN is not a number"):
            Results.load(write(tmp_path, text))

    def test_one_artifact_is_not_taken_for_another(self, tmp_path: Path) -> None:
        make_results().save(tmp_path / "results.json")
        with pytest.raises(InputError, match="is not a valid Allocation: format: Input should be"):
            Allocation.load(tmp_path / "results.json")

    def test_records_cannot_be_changed_in_place(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            make_results().sparsity = 0.4  # type: ignore[misc]


def test_versions_are_those_installed() -> None:
    assert versions()["numpy"] == np.__version__
    assert versions()["torch"] == metadata.version("torch")
    assert set(versions()) == {"python", "layerif", "torch", "transformers", "numpy"}
