"""Raw rows of data sets: from the hub (or a folder laid out like it), or from a folder of parquet.

Rows come back as dictionaries of plain Python values, with the columns asked for and no others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerif.core.files import READERS, brief, parsing, read_parquet
from layerif.errors import InputError

Row = dict[str, Any]
# Letters of a listing of names.
MOST_LISTED = 240
# What else a split may be called.
ALIASES = {"validation": ("val", "valid", "dev")}


def from_hub(
    repo: str,
    config: str | None,
    split: str,
    columns: Sequence[str],
    *,
    empty: str | None = None,
) -> list[Row]:
    """The rows of one split of a data set on the Hugging Face hub.

    Args:
        repo: the name on the hub, `owner/name`, or a local folder with the same layout (a README
            whose header lists the configurations, and their data files).
        config: the configuration; None for a data set that has only one.
        empty: a column besides; only the rows where it is null come back.

    Raises:
        InputError: the hub cannot be reached, or the data set, configuration, split or a column
            does not exist.
    """
    import datasets

    what = f"{repo} ({config})" if config else repo
    try:
        rows = datasets.load_dataset(repo, config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(f"the hub has no open data set {repo}: {one_line(error)}") from error
    except ConnectionError as error:
        raise InputError(
            f"the Hugging Face hub cannot be reached for data set {what}, and no copy of it is "
            f"cached here ({one_line(error)}); connect once to fetch it, or pass data_dir "
            f"with a folder that holds the data set as parquet files"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"split {split!r} of data set {what} cannot be loaded: {one_line(error)}"
        ) from error
    wanted = [*columns, empty] if empty else columns
    _require(wanted, rows.column_names, f"split {split!r} of data set {what}")
    if empty:
        # Told from the table: to take the values would be to decode every picture.
        rows = rows.select(rows.data.column(empty).is_null().to_numpy().nonzero()[0])
    return rows.select_columns(list(columns)).to_list()


def from_folder(data_dir: Path, name: str, split: str, columns: Sequence[str]) -> list[Row]:
    """The rows of `data_dir/name/split.parquet`, or of its shards, see `split_files`.

    Raises:
        InputError: the folder, the file or a column does not exist, or the file is not parquet.
    """
    import pyarrow

    folder = data_dir / name
    if not data_dir.is_dir():
        raise InputError(f"data_dir={str(data_dir)!r} is not a folder")
    if not folder.is_dir():
        there = sorted(path.name for path in data_dir.iterdir() if path.is_dir())
        raise InputError(f"no data set {name!r} in {data_dir}, which holds {listing(there)}")
    files = split_files(folder, split, (".parquet",))
    if not files:
        there = sorted(path.name for path in folder.iterdir())
        raise InputError(f"no {split}.parquet in {folder}, which holds {listing(there)}")
    tables = []
    for path in files:
        table = read_parquet(path, columns)
        _require(columns, table.column_names, str(path))
        tables.append(table)
    with parsing(folder, f"the shards of {split} with the same columns"):
        rows: list[Row] = pyarrow.concat_tables(tables).to_pylist()
    return rows


def split_files(folder: Path, split: str, suffixes: Sequence[str] = tuple(READERS)) -> list[Path]:
    """The files of one split of a data set in a folder; none where there is none.

    Named as people and the hub name them: `train.jsonl`, `train-00000-of-00002.parquet` and its
    like, for validation also `val`, `valid` and `dev`; in the folder, or else in `data` within it.

    Raises:
        InputError: several files are the split, or one of its shards is missing.
    """
    names = "|".join([re.escape(split), *ALIASES.get(split, ())])
    form = re.compile(rf"(?:{names})(?:-(\d{{5}})-of-(\d{{5}})(?:-[0-9a-f]+)?)?")
    for place in (folder, folder / "data"):
        found: dict[tuple[str, ...], list[Path]] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match = form.fullmatch(path.stem)
            if match and path.suffix.lower() in suffixes and path.is_file():
                kind = (path.stem[: match.start(1)] if match[1] else path.stem, path.suffix)
                found.setdefault((*kind, match[2] or ""), []).append(path)
        if len(found) > 1:
            every = [path.name for files in found.values() for path in files]
            raise InputError(
                f"{place} holds {listing(every)}, and each may be the split {split}; expected one "
                "of them"
            )
        for (*_, count), files in found.items():
            if count and len(files) != int(count):
                raise InputError(
                    f"{place} holds {listing([path.name for path in files])} of the split {split}; "
                    f"expected {int(count)} such files"
                )
            return files
    return []


def _require(columns: Sequence[str], found: Sequence[str], where: str) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise InputError(
            f"{where} lacks the column{'s' if len(missing) > 1 else ''} {listing(missing)}; "
            f"it has {listing(found)}"
        )


def listing(names: Sequence[str], most: int = 20) -> str:
    """The names for a message, the first `most` of them where there are more, and cut if long."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return brief(", ".join(names[:most]) or "nothing", MOST_LISTED) + more


def one_line(error: Exception) -> str:
    """What an error says, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
