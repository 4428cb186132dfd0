"""Tables in the docs are what their data says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from layerif.core.files import write_json

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [path for path in (ROOT / "docs").rglob("*.md") if "<!-- table:" in path.read_text()]


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("result_tables")
        del sys.modules["result_tables"]


def test_there_are_tables():
    assert DOCUMENTS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_has_the_tables_of_its_data(tables, document):
    assert tables.rendered(document) == document.read_text(encoding="utf-8")


def test_a_table_has_every_plan_and_its_pairs(tables, tmp_path):
    own = {"metric": "perplexity", "value": 20.0, "low": 19.0, "high": 21.5, "count": 1234}
    pair = {"name": "text", "metric": "perplexity", "model": "ours", "baseline": "uniform"}
    write_json(
        tmp_path / "data.json",
        {
            "rows": {name: {"measured": {"text": own}} for name in ("dense", "uniform", "ours")},
            "comparisons": [
                {**pair, "difference": -2.5, "low": -3.0, "high": -2.0, "p_holm": 0.0001}
            ],
        },
    )
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- table: data.json -->\nold\n<!-- end of table -->\nafter\n")
    found = tables.rendered(document)
    assert "| ours | 20.00 ± 1.25 | against uniform -2.50 [-3.00, -2.00], p < 0.001 |" in found
    assert "| text, perplexity (1,234 tokens) | difference |" in found
    assert "old" not in found
    assert found.startswith("before\n")
    assert found.endswith("after\n")
