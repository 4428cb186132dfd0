"""Files of others: what is ambiguous, endless or of another kind is refused at once, by line."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from layerif.artifacts import Plan
from layerif.core.files import patterns, read_json, read_npy, read_rows, read_text, read_yaml
from layerif.errors import InputError
from layerif.finetuning.options import FinetuneOptions
from layerif.influence.options import SolveOptions
from layerif.plans.maps.counts import apportion

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestJson:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"a": 1,\n "b": {"a": 2,\n "a": 3}}', "line 3: .*'a'.*twice"),
            ('{"\\u0061": 1,\n "a": 2}', "line 2: the key 'a'"),
            ("[1,\n1e999]", "line 2: 1e999"),
            ("[1,\n-1e999]", "line 2: -1e999"),
            ("[\n\n" + "1" * 5000 + "]", "line 3: .* 5,000 digits"),
            ("[" * 1000 + "]" * 1000, "line 1: .*nested"),
            ("[" * 200_000, "line 1: .*nested"),
            ('{"a":' * 200_000, "line 1: .*nested"),
            ('[\n"\\ud83d"]', "line 2: .*surrogate"),
            ('{\n"\\ude00 \\ud83d": 1}', "line 2: .*surrogate"),
            ("[\n\0]", "line 2: .*NUL"),
            ("[NaN]", "line 1: NaN"),
        ],
    )
    def test_refused_by_line(self, tmp_path: Path, text: str, says: str) -> None:
        path = write(tmp_path, "a.json", text)
        with pytest.raises(InputError, match=says) as error:
            read_json(path, "a plan")
        assert str(error.value).startswith(str(path))
        assert len(str(error.value)) < 600

    def test_what_looks_like_it_is_read(self, tmp_path: Path) -> None:
        # A pair of surrogates, an escaped backslash, brackets within a string, a key in two
        # objects, and the length that tokenizers give for none.
        value = [{"a": "😀"}, {"a": "\\ud83d"}, "[" * 200, 10**30, [[[]] * 100]]
        assert read_json(write(tmp_path, "a.json", json.dumps(value)), "a list") == value

    def test_random_values_come_back(self, tmp_path: Path) -> None:
        draw = random.Random(0)

        def value(depth: int) -> Any:
            kind = draw.randrange(8 if depth < 5 else 6)
            if kind > 5:
                parts = [value(depth + 1) for _ in range(draw.randrange(4))]
                return parts if kind == 6 else {f'k"{i}\\': part for i, part in enumerate(parts)}
            text = "".join(draw.choice('ab"\\[]{}:,\n😀é') for _ in range(4))
            return [None, True, draw.randrange(-99, 99), draw.gauss(), text, text][kind]

        for _ in range(200):
            one = value(0)
            text = json.dumps(one, indent=draw.choice([None, 2]), ensure_ascii=draw.random() < 0.5)
            assert read_json(write(tmp_path, "a.json", text), "a value") == one


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (BOMB, "aliases"),
            ("a: &a [*a]", "aliases"),
            ("a: &a {b: *a}", "aliases"),
            ("b: 1\na: 2001-99-99", "line 2: '2001-99-99'"),
            ("a: !!int abc", "line 1: 'abc'"),
            ("a: !!bool abc", "line 1: 'abc'"),
            ("a: !!timestamp abc", "line 1: 'abc'"),
            ("a: !!python/object/apply:os.system [true]", "line 1"),
            ("a: !!python/name:os.system x", "line 1"),
            ("a: " + "[" * 1000, "line 1: .*nested"),
            ("a: " + "[" * 200_000, "line 1: .*nested"),
            ("- " * 500 + "a", "line 1: .*nested"),
            ("a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c'"),
            ("? [a]\n: b", "line 1: a key"),
            ("a: .inf", "line 1: '.inf'"),
            ("a: 1.0e+999", "finite"),
            ("a: " + "1" * 5000, "line 1"),
            ('a: "\\ud83d"', "line 1"),
            ('a: "x\\0y"', "line 1"),
            ("a: b: c", "line 1"),
            ("a: 1\n--- b", "line 2"),
            ("a: \x07", "special characters"),
            ("a: 1\n" * 100_000, "GB"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, says: str) -> None:
        path = write(tmp_path, "a.yaml", text)
        with pytest.raises(InputError, match=says) as error:
            read_yaml(path, "a recipe")
        assert str(error.value).startswith(str(path))
        assert len(str(error.value)) < 600

    def test_an_alias_is_written_out(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.yaml", "a: &x {b: [1, 2.5, true, null, t]}\nc: [*x, *x]\n")
        inner = {"b": [1, 2.5, True, None, "t"]}
        assert read_yaml(path, "a recipe")[0] == {"a": inner, "c": [inner, inner]}


class TestRows:
    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}', "line 2: the key 'a'"),
            ("a.jsonl", '{"a": 1}\n\n{"a": "\\ud83d"}', "line 3: .*surrogate"),
            ("a.jsonl", '{"a": 1}\n{"a": ' + "1" * 5000 + "}", "line 2: .*digits"),
            ("a.jsonl", '{"a": 1}\n{"a": ' + "[" * 200_000 + "}", "line 2: .*nested"),
            ("a.csv", "a,b,a\n1,2,3\n", "'a' 2 times"),
            ("a.csv", "a,b\n1,2\n1\n", "row 2 has 1 cells"),
            ("a.csv", "a,b\n1,2\n1,\0\n", "line 3: .*NUL"),
            ("a.csv", 'a,b\n1,2\n1,"x', "row 2: .*end of data"),
        ],
    )
    def test_refused_by_row(self, tmp_path: Path, name: str, text: str, says: str) -> None:
        path = write(tmp_path, name, text)
        with pytest.raises(InputError, match=says) as error:
            list(read_rows(path))
        assert str(error.value).startswith(str(path))

    def test_a_column_twice_in_parquet(self, tmp_path: Path) -> None:
        table = pyarrow.table([["x"], ["y"]], names=["a", "a"])
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(InputError, match="'a' 2 times"):
            list(read_rows(tmp_path / "a.parquet"))

    def test_text_that_is_not_utf8_in_parquet(self, tmp_path: Path) -> None:
        wrong = pyarrow.array([b"ok", b"\xff\xfe"]).view(pyarrow.string())
        pyarrow.parquet.write_table(pyarrow.table([wrong], names=["a"]), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet: .*UTF"):
            list(read_rows(tmp_path / "a.parquet"))

    def test_long_cells_and_a_setting_that_is_put_back(self, tmp_path: Path) -> None:
        before = csv.field_size_limit()
        long = 'say ""no""\n' * 100_000
        path = write(tmp_path, "a.csv", f'a,b\n"{long}",2\n')
        assert [row for _, row in read_rows(path)] == [{"a": long.replace('""', '"'), "b": "2"}]
        assert csv.field_size_limit() == before

    def test_columns_without_a_name_are_passed_over(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", "a,,\n1,,\n")
        assert [row for _, row in read_rows(path)] == [{"a": "1"}]


class TestFiles:
    def test_pipes_devices_and_closed_files_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(InputError, match="pipe"):
            read_json(tmp_path / "pipe.json", "a plan")
        for path, says in (("a\0b", "null"), ("a" * 5000, "long"), (tmp_path, "folder")):
            with pytest.raises(InputError, match=says):
                read_json(Path(path), "a plan")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_a_closed_file_is_named(self, tmp_path: Path) -> None:
        # Root reads everything, so somebody else has to try.
        code = """if True:
            import os, sys
            from pathlib import Path
            from layerif.core.files import read_text
            os.setgid(65534); os.setuid(65534)
            try:
                read_text(Path(sys.argv[1]), "a text")
            except Exception as error:
                print(type(error).__name__, error)
        """
        path = write(tmp_path, "closed.txt", "x")
        path.chmod(0o600)
        for folder in [tmp_path, *tmp_path.parents][:-2]:
            folder.chmod(folder.stat().st_mode | 0o005)
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"InputError {path} is closed")

    def test_a_file_too_large_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        with path.open("wb") as file:
            file.truncate(5 << 30)  # a hole: it takes no room
        with pytest.raises(InputError, match=r"5\.37 GB"):
            read_text(path, "a text")

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_another_encoding_is_named(self, tmp_path: Path, encoding: str) -> None:
        with pytest.raises(InputError, match="UTF-16"):
            read_text(write(tmp_path, "a.txt", "naïve text".encode(encoding)), "a text")

    def test_the_line_of_a_wrong_byte(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"line 2: .*0xef"):
            read_text(write(tmp_path, "a.txt", "so\nnaïve".encode("latin-1")), "a text")


class TestNumbers:
    @pytest.mark.parametrize(
        "header",
        [
            b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'}",
            b"\x93NUMPY\x01\x00\x02\x00((",
            b"\x93NUMPY\x09\x09",
            b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
            b"PK\x03\x04" + b"\0" * 50,
        ],
    )
    def test_a_broken_header(self, tmp_path: Path, header: bytes) -> None:
        with pytest.raises(InputError, match=r"a\.npy"):
            read_npy(write(tmp_path, "a.npy", header), "numbers")

    def test_a_shape_beyond_the_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros(4))
        raw = (tmp_path / "a.npy").read_bytes()
        large = raw.replace(b"(4,), }" + b" " * 12, b"(4000000000000,), }")
        assert large != raw
        with pytest.raises(InputError, match=r"a\.npy"):
            read_npy(write(tmp_path, "a.npy", large), "numbers")

    @pytest.mark.parametrize("dtype", ["c16", "S3", "U3", "M8[s]", "?", [("a", "f8")]])
    def test_other_types(self, tmp_path: Path, dtype: Any) -> None:
        np.save(tmp_path / "a.npy", np.zeros(3, dtype))
        with pytest.raises(InputError, match="of type"):
            read_npy(tmp_path / "a.npy", "numbers")


class TestPatterns:
    NAMES = tuple(f"model.layers.{i}.self_attn.q_proj" for i in range(30))

    @pytest.mark.parametrize(
        "pattern", [r"(([\w.]+)+)+!", r"(a|aa|m.*|.*)*!", r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)!"]
    )
    def test_an_endless_one_is_refused(self, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patterns, "SECONDS", 0.5)
        with pytest.raises(InputError, match="seconds"):
            patterns.check_patterns([r".*q_proj", pattern], self.NAMES, "adapter_config.json")

    @pytest.mark.parametrize("pattern", ["(a|b", "*", "(" * 5000 + ")" * 5000, "a{1,9999999999}"])
    def test_what_is_none_is_refused(self, pattern: str) -> None:
        with pytest.raises(InputError, match="regular expression"):
            patterns.check_patterns([pattern], self.NAMES, "adapter_config.json")

    def test_usual_ones_pass(self) -> None:
        usual = [r".*\.(q|v)_proj", "q_proj", r"^model\.layers\.\d+\.(self_attn|mlp)\.(up|q)_proj$"]
        patterns.check_patterns(usual, self.NAMES, "adapter_config.json")


def test_counts_beyond_64_bits_are_refused(tmp_path: Path) -> None:
    text = '{"kind": "experts", "allocation": [1, 9223372036854775808]}'
    with pytest.raises(InputError, match="9223372036854775808"):
        Plan.load(write(tmp_path, "plan.json", text))


@pytest.mark.parametrize(
    "out_of_range",
    [
        lambda: SolveOptions(damping=1e308),
        lambda: SolveOptions(damping_value=1e308),
        lambda: apportion([0.5, 1.0], 2**63),
        lambda: FinetuneOptions(balance=1e308),
        lambda: FinetuneOptions(max_steps=2**63),
    ],
)
def test_numbers_beyond_what_arithmetic_holds(out_of_range: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="at most"):
        out_of_range()
