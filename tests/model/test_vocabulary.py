"""Tokens that a model has no embedding for: named before the work, where its texts have them."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.errors import InputError
from layerif.model.checks import check_tokens

ADDED = "sat"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A tokenizer with more tokens than its model has embeddings, one of them a word."""
    folder = tmp_path_factory.mktemp("odd")
    tiny_model().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["another", ADDED])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with the word, or without."""
    folder, paths = tmp_path_factory.mktemp("rows"), {}
    for name, word in (("with", ADDED), ("without", "stood")):
        examples = [
            {
                "prompt": f"{i} birds {word} on",
                "completion": " a wire",
                "choices": [" a wire", " it"],
            }
            for i in range(400)
        ]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in examples))
    return paths


COMMANDS = {
    "doctor": "doctor {odd} --task {rows} --train-samples 8 --validation-samples 4",
    "score": "score --model {odd} --task {rows} --rank 2 --train-samples 8 --validation-samples 4 "
    "--out {out}",
    "evaluate": "evaluate --model {odd} --tasks {rows} --samples 4 --out {out}.json",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_token_without_an_embedding_is_named_where_it_occurs(
    layerif, odd, rows, tmp_path, command
):
    for name, expected in (("with", 2), ("without", 0)):
        words = COMMANDS[command].format(odd=odd, rows=rows[name], out=tmp_path / name)
        status, _, says = layerif(*words.split())
        assert status == expected, says
        assert ("token 260 " in says) == (expected == 2)


def test_running_text_with_such_a_token_is_refused_before_pruning(layerif, odd, text, tmp_path):
    command = f"prune --model {odd} --sparsity 0.5 --calibration {text} --out {tmp_path / 'out'}"
    status, _, says = layerif(*command.split(), "--context-length", 32, "--calibration-samples", 4)
    assert (status, "token 260 " in says) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_last_embedding_is_in_use_and_the_next_is_not():
    model = tiny_model()
    check_tokens(model, [[259], []])
    with pytest.raises(InputError, match="260"):
        check_tokens(model, [[0, 260]])
    with pytest.raises(IndexError):
        model(torch.tensor([[260]]))
