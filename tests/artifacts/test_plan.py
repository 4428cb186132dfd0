"""Plans: they come back as they were saved, and fit just the models that they were made for."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.artifact_samples import MODEL, make_plan, write
from layerif.artifacts import ModelInfo, Plan
from layerif.core.files import json_text
from layerif.errors import InputError

EXPERTS = {"kind": "experts", "allocation": [1, 2, 3, 4, 5], "total": 15}


class TestAllocation:
    def test_sparsity_comes_back(self, tmp_path: Path) -> None:
        plan = make_plan()
        plan = plan.model_copy(update={"total": plan.realised_total})
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan

    def test_experts_come_back_as_whole_numbers(self, tmp_path: Path) -> None:
        # Would see: 1.0 in the file, where a person expects to edit 1.
        path = tmp_path / "plan.json"
        plan = Plan.parse(EXPERTS | {"how": {"top_k": [1, 2, 2, 2, 2]}}, "here")
        plan.save(path)
        in_file = json.loads(path.read_text())["allocation"]
        assert in_file == [1, 2, 3, 4, 5]
        assert {type(value) for value in in_file} == {int}
        back = Plan.load(path)
        assert back == plan
        assert {type(value) for value in back.allocation} == {int}
        assert back.realised_total == 15

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
    def test_every_sparsity_survives_the_text(self, values: list[float]) -> None:
        plan = Plan(kind="sparsity", allocation=values)
        back = Plan.parse(json.loads(json_text(plan.model_dump(mode="json"))), "here")
        assert np.array(back.allocation).tobytes() == np.array(values).tobytes()

    def test_a_hand_written_plan_needs_two_fields(self, tmp_path: Path) -> None:
        plan = Plan.load(write(tmp_path, '{"kind": "sparsity", "allocation": [0.25, 0.5, 0]}'))
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
        with pytest.raises(InputError, match=r"0\.52857143"):
            Plan.load(path)
        path = write(tmp_path, json.dumps(EXPERTS | {"allocation": [1, 2, 3, 4, 7]}))
        with pytest.raises(InputError, match="17"):
            Plan.load(path)

    def test_rounding_by_hand_is_no_break(self, tmp_path: Path) -> None:
        thirds = '{"kind": "sparsity", "allocation": [0.3333333, 0.3333333], "total": 0.3333337}'
        assert Plan.load(write(tmp_path, thirds)).total == 0.3333337

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"kind": "sparsity", "allocation": [0.5, 1.5]}', "layer 1 .*1.5"),
            ('{"kind": "sparsity", "allocation": [-0.1, 0.5]}', "layer 0 .*-0.1"),
            ('{"kind": "sparsity", "allocation": [0.5, NaN]}', "NaN"),
            ('{"kind": "sparsity", "allocation": [0.5, -Infinity]}', "-Infinity"),
            ('{"kind": "sparsity", "allocation": [0.5, 1e999]}', "too large"),
            ('{"kind": "sparsity", "allocation": [0.5], "total": NaN}', "NaN"),
            ('{"kind": "sparsity", "allocation": [0.5], "how": {"a": NaN}}', "NaN"),
            ('{"kind": "sparsity", "allocation": []}', "allocation: "),
            ('{"kind": "sparsity", "allocation": 0.5}', "allocation: "),
            ('{"kind": "sparsity", "allocation": [[0.5]]}', "allocation.0"),
            ('{"kind": "sparsity", "allocation": [null]}', "allocation.0"),
            ('{"kind": "sparsity"}', "allocation: it is missing"),
            ('{"allocation": [0.5]}', "kind: it is missing"),
            (
                '{"kind": "heads", "allocation": [1]}',
                "kind: there is no plan kind 'heads'; there are sparsity, exp",
            ),
            ('{"kind": "experts", "allocation": [2, 2.5]}', "layer 1 has 2.5 experts"),
            ('{"kind": "experts", "allocation": [0, 3]}', "layer 0 has 0 experts"),
            ('{"kind": "experts", "allocation": [3, -1]}', "layer 1 has -1 experts"),
            ('{"kind": "ranks", "allocation": [8, 0.5]}', "layer 1 has rank 0.5; each layer needs"),
            ('{"kind": "ranks", "allocation": [0, 8]}', "layer 0 has rank 0"),
            ('{"kind": "ranks", "allocation": [4, 8], "total": 13}', "the sum of .* is 12, but"),
            (
                '{"kind": "sparsity", "allocation": [0.5], "totl": 0.5}',
                "totl: .* mean total",
            ),
            (
                '{"kind": "sparsity", "allocation": [0.5], "modules": [{"modul": "x"}]}',
                "modules.0.modul: .*mean module",
            ),
            (
                '{"kind": "sparsity", "allocation": [0.5, 0.5], "layer_sizes": [10]}',
                "layer_sizes 1",
            ),
            (
                '{"kind": "sparsity", "allocation": [0.5], "layer_sizes": [0]}',
                "layer size",
            ),
            (
                '{"kind": "sparsity", "allocation": [0.5], "format": "layerif.allocation/2"}',
                "format: expected one of 'layerif.allocation/1'",
            ),
            ("[0.5, 0.5]", "dictionary|object"),
            ('{"kind": "sparsity", "allocation": [0.5],}', "line 1: "),
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            Plan.load(write(tmp_path, text))
        assert str(tmp_path / "plan.json") in str(error.value)

    def test_a_plan_of_a_model_has_as_many_layers_as_the_model(self, tmp_path: Path) -> None:
        text = json_text(make_plan().model_dump(mode="json") | {"layer_sizes": None})
        edited = text.replace("0.55, 0.6", "0.55")
        with pytest.raises(InputError, match="layer_sizes"):
            Plan.load(write(tmp_path, edited))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"plan\.json.*Plan$"):
            Plan.load(tmp_path / "plan.json")
        with pytest.raises(InputError, match="folder"):
            Plan.load(tmp_path)

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
        Plan.load(tmp_path / "a.json").save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "a.json").read_bytes()

    def test_a_value_that_json_has_not_stops_the_save_and_spares_the_old_plan(
        self, tmp_path: Path
    ) -> None:
        # Would see: NaN among the parameters written as null.
        path = tmp_path / "plan.json"
        make_plan().save(path)
        with pytest.raises(ValueError, match="JSON"):
            make_plan(how={"epsilon": float("nan")}).save(path)
        assert Plan.load(path) == make_plan()
        assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


class TestCheckFits:
    def test_the_model_it_was_made_for(self) -> None:
        make_plan().check_fits(MODEL, "sparsity")
        # Another checkpoint of the same shape will do: only shapes decide.
        make_plan().check_fits(MODEL.model_copy(update={"name": "tiny/other"}), "sparsity")

    def test_any_model_with_as_many_layers_if_made_for_none(self) -> None:
        plan = make_plan(model=None, layer_sizes=None)
        plan.check_fits(MODEL, "sparsity")
        with pytest.raises(InputError, match="tiny/llama has 6"):
            plan.check_fits(MODEL.model_copy(update={"layers": 6}), "sparsity")

    def test_refuses_another_kind(self) -> None:
        with pytest.raises(InputError, match="experts"):
            make_plan().check_fits(MODEL, "experts")

    def test_refuses_another_number_of_layers(self) -> None:
        other = ModelInfo(name="big", architecture="X", layers=6, layer_sizes=[3000] * 6)
        with pytest.raises(InputError, match="big has 6"):
            make_plan().check_fits(other, "sparsity")

    def test_refuses_layers_of_another_size_and_names_the_first(self) -> None:
        sizes = [3000, 3000, 5000, 4000, 8000]
        other = MODEL.model_copy(update={"name": "wide", "layer_sizes": sizes})
        with pytest.raises(InputError, match=r"layer 3 .*3,000.*4,000"):
            make_plan().check_fits(other, "sparsity")
