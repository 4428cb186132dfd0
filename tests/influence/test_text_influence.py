"""Influence of chunks of running text: that of samples whose completion is all but one token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.marginal_models import corpus
from helpers.scoring import measure
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import LayerScores
from layerif.data.base import Example
from layerif.data.options import SampleOptions
from layerif.data.rows import text_rows
from layerif.errors import InputError

TEXT = corpus()


def chunks(length, of=TEXT, **counts):
    wanted, size = SampleOptions(**counts).wanted(), {"max_length": length, "seed": 0}
    return text_rows(tiny_model(), tiny_tokenizer(), of, wanted, **size)


@pytest.mark.parametrize("estimator", ["datainf", "grad_dot", "ekfac"])
def test_a_chunk_counts_like_a_sample_of_the_same_tokens(estimator):
    tokenizer, model = tiny_tokenizer(), tiny_model("llama", dtype=torch.float64)
    train, validation = chunks(24, train_samples=5, validation_samples=3)

    def as_samples(rows):
        texts = [tokenizer.decode(row.input_ids) for row in rows]
        assert [tokenizer(text)["input_ids"] for text in texts] == [[*r.input_ids] for r in rows]
        return [Example(text[:1], text[1:]) for text in texts]

    of_text = measure(model, train=train, validation=validation, estimator=estimator)
    of_samples = measure(
        model, train=as_samples(train), validation=as_samples(validation), estimator=estimator
    )
    assert np.abs(of_text.influence).max() > 0
    np.testing.assert_allclose(of_text.influence, of_samples.influence, rtol=1e-9)


def test_counts_give_way_to_what_there_is_only_where_they_were_not_given():
    train, validation = chunks(128)
    assert len(validation) == (len(train) + len(validation)) // 10
    # Of nine chunks one is measured on, as a tenth of them would be none.
    short = replace(TEXT, calibration=["x" * 9 * 4])
    assert [len(part) for part in chunks(4, short)] == [8, 1]
    with pytest.raises(InputError):
        chunks(32, train_samples=10**6)
    with pytest.raises(InputError, match="max_length"):
        measure(tiny_model("llama"), train=train, validation=validation, max_length=64)


def test_text_is_scored_by_the_command_and_found_again(layerif, model, text, tmp_path):
    words = ["score", "--model", model, "--task", text, "--rank", 2, "--max-length", 32]
    status, _, err = layerif(*words, "--train-samples", 6, "--out", tmp_path / "run")
    assert status == 0, err
    scores = LayerScores.load(tmp_path / "run")
    assert scores.record.train_samples == 6
    assert scores.record.task["name"] == str(text)
    status, _, err = layerif("run", tmp_path / "run" / "recipe.yaml")
    assert status == 0, err
    assert "nothing is done again" in err
