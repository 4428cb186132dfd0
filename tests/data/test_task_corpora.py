"""Corpora: two parts that share no paragraph, and a record of where they come from."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from layerif.data import Corpus, load_calibration, load_corpus, load_sources
from layerif.data import corpora as corpora_module
from layerif.errors import InputError


def paragraphs(text: str) -> set[str]:
    return {" ".join(part.split()) for part in text.split("\n\n")}


def check_contract(corpus: Corpus) -> None:
    for part in ("calibration", "evaluation"):
        text = corpus.text(part)
        assert text
        assert corpus.origin["sha256"][part] == hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def python_docs() -> Corpus:
    return load_corpus("python-docs")


def test_python_docs(python_docs: Corpus) -> None:
    check_contract(python_docs)
    calibration, evaluation = python_docs.text("calibration"), python_docs.text("evaluation")
    assert not paragraphs(calibration) & paragraphs(evaluation)
    assert 0.20 <= len(evaluation) / (len(calibration) + len(evaluation)) <= 0.25
    origin = python_docs.origin
    assert origin["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert 0 < origin["repeated_paragraphs_dropped"] < origin["paragraphs"]
    kept = len(paragraphs(calibration)) + len(paragraphs(evaluation))
    assert kept == origin["paragraphs"] - origin["repeated_paragraphs_dropped"]


def test_python_docs_follow_the_seed(python_docs: Corpus) -> None:
    assert load_corpus("python-docs") == python_docs
    other = load_corpus("python-docs", seed=1)
    assert other.evaluation != python_docs.evaluation
    assert {*other.evaluation, *other.calibration} == {
        *python_docs.evaluation,
        *python_docs.calibration,
    }
    assert other.origin["source_sha256"] == python_docs.origin["source_sha256"]


def test_python_without_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="pydoc_data"):
        load_corpus("python-docs")


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    once = [f"Paragraph {i}\n  of {'a few ' * (i % 7)}words." for i in range(200)]
    again = [text.replace("\n  ", " ") for text in once[::10]]
    path.write_text("\r\n \r\n".join(once + again), encoding="utf-8-sig", newline="")
    corpus = load_corpus(path, seed=5)

    check_contract(corpus)
    assert corpus.origin["paragraphs"] == 220
    assert corpus.origin["repeated_paragraphs_dropped"] == 20
    calibration, evaluation = corpus.text("calibration"), corpus.text("evaluation")
    assert not paragraphs(calibration) & paragraphs(evaluation)
    assert paragraphs(calibration) | paragraphs(evaluation) == {" ".join(p.split()) for p in once}
    assert 0.20 <= len(evaluation) / (len(calibration) + len(evaluation)) <= 0.25
    # A document is a stretch of the text as it stands.
    whole = "\n\n".join(once)
    assert all(document in whole for document in corpus.calibration + corpus.evaluation)
    assert load_corpus(path, seed=5) == corpus
    assert load_corpus(path, seed=6).evaluation != corpus.evaluation


@pytest.mark.parametrize("lengths", [(1, 1), (1000, 1), (1, 1000), (5, 3000, 5)])
def test_few_paragraphs_still_make_two_parts(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join(chr(97 + i) * n for i, n in enumerate(lengths)))
    check_contract(load_corpus(path))


def test_text_file_errors(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("the same\n\nthe  same\n\n")
    with pytest.raises(InputError, match="1 different"):
        load_corpus(path)
    path.write_text("")
    with pytest.raises(InputError, match="0 different"):
        load_corpus(path)
    path.write_bytes("naïve\n\ncafé".encode("latin-1"))
    with pytest.raises(InputError, match=r"own\.txt, line 1: .*UTF-8"):
        load_corpus(path)
    with pytest.raises(InputError, match="folder"):
        load_corpus(tmp_path)


def test_text_in_rows_is_the_same_as_in_a_file(tmp_path: Path) -> None:
    texts = [f"Paragraph {i}\n  of {'a few ' * (i % 7)}words." for i in range(40)]
    texts[7] = "It has\n\ntwo of them."
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in [*texts, None]))
    table = pyarrow.table({"id": range(40), "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    plain = load_corpus(tmp_path / "a.txt")
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        for corpus in (
            load_corpus(tmp_path / name),
            *load_sources([tmp_path / name]),
            load_calibration(tmp_path / name),
        ):
            assert isinstance(corpus, Corpus)
            assert corpus.calibration == plain.calibration
            assert corpus.evaluation == plain.evaluation


def test_rows_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(InputError, match=r"row 1 .*completion"):
        load_corpus(path)
    path.write_text('{"text": "one"}\n{"text": 2}\n')
    with pytest.raises(InputError, match="row 2: "):
        load_corpus(path)


def test_wikitext2_in_a_folder(data_dir: Path) -> None:
    corpus = load_corpus("wikitext2", data_dir)
    check_contract(corpus)
    assert (len(corpus.calibration), len(corpus.evaluation)) == (3761, 4359)
    assert corpus.separator == ""
    assert "<unk>" in corpus.text("evaluation")
    assert "do not compare with published" in corpus.origin["note"]
    assert corpus.text("evaluation").startswith(" \n = Robert <unk> = \n")


def test_wikitext2_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(repo: str, config: str, split: str, columns: list[str]) -> list[dict[str, str]]:
        assert (repo, config) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
        return [{"text": text} for text in ("", f" = {split} = \n", " Words . \n")]

    monkeypatch.setattr(corpora_module, "from_hub", from_hub)
    corpus = load_corpus("wikitext2")
    check_contract(corpus)
    assert corpus.text("calibration") == "\n\n = train = \n\n\n Words . \n"
    assert corpus.text("evaluation") == "\n\n = test = \n\n\n Words . \n"
    assert corpus.origin["config"] == "wikitext-2-raw-v1"
