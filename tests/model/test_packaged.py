"""Models inside packages of PyPI, opened by an alias."""

from __future__ import annotations

import sys

import pytest
import torch

from helpers.tiny_gguf import write_tiny_gguf
from layerif.core.aliases import ALIASES, Alias
from layerif.core.files import file_hash
from layerif.errors import InputError, MissingDependencyError
from layerif.evaluation.perplexity import perplexity
from layerif.model.opening import describe, open_model
from layerif.model.packaged import packaged


@pytest.fixture
def in_pieces(tmp_path, monkeypatch):
    """An alias whose GGUF file lies in two packages; the file, and the folders of its pieces."""
    monkeypatch.setenv("LAYERIF_CACHE", str(tmp_path / "cache"))
    write_tiny_gguf(file := tmp_path / "whole.gguf")
    stored, half = file.read_bytes(), file.stat().st_size // 2
    for place, piece in enumerate((stored[:half], stored[half:])):
        (folder := tmp_path / "site" / f"layerif_test_part{place}").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / f"whole.part{place}").write_bytes(piece)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(
        ALIASES,
        "tiny",
        Alias(
            title="Tiny, 1 MB, terms of its own",
            install="tiny==1.0.0",
            pieces=tuple((f"layerif_test_part{n}", f"*.part{n}") for n in range(2)),
            file="whole.gguf",
            sha256=file_hash(file),
            terms="https://example.org/terms",
        ),
    )
    return file


def test_pieces_are_joined_and_converted_once(in_pieces, tmp_path, capsys):
    model, _ = open_model("tiny")
    assert "https://example.org/terms" in capsys.readouterr().err
    whole, _ = open_model(in_pieces)
    for (name, ours), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected), name
    assert "layerif_test_part0" not in sys.modules
    # The joined file is gone, and the second time only the plain model is read.
    assert sorted(path.name for path in (tmp_path / "cache" / "gguf").glob("*.gguf*")) == []
    packaged("tiny")
    assert capsys.readouterr().err == ""


def test_a_damaged_piece_is_refused(in_pieces, tmp_path):
    piece = tmp_path / "site" / "layerif_test_part1" / "whole.part1"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="damaged"):
        packaged("tiny")


@pytest.mark.parametrize("name", list(ALIASES))
def test_without_its_packages_an_alias_names_the_command(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _package: None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*==") as error:
        open_model(name)
    assert (ALIASES[name].terms or "") in str(error.value)


@pytest.mark.slow
@pytest.mark.real_model
def test_gemma_is_opened_with_its_begin_and_reads_plain_text(gemma3, data_dir):
    from pyarrow.parquet import read_table

    model, tokenizer = gemma3
    info = describe(model)
    assert (info.name, info.layers) == ("gemma3-270m", 18)
    assert "Q5_0" in str(info.caveat)
    assert model.dtype == torch.float32
    assert tokenizer("Hello, world 42")["input_ids"][0] == tokenizer.bos_token_id == 2
    assert tokenizer.decode(tokenizer("Hello, world 42")["input_ids"][1:]) == "Hello, world 42"
    test = read_table(data_dir / "wikitext2" / "test.parquet")["text"].to_pylist()
    found = perplexity(model, tokenizer, "\n\n".join(test), max_tokens=2048)
    assert 30 < found.value < 80
