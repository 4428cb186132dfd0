"""Raw rows from parquet folders and from folders laid out like the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerif.data.sources import from_folder, from_hub, listing
from layerif.errors import InputError

ROWS = [{"text": "one", "label": 0, "more": {"a": [1]}}, {"text": "two", "label": 1, "more": None}]


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the hub has it: two configurations, one split each."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "name"
    write_parquet(folder / "small" / "train-0.parquet", ROWS)
    write_parquet(folder / "large" / "test-0.parquet", ROWS * 3)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n  - split: train\n    path: small/train-*\n"
        "- config_name: large\n  data_files:\n  - split: test\n    path: large/test-*\n"
        "---\n"
    )
    return folder


def test_hub_layout(hub_folder: Path) -> None:
    assert from_hub(str(hub_folder), "small", "train", ["label", "text"]) == [
        {"label": 0, "text": "one"},
        {"label": 1, "text": "two"},
    ]
    assert len(from_hub(str(hub_folder), "large", "test", ["text"])) == 6


@pytest.mark.parametrize(
    ("config", "split", "columns", "message"),
    [
        ("small", "test", ["text"], "split 'test'.*train"),
        ("middle", "train", ["text"], "middle.*small.*large"),
        (None, "train", ["text"], "small.*large"),
        ("small", "train", ["text", "answer"], "lacks the column answer.*text, label, more"),
    ],
)
def test_hub_layout_errors(
    hub_folder: Path, config: str | None, split: str, columns: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        from_hub(str(hub_folder), config, split, columns)


def test_unreachable_hub_points_to_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"reached .*owner/name.*data_dir"):
        from_hub("owner/name", None, "train", ["text"])


def test_unknown_set_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kwargs: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match="open data set owner/name"):
        from_hub("owner/name", None, "train", ["text"])


def test_folder(tmp_path: Path) -> None:
    # A folder called key=value would become a column if the file were read as a data set.
    data_dir = tmp_path / "kind=data"
    write_parquet(data_dir / "set" / "train.parquet", ROWS)
    assert from_folder(data_dir, "set", "train", ["more", "text"]) == [
        {"more": {"a": [1]}, "text": "one"},
        {"more": None, "text": "two"},
    ]


def test_folder_errors_name_what_is_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", ROWS)
    (tmp_path / "set" / "test.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="nowhere"):
        from_folder(tmp_path / "nowhere", "set", "train", ["text"])
    with pytest.raises(InputError, match=r"'other' .*set$"):
        from_folder(tmp_path, "other", "train", ["text"])
    with pytest.raises(InputError, match=r"dev\.parquet .*train\.parquet$"):
        from_folder(tmp_path, "set", "dev", ["text"])
    with pytest.raises(InputError, match=r"prompt, answer; .*text, label, more"):
        from_folder(tmp_path, "set", "train", ["text", "prompt", "answer"])
    with pytest.raises(InputError, match=r"test\.parquet: "):
        from_folder(tmp_path, "set", "test", ["text"])


def test_folder_with_shards(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write_parquet(tmp_path / "set" / "data" / f"train-0000{number}-of-00002.parquet", [row])
    write_parquet(tmp_path / "set" / "dev.parquet", ROWS)
    for split in ("train", "validation"):
        rows = from_folder(tmp_path, "set", split, ["text"])
        assert rows == [{"text": "one"}, {"text": "two"}]


def test_listing_is_bounded() -> None:
    assert listing([]) == "nothing"
    assert listing(["a", "b", "c"], most=2) == "a, b and 1 more"
