"""Scores from files: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.artifact_samples import MODEL, make_scores
from layerif.errors import InputError
from layerif.plans.allocate import allocate_sparsity
from layerif.plans.score_files import read_scores

VECTOR = [0.3, 2.0, -1.0, 0.7, 1.1]


class TestReadScores:
    def test_run_folder(self, tmp_path: Path) -> None:
        scores = make_scores()
        for name in ("run", "run.v2"):
            scores.save(tmp_path / name)
            assert read_scores(tmp_path / name) == scores
        assert read_scores(str(tmp_path / "run")) == scores

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.json", "[0.3, 2, -1, 0.7, 1.1]"),
            ("a.csv", "0.3\n2\n-1\n0.7\n1.1\n"),
            ("a.csv", "0.3\r\n2\r\n-1\r\n0.7\r\n1.1"),
            ("a.csv", "score\n0.3\n2\n-1\n0.7\n1.1\n"),
            ("a.csv", "layer,score\n0,0.3\n1, 2\n2,-1\n3,7e-1\n4,1.1\n"),
            ("a.csv", "0,0.3\n1,2\n2,-1\n3,0.7\n4,1.1\n\n"),
            ("a.csv", "name,layer,score\nq,0,0.3\nq,1,2\nq,2,-1\nq,3,0.7\nq,4,1.1\n"),
        ],
    )
    def test_one_number_a_layer(self, tmp_path: Path, name: str, text: str) -> None:
        path = tmp_path / name
        path.write_bytes(text.encode())
        scores = read_scores(path)
        assert isinstance(scores, np.ndarray)
        assert scores.dtype == np.float64
        assert scores.tolist() == VECTOR

    def test_csv_of_a_spreadsheet_keeps_its_first_layer(self, tmp_path: Path) -> None:
        # Would see: the byte order mark before the first number, which made it a header.
        path = tmp_path / "a.csv"
        path.write_text("0.3\n2\n-1\n0.7\n1.1\n", "utf-8-sig")
        assert read_scores(path).tolist() == VECTOR

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
    def test_npy(self, tmp_path: Path, dtype: Any) -> None:
        values = np.array([3, 0, -2, 5], dtype=dtype)
        np.save(tmp_path / "a.npy", values)
        scores = read_scores(tmp_path / "a.npy")
        assert scores.dtype == np.float64
        assert scores.tolist() == [3, 0, -2, 5]

    def test_plain_scores_lead_to_the_plan_of_the_run_they_come_from(self, tmp_path: Path) -> None:
        # Would see: a file format that loses digits, or the order of the layers.
        scores = make_scores()
        vector = scores.aggregate()
        np.save(tmp_path / "a.npy", vector)
        (tmp_path / "a.json").write_text(json.dumps(vector.tolist()))
        rows = "".join(f"{layer},{value!r}\n" for layer, value in enumerate(vector.tolist()))
        (tmp_path / "a.csv").write_text("layer,score\n" + rows)
        expected = allocate_sparsity(scores, 0.5).allocation
        for name in ("a.npy", "a.json", "a.csv"):
            plan = allocate_sparsity(read_scores(tmp_path / name), 0.5, model=MODEL)
            assert plan.allocation == expected

    @pytest.mark.parametrize("suffix", [".json", ".csv", ".npy"])
    def test_missing_file(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(InputError, match=rf"a{suffix} .*exist"):
            read_scores(tmp_path / f"a{suffix}")

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="run folder"):
            read_scores(tmp_path / "run")

    @pytest.mark.parametrize("name", ["a.txt", "a.pt", "a.pkl", "a.npz", "a.JSON"])
    def test_other_suffixes(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("[1, 2]")
        with pytest.raises(InputError, match=r"\.json, \.csv, \.npy"):
            read_scores(tmp_path / name)

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.json", b'{"scores": [1, 2]}', "one number a layer"),
            ("a.json", b"[1, 2", "line 1: "),
            ("a.json", b"[1, NaN]", "NaN"),
            ("a.json", b"[1, 1e999]", "1e999"),
            ("a.json", b"[1, null]", "regular array"),
            ("a.json", b"[[1, 2], [3, 4]]", r"\(2, 2\)"),
            ("a.json", b'[1, "high"]', "regular array"),
            ("a.json", b"[]", r"\(0,\)"),
            ("a.csv", b"", r"\(0,\)"),
            ("a.csv", b"layer,score\n", r"\(0,\)"),
            ("a.csv", b"layer,score\n0,0.5\n1,high\n", "row 2: .*'high'"),
            ("a.csv", b"0,0.5\n1,\n", "row 2: .*''"),
            ("a.csv", b"0.5\nnan\n", "layer 1 .*finite"),
            ("a.csv", b"0.5\ninf\n", "layer 1 .*finite"),
            ("a.csv", "größe\n0.5\n".encode("latin-1"), "line 1: .*UTF-8"),
            ("a.npy", b"", "begin"),
            ("a.npy", b"0.5\n0.6\n", "begin"),
        ],
    )
    def test_content_that_is_no_scores(
        self, tmp_path: Path, name: str, content: bytes, says: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says) as error:
            read_scores(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)

    def test_npy_of_another_shape_or_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, np.ones((2, 3)))
        with pytest.raises(InputError, match=r"\(2, 3\)"):
            read_scores(path)
        np.save(path, np.arange(4.0))
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(InputError, match=r"a\.npy: "):
            read_scores(path)
        np.save(path, np.array([1.0, np.nan]))
        with pytest.raises(InputError, match=r"layer 1 .*finite"):
            read_scores(path)

    def test_npy_that_needs_pickle_is_not_opened(self, tmp_path: Path) -> None:
        # Would see: allow_pickle=True, with which opening a file runs what it holds.
        marker = tmp_path / "marker"

        class Touch:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (marker,)

        path = tmp_path / "a.npy"
        np.save(path, np.array([Touch(), 1.0], dtype=object), allow_pickle=True)
        np.load(path, allow_pickle=True)
        assert marker.exists(), "the pickle is live"
        marker.unlink()
        with pytest.raises(InputError, match=r"a\.npy: "):
            read_scores(path)
        assert not marker.exists()
