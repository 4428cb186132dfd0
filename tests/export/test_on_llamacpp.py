"""Exports on llama.cpp itself: sizes, perplexities and adapters are those of layerif."""

from __future__ import annotations

import copy

import pytest
import torch
from gguf import GGUFReader, dequantize
from peft import PeftModel, get_peft_model
from pyarrow.parquet import read_table
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.adapters import fill_loras
from helpers.engine import own_perplexity
from layerif.adapters import lora_config_for
from layerif.artifacts import Plan
from layerif.artifacts.plan import ModuleLevel
from layerif.errors import MissingDependencyError
from layerif.export.exporting import export_into, export_plan
from layerif.export.llamacpp import tensor_names
from layerif.export.lora import export_lora
from layerif.export.options import GgufOptions
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WINDOWS = 3
REAL = pytest.param("smollm2", marks=pytest.mark.real_model)


@pytest.fixture(scope="module", params=["tiny", REAL])
def subject(request):
    """A model and its tokenizer, which the converter has to know: a random model, or SmolLM2."""
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    try:
        tokenizer = open_tokenizer("smollm2")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


@pytest.fixture(scope="module")
def folder(subject, tmp_path_factory):
    """The model as `save_pretrained` writes what layerif opens."""
    model, tokenizer = subject
    place = tmp_path_factory.mktemp("model") / "plain"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def whole(llamacpp, folder):
    return llamacpp.converted(folder, folder.parent / "model-f32.gguf")


@pytest.fixture(scope="module")
def text(data_dir, tmp_path_factory):
    rows = read_table(data_dir / "wikitext2" / "test.parquet")["text"].to_pylist()
    file = tmp_path_factory.mktemp("text") / "wikitext.txt"
    file.write_text("\n\n".join(rows)[:16_000], encoding="utf-8")
    return file


def mixed_plan(model):
    """Levels of 3 to 8 bits and 16, most of them 4."""
    of = {"v_proj": 8, "k_proj": 5, "down_proj": 3}
    modules = [
        ModuleLevel(
            module=p.key,
            level=16 if p.key == "layers.0.self_attn.q_proj" else of.get(p.name.split(".")[-1], 4),
            numel=p.numel,
        )
        for p in find_decoder_layers(model).projections
    ]
    return Plan.of_modules(modules, kind="bits")


def test_the_converted_model_has_our_perplexity(llamacpp, subject, whole, text):
    ours = own_perplexity(*subject, text, WINDOWS)
    assert llamacpp.perplexity(whole, text, WINDOWS) == pytest.approx(ours, rel=1e-3)


def test_a_plan_is_quantised_as_the_file_says_and_as_large(llamacpp, subject, whole, text):
    model, tokenizer = subject
    target = whole.parent / "model-plan.gguf"
    options = GgufOptions(source=str(whole), target=str(target), embeddings="q8_0")
    written = export_into(
        whole.parent / "types.txt",
        export_plan("llamacpp", mixed_plan(model), model, options=options),
    )
    program, *arguments = written.usage.split()
    llamacpp.run(program, *arguments, 1)
    tensors = {tensor.name: tensor for tensor in GGUFReader(target).tensors}
    assert {name: int(tensor.n_bytes) for name, tensor in tensors.items()} == written.sizes
    # Its weights, made float again here, have the perplexity that the engine finds: the engine
    # rounds activations to 8 bits besides.
    rounded = copy.deepcopy(model)
    names = tensor_names(rounded)
    for p in find_decoder_layers(rounded).projections:
        stored = tensors[names[f"model.layers.{p.layer}.{p.name}.weight"]]
        p.weight.data.copy_(_rows(p.name, dequantize(stored.data, stored.tensor_type), rounded))
    stored = tensors["token_embd.weight"]
    embedded = torch.from_numpy(dequantize(stored.data, stored.tensor_type))
    rounded.get_input_embeddings().weight.data.copy_(embedded)
    ours = own_perplexity(rounded, tokenizer, text, WINDOWS)
    assert ours > 1.01 * own_perplexity(model, tokenizer, text, WINDOWS)
    assert llamacpp.perplexity(target, text, WINDOWS) == pytest.approx(ours, rel=0.02)


def _rows(name, weight, model):
    """The rows of q and k in the order of transformers: the converter turns pairs of them."""
    rows = torch.from_numpy(weight)
    if name.endswith(("q_proj", "k_proj")):
        width = model.config.head_dim // 2
        heads = len(rows) // (2 * width)
        rows = rows.reshape(heads, width, 2, -1).swapaxes(1, 2).reshape(rows.shape)
    return rows


def test_a_padded_lora_is_what_it_is_in_peft(llamacpp, subject, folder, whole, text, tmp_path):
    """As it was, llama.cpp scales every layer of a lower rank too much."""
    model, tokenizer = subject
    layers = len(find_decoder_layers(model))
    plan = Plan(kind="ranks", allocation=[1 + layer % 8 for layer in range(layers)])
    wrapped = get_peft_model(copy.deepcopy(model), lora_config_for(plan, model))
    fill_loras(wrapped)
    size = 0.5 if layers == 30 else 1.0
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float() * size
    wrapped.save_pretrained(tmp_path / "own")
    ours = own_perplexity(wrapped.eval(), tokenizer, text, WINDOWS)
    assert abs(ours / own_perplexity(model, tokenizer, text, WINDOWS) - 1) > 0.01
    export_lora(tmp_path / "own", tmp_path / "padded")
    padded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "padded")
    assert own_perplexity(padded.eval(), tokenizer, text, WINDOWS) == pytest.approx(ours, rel=1e-5)
    file = llamacpp.converted_lora(tmp_path / "padded", folder, tmp_path / "padded.gguf")
    found = llamacpp.perplexity(whole, text, WINDOWS, "--lora", file)
    assert found == pytest.approx(ours, rel=1e-3)
    file = llamacpp.converted_lora(tmp_path / "own", folder, tmp_path / "own.gguf")
    found = llamacpp.perplexity(whole, text, WINDOWS, "--lora", file)
    assert found != pytest.approx(ours, rel=1e-3)


def test_the_layers_of_a_plan_of_depth_are_pruned(llamacpp, subject, whole, text):
    model, tokenizer = subject
    layers = len(find_decoder_layers(model))
    kept = [int(not layers // 4 <= layer < 3 * layers // 4) for layer in range(layers)]
    plan = Plan(kind="depth", allocation=kept)
    target = whole.parent / "model-cut.gguf"
    options = GgufOptions(source=str(whole), target=str(target))
    written = export_plan("llamacpp", plan, model, options=options)
    program, *arguments = written.text.split()
    llamacpp.run(program, *arguments, 1)
    names = {tensor.name for tensor in GGUFReader(target).tensors}
    left = {n.split(".")[1] for n in names if n.startswith("blk.")}
    assert left == set(map(str, range(sum(kept))))
    cut = copy.deepcopy(model)
    cut.model.layers = torch.nn.ModuleList(
        layer for layer, keep in zip(cut.model.layers, kept, strict=True) if keep
    )
    ours = own_perplexity(cut, tokenizer, text, WINDOWS)
    assert llamacpp.perplexity(target, text, WINDOWS) == pytest.approx(ours, rel=2e-3)
    if layers == 30:
        # Half the layers are gone, and the head has stayed: faster on whatever machine.
        full = whole.parent / "model-f16.gguf"
        llamacpp.run("llama-quantize", whole, full, "f16", 1)
        rates = [max(llamacpp.rate(f, generated=16, repetitions=3)) for f in (full, target)]
        assert rates[1] > 1.1 * rates[0]
