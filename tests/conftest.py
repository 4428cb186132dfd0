"""Where the tests find data that is not part of the project, and small models to run on."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.engine import LlamaCpp
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif import cli
from layerif.core.files import cache_folder

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    shared = ROOT.parent / "shared"
    parser.addoption(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("LAYERIF_DATA_DIR", shared / "data")),
        help="folder of parquet data sets, one folder a set; tests that want it skip without it",
    )
    parser.addoption(
        "--paper-dir",
        type=Path,
        default=Path(os.environ.get("LAYERIF_PAPER_DIR", shared / "paper")),
        help="folder of the paper's published vectors; tests that want it skip without it",
    )
    parser.addoption(
        "--engine-dir",
        type=Path,
        default=Path(os.environ.get("LAYERIF_ENGINE_DIR", ROOT / "build" / "engine")),
        help="folder that `make engine` builds llama.cpp in; tests that want it skip without it",
    )


def _existing(request: pytest.FixtureRequest, option: str) -> Path:
    folder: Path = request.config.getoption(option)
    if not folder.is_dir():
        pytest.skip(f"{option} {folder} is not a folder here")
    return folder


@pytest.fixture(scope="session")
def llamacpp(request: pytest.FixtureRequest) -> LlamaCpp:
    """llama.cpp, with its programs and converters."""
    folder: Path = request.config.getoption("--engine-dir")
    if not (folder / "cmake" / "bin" / "llama-quantize").is_file():
        pytest.skip(f"llama.cpp is not in {folder}; `make engine` builds it")
    return LlamaCpp(folder)


@pytest.fixture(scope="session")
def data_dir(request: pytest.FixtureRequest) -> Path:
    return _existing(request, "--data-dir")


@pytest.fixture(scope="session")
def paper_dir(request: pytest.FixtureRequest) -> Path:
    return _existing(request, "--paper-dir")


@pytest.fixture(scope="session")
def paper(paper_dir: Path) -> dict[str, Any]:
    """What the paper publishes of Mistral-7B."""
    return json.loads((paper_dir / "mistral-7b.json").read_text())


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """A cache of its own for the suite, so that no likelihood comes from other code; the slow
    conversion of GGUF files alone is shared with the user's.
    """
    folder, users = tmp_path_factory.mktemp("cache"), cache_folder() / "gguf"
    users.mkdir(parents=True, exist_ok=True)
    (folder / "gguf").symlink_to(users, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERIF_CACHE", str(folder))
        yield


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest):
    """Tiny models run on one thread: sharing out their small products costs more than it saves."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("real_model") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_network(monkeypatch):
    """Whatever connects to another machine fails the test, retries and all."""

    def connect(_self, address):
        pytest.fail(f"something connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


def _opened(alias):
    from layerif.errors import MissingDependencyError
    from layerif.model.opening import open_model

    try:
        return open_model(alias)
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in float32 and its tokenizer; tests leave its weights as they are."""
    return _opened("smollm2")


@pytest.fixture(scope="session")
def gemma3():
    """Gemma 3 270M in float32 and its tokenizer, as `smollm2`."""
    return _opened("gemma3-270m")


@pytest.fixture
def layerif(monkeypatch, capsys):
    """Run a command line in this process; returns its exit status, output and error output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["layerif", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny model; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text file of some paragraphs."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    paragraphs = (f"Paragraph {i} tells of {i * i} birds that sat on {i} wires." for i in range(90))
    path.write_text("\n\n".join(paragraphs))
    return path
