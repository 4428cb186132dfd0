"""Files and folders are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.folders import FOLDER, fill, names
from layerif.core.files import (
    json_text,
    new_file,
    new_folder,
    read_json,
    write_json,
    write_text,
)
from layerif.errors import InputError


class Stop(BaseException):
    """Like Ctrl-C: no Exception."""


def write_half(path: Path, error: type[BaseException]) -> None:
    with new_file(path) as part:
        part.write_text("ne")
        raise error("halfway")


def fill_half(path: Path, error: type[BaseException]) -> None:
    with new_folder(path, FOLDER) as part:
        fill(part, weights="ne")
        raise error("halfway")


class TestNewFile:
    def test_takes_its_place_on_success(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "a.json"
        with new_file(path) as part:
            part.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        assert names(path.parent) == ["a.json"]

    def test_replaces_the_old_at_the_end_only(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text("old")
        with new_file(path) as part:
            part.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert names(tmp_path) == ["a.json"]

    @pytest.mark.parametrize("error", [ValueError, Stop])
    def test_failure_keeps_the_old_and_leaves_nothing(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        path = tmp_path / "a.json"
        path.write_text("old")
        with pytest.raises(error, match="halfway"):
            write_half(path, error)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a.json"]

    def test_failure_without_an_old_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="halfway"):
            write_half(tmp_path / "a.json", ValueError)
        assert names(tmp_path) == []

    def test_a_folder_in_its_place_is_refused_before_any_work(self, tmp_path: Path) -> None:
        fill(tmp_path / "plans", old="1")
        with pytest.raises(InputError, match="folder"), new_file(tmp_path / "plans"):
            pytest.fail("the body ran")
        assert names(tmp_path) == ["plans"]
        assert names(tmp_path / "plans") == ["old"]

    def test_text_that_cannot_be_written_keeps_the_old(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        write_text(path, "größer →\n")
        assert path.read_bytes() == "größer →\n".encode()
        with pytest.raises(UnicodeEncodeError):
            write_text(path, "lone surrogate \ud800")
        assert path.read_text("utf-8") == "größer →\n"
        assert names(tmp_path) == ["a.txt"]


class TestNewFolder:
    def test_takes_its_place_on_success(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "model"
        with new_folder(path, FOLDER) as part:
            fill(part, weights="new")
            fill(part / "inner", config="new")
            assert part.parent.parent == path.parent, "renaming needs the same file system"
            assert not path.exists()
        assert names(path) == ["inner", "weights"]
        assert names(path.parent) == ["model"]

    def test_replaces_all_of_the_old_at_the_end_only(self, tmp_path: Path) -> None:
        # Would see: files of the old folder left beside those of the new.
        path = tmp_path / "model"
        fill(path, weights="old", shard="old")
        with new_folder(path, FOLDER) as part:
            fill(part, weights="new")
            assert (path / "weights").read_text() == "old"
        assert names(path) == ["weights"]
        assert (path / "weights").read_text() == "new"
        assert names(tmp_path) == ["model"]

    @pytest.mark.parametrize("error", [ValueError, Stop])
    def test_failure_keeps_the_old_and_leaves_nothing(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        path = tmp_path / "model"
        fill(path, weights="old")
        with pytest.raises(error, match="halfway"):
            fill_half(path, error)
        assert (path / "weights").read_text() == "old"
        assert names(tmp_path) == ["model"]

    def test_failure_without_an_old_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="halfway"):
            fill_half(tmp_path / "model", ValueError)
        assert names(tmp_path) == []

    def test_failure_of_the_exchange_itself_brings_the_old_back(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        fill(path, weights="old")
        with pytest.raises(FileNotFoundError), new_folder(path, FOLDER) as part:
            part.rmdir()
        assert (path / "weights").read_text() == "old"
        assert names(tmp_path) == ["model"]

    def test_a_file_in_its_place_is_refused_before_any_work(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        path.write_text("old")
        with pytest.raises(InputError, match="not replaced"), new_folder(path, FOLDER):
            pytest.fail("the body ran")
        assert path.read_text() == "old"

    def test_can_be_read_by_others(self, tmp_path: Path) -> None:
        # Would see: the 0600 of a private writer kept in a folder that others can read.
        (tmp_path / "ordinary").mkdir()
        usual = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
        with new_folder(tmp_path / "model", FOLDER) as part:
            fill(part, weights="new")
            (part / "weights").chmod(0o600)
        assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == usual
        assert (
            stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == 0o600 | usual & 0o044
        )


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain |= st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class TestJson:
    @given(values)
    def test_text_says_what_the_value_says(self, value: Any) -> None:
        assert json.loads(json_text(value)) == value

    def test_is_laid_out_for_people(self) -> None:
        value = {
            "name": "größer",
            "list": [1, 0.5, None, True],
            "rows": [[0, "q"], [1, "k"]],
            "empty": {},
            "none": [],
            "deep": {"list": (1, 2)},
        }
        assert json_text(value).splitlines() == [
            "{",
            '  "name": "größer",',
            '  "list": [1, 0.5, null, true],',
            '  "rows": [',
            '    [0, "q"],',
            '    [1, "k"]',
            "  ],",
            '  "empty": {},',
            '  "none": [],',
            '  "deep": {',
            '    "list": [1, 2]',
            "  }",
            "}",
        ]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, v], lambda v: {"a": [{"b": v}]}])
    def test_refuses_what_json_has_not(self, wrap: Any, bad: float, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="JSON"):
            json_text(wrap(bad))
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "a.json", wrap(bad))
        assert names(tmp_path) == []

    def test_files_come_back_and_end_with_a_newline(self, tmp_path: Path) -> None:
        value = {"größe": [0.1, 1e-300, -0.0], "deep": [{"a": []}]}
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json", "anything") == value
        assert (tmp_path / "a.json").read_text("utf-8").endswith("}\n")


class TestReadJson:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"a\.json .*exist.*a plan$"):
            read_json(tmp_path / "a.json", "a plan")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="folder"):
            read_json(tmp_path, "a plan")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "line 1: .* column 1"),
            (b'{\n  "a": 1,\n  "b" 2\n}', "line 3: .* column 7"),
            (b"[1, 2]\n[3]", "line 2: .* column 1"),
            (b"\xff\xfe", "UTF-16"),
            (b'{"a": [NaN]}', "NaN"),
            (b"[-Infinity]", "-Infinity"),
        ],
    )
    def test_not_json(self, tmp_path: Path, content: bytes, says: str) -> None:
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match=f"{says}.*a plan"):
            read_json(tmp_path / "a.json", "a plan")
