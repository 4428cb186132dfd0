"""Models of language beside images or sound: opened whole, worked on in their language model."""

from __future__ import annotations

import pytest
import torch

from helpers.architecture_checks import CHECKS, TEXT
from helpers.architectures import LAYERS, architectures
from helpers.multimodal import MULTIMODAL, multimodal_class, multimodal_config, tiny_multimodal
from helpers.tiny import tiny_tokenizer
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned
from layerif.compress.pruning.verifying import verify
from layerif.data.base import Example
from layerif.errors import InputError
from layerif.evaluation.generation import greedy_replies
from layerif.evaluation.perplexity import perplexity
from layerif.influence.doctor import examine
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model, open_skeleton

POPULAR = [
    "gemma4",
    "llama4",
    "llava",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_vl",
]
# Their language model is a class of its own, which transformers would open without the rest.
WITH_A_PART = ["llama4", "qwen3_5"]


def saved(name, folder):
    tiny_multimodal(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("check", ["opened", "likelihood", "gradients", "Wanda", "adapter"])
@pytest.mark.parametrize("name", POPULAR)
def test_popular_models_pass_every_check(name, check, tmp_path):
    CHECKS[check](name, tmp_path)


def test_no_name_is_that_of_two_tiny_models():
    assert not set(MULTIMODAL) & set(architectures())


@pytest.mark.parametrize("name", POPULAR)
def test_layers_are_not_those_of_a_tower_of_the_same_depth(name):
    config = multimodal_config(name, depth=LAYERS)
    with torch.device("meta"):
        model = multimodal_class(config)(config)
    others = [path for path, m in model.named_modules() if _is_a_list(m) and "language" not in path]
    assert others, "the model has no tower"
    assert "language_model" in find_decoder_layers(model).path


def _is_a_list(module):
    return isinstance(module, torch.nn.ModuleList) and len(module) == LAYERS


@pytest.mark.parametrize("name", [*WITH_A_PART, "mistral3"])
def test_what_is_pruned_and_written_opens_again_with_its_tower(name, tmp_path):
    saved(name, tmp_path / "whole")
    model, tokenizer = open_model(tmp_path / "whole", device="cpu")
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    assert any(".visual." in key or "vision" in key for key in before)
    about = {"tokenizer": tokenizer, "calibration": TEXT, "calibration_samples": 4}
    manifest = prune(model, 0.5, context_length=32, **about)
    save_pruned(model, tokenizer, manifest, tmp_path / "pruned")
    assert verify(tmp_path / "pruned").ok
    again, _ = open_model(tmp_path / "pruned", device="cpu")
    assert type(again) is type(model)
    after = again.state_dict()
    assert after.keys() == before.keys()
    own = find_decoder_layers(again).path
    assert {key for key in before if not torch.equal(before[key], after[key])} <= {
        key for key in before if key.startswith(own)
    }
    found = [perplexity(m, tokenizer, TEXT, context_length=32).value for m in (model, again)]
    assert found[0] == found[1]


def test_replies_do_not_depend_on_the_batch():
    model, tokenizer = tiny_multimodal("qwen2_vl", torch.float64), tiny_tokenizer()
    prompts = ["a", "The keys to", "x y z " * 8]
    for batch_tokens in (1, 10_000):
        found = greedy_replies(
            model, tokenizer, prompts, max_new_tokens=6, batch_tokens=batch_tokens
        )
        assert found == [_greedy(model, tokenizer(prompt)["input_ids"], 6) for prompt in prompts]


@torch.no_grad()
def _greedy(model, ids, new):
    reply = []
    while len(reply) < new:
        token = int(model(torch.tensor([ids + reply]), use_cache=False).logits[0, -1].argmax())
        if token == 2:
            break
        reply.append(token)
    return reply


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kosmos-2", r"Kosmos2ForConditionalGeneration\) does not run on text alone .*`pixel_valu"),
        ("kosmos-2.5", "counts the positions of a text otherwise"),
        ("mllama", "passes over 1 of its 4 layers where a text is alone, layer 3 first"),
        ("paligemma", "depends on the tokens that follow"),
    ],
)
def test_what_does_not_work_as_a_language_model_says_why(name, says, tmp_path):
    saved(name, tmp_path)
    with pytest.raises(InputError, match=says):
        open_model(tmp_path, device="cpu")


def test_encoders_with_decoders_are_named(tmp_path):
    multimodal_config("udop").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'udop'"):
        open_skeleton(tmp_path)


def test_experts_that_are_run_and_not_chosen_are_no_fault():
    """Llama 4 runs every expert on every token."""
    model, tokenizer = tiny_multimodal("llama4"), tiny_tokenizer()
    examples = [Example(f"Line {i}", f" of {i * i}.") for i in range(3)]
    assert examine(model, tokenizer, examples, examples[:2], rank=2).ok
