"""Every engine's file says what the plan says of every projection, read by the engine's rules."""

from __future__ import annotations

import json
import re
import runpy

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from helpers.tiny import CONFIGS, SHAPE
from layerif.artifacts import Plan
from layerif.artifacts.plan import ModuleLevel, ModuleSparsity
from layerif.errors import InputError
from layerif.export.base import Target, among, raised
from layerif.export.exporting import export_into, export_plan
from layerif.export.llamacpp import tensor_sizes
from layerif.export.options import GgufOptions, IntegerOptions, MlxOptions
from layerif.export.registry import EXPORTS, register_export
from layerif.model.layers import find_decoder_layers
from layerif.plans.maps.fused import fused_group

LEVELS = (2, 3, 4, 5, 6, 8, 16)


def skeleton(**changes):
    """A llama of 12 layers, so that layer 1 could be taken for 10 and 11; rows of 256 and 320."""
    shape = {**SHAPE, "num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 320}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, **changes}))


def plan_of(model, level, kind="bits"):
    """A plan by projections; `level` of a place and a projection."""
    projections = find_decoder_layers(model).projections
    own = ModuleSparsity if kind == "sparsity" else ModuleLevel
    field = "sparsity" if kind == "sparsity" else "level"
    modules = [
        own(module=p.key, numel=p.numel, **{field: level(place, p)})
        for place, p in enumerate(projections)
    ]
    return Plan.of_modules(modules, kind=kind)


def mixed(model):
    return plan_of(model, lambda place, _p: LEVELS[place * 5 % len(LEVELS)])


def names_of(model):
    """The canonical name of each projection by its path."""
    layers = find_decoder_layers(model)
    return {f"{layers.path}.{p.layer}.{p.name}": p.key for p in layers.projections}


def tops(plan):
    """The highest level of each projection's fused group."""
    highest = {}
    for own in plan.modules:
        group = fused_group(own.module)
        highest[group] = max(highest.get(group, 0), own.level)
    return {own.module: highest[fused_group(own.module)] for own in plan.modules}


def by_gptqmodel(config, name):
    """The first pattern that matches from the beginning decides; a minus leaves the module out."""
    for pattern, override in config["dynamic"].items():
        if re.match(pattern[2:], name):
            return 16 if pattern.startswith("-:") else override["bits"]
    return config["bits"]


def test_gptqmodel_and_its_fused_names_in_vllm():
    model = skeleton()
    plan = mixed(model)
    written = export_plan("gptqmodel", plan, model)
    config, expected = json.loads(written.text), tops(plan)
    assert written.notes[0].startswith("24 groups")
    for name, key in names_of(model).items():
        assert by_gptqmodel(config, name) == expected[key], name
        assert by_gptqmodel(config, fused_group(name)) == expected[key], name


def test_gptqmodel_parses_it_itself():
    library = pytest.importorskip("gptqmodel.quantization.config", reason="gptqmodel is absent")
    model = skeleton()
    plan = mixed(model)
    config, expected = json.loads(export_plan("gptqmodel", plan, model).text), tops(plan)
    for name, key in names_of(model).items():
        own = library.dynamic_get(config["dynamic"], name)
        assert (16 if own is False else (own or config)["bits"]) == expected[key]


def test_llm_compressor_groups_name_every_projection_once():
    model = skeleton()
    plan = mixed(model)
    stage = yaml.safe_load(export_plan("llmcompressor", plan, model).text)["quantization_stage"]
    groups = stage["quantization_modifiers"]["GPTQModifier"]["config_groups"].values()
    found = {}
    for group in groups:
        weights = group["weights"]
        for name in group["targets"]:
            assert name not in found
            found[name] = weights["num_bits"]
            row = dict(model.named_modules())[name].in_features
            assert row % weights["group_size"] == 0
    expected = tops(plan)
    for name, key in names_of(model).items():
        assert found.get(name, 16) == expected[key]


def test_llm_compressor_parses_it_itself(tmp_path):
    recipes = pytest.importorskip("llmcompressor.recipe", reason="llmcompressor is absent")
    tensors = pytest.importorskip("compressed_tensors.quantization")
    model = skeleton()
    plan = mixed(model)
    (file := tmp_path / "recipe.yaml").write_text(export_plan("llmcompressor", plan, model).text)
    (modifier,) = recipes.Recipe.create_instance(str(file)).modifiers
    tensors.apply_quantization_config(model, modifier.resolve_quantization_config())
    modules, expected = dict(model.named_modules()), tops(plan)
    for name, key in names_of(model).items():
        scheme = getattr(modules[name], "quantization_scheme", None)
        assert (16 if scheme is None else scheme.weights.num_bits) == expected[key]


def test_sparsities_are_in_the_order_of_the_models_modules():
    model = skeleton()
    plan = plan_of(model, lambda place, _p: round(0.001 * place, 3), "sparsity")
    stage = yaml.safe_load(export_plan("llmcompressor", plan, model).text)["sparsity_stage"]
    modifier = stage["sparsity_modifiers"]["SparseGPTModifier"]
    # The engine: names of the model in its own order, of those that are targets.
    engine = [n for n, _ in model.named_modules() if n in set(modifier["targets"])]
    names = names_of(model)
    # The first has no zeros, and is left out.
    assert len(engine) == len(names) - 1
    for name, sparsity in zip(engine, modifier["sparsity"], strict=True):
        assert sparsity == plan.level_of(names[name])


@pytest.mark.parametrize("symmetric", [True, False])
def test_autoround_names_every_projection(symmetric):
    model = skeleton()
    plan = mixed(model)
    options = IntegerOptions(symmetric=symmetric, fused="keep", group_size=32)
    config = json.loads(export_plan("autoround", plan, model, options=options).text)
    names = names_of(model)
    assert {name: own["bits"] for name, own in config.items()} == {
        name: plan.level_of(key) for name, key in names.items()
    }
    assert {own["sym"] for own in config.values() if own["bits"] < 16} == {symmetric}


def test_autoround_resolves_it_itself():
    resolver = pytest.importorskip(
        "auto_round.compressors.layer_config_resolver", reason="auto-round is absent"
    )
    from auto_round.compressors.config_resolution.contracts import ResolvedScheme
    from auto_round.schemes import preset_name_to_scheme

    model = skeleton()
    plan = mixed(model)
    config = json.loads(export_plan("autoround", plan, model).text)
    found = resolver.resolve_layer_config(
        model=model,
        scheme=ResolvedScheme.from_scheme(preset_name_to_scheme("W4A16")),
        layer_config=config,
    )
    expected = tops(plan)
    for name, key in names_of(model).items():
        assert found[name]["bits"] == expected[key], name


def test_torchao_quantises_by_it_itself(tmp_path):
    pytest.importorskip("torchao", reason="torchao is absent")
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    plan = mixed(model)
    options = IntegerOptions(group_size=16)
    (file := tmp_path / "own.py").write_text(
        export_plan("torchao", plan, model, options=options).text
    )
    runpy.run_path(str(file))["apply"](model)
    modules, expected = dict(model.named_modules()), tops(plan)
    for name, key in names_of(model).items():
        kind = getattr(modules[name].weight, "target_dtype", None)
        assert ("int16" if kind is None else str(kind)[6:]) == f"int{expected[key]:g}", name


def test_torchao_file_is_python_that_names_every_projection():
    model = skeleton()
    plan = mixed(model)
    text = export_plan("torchao", plan, model, options=IntegerOptions(fused="keep")).text
    compile(text, "own.py", "exec")
    found = dict(re.findall(r'\("(\S+)", (?:of\((\d+), \d+\)|None)\)', text))
    assert {name: float(bits or 16) for name, bits in found.items()} == {
        name: plan.level_of(key) for name, key in names_of(model).items()
    }


def test_mlx_names_every_module_that_it_would_quantise():
    model = skeleton(tie_word_embeddings=False)
    plan = plan_of(model, lambda place, _p: (2, 7, 16)[place % 3])
    written = export_plan("mlx", plan, model, options=MlxOptions(embeddings=8, group_size=128))
    named = json.loads(written.text)
    # MLX has no 7 bits, and 128 does not divide 320.
    assert any("no 7 bits" in note for note in written.notes)
    for name, key in names_of(model).items():
        bits = plan.level_of(key)
        row = model.get_submodule(name).in_features
        size = 128 if row % 128 == 0 else 64
        expected = {"group_size": size, "bits": 8 if bits == 7 else bits}
        assert named[name] == (False if bits == 16 else expected)
    linear = (torch.nn.Linear, torch.nn.Embedding)
    assert {n for n, m in model.named_modules() if isinstance(m, linear)} < set(named)


def test_mlx_quantises_by_it_itself():
    nn = pytest.importorskip("mlx.nn", reason="mlx is absent")
    llama = pytest.importorskip("mlx_lm.models.llama", reason="mlx-lm is absent")
    utils = pytest.importorskip("mlx_lm.utils")
    model = skeleton()
    plan = mixed(model)
    config = json.loads(export_plan("mlx", plan, model, options=MlxOptions(group_size=64)).text)
    shape = {**model.config.to_dict(), "rope_theta": 10000.0, "rope_scaling": None}
    theirs = llama.Model(llama.ModelArgs.from_dict(shape))
    theirs, _ = utils.quantize_model(
        theirs, {}, group_size=64, bits=4, quant_predicate=lambda path, _module: config[path]
    )
    modules = dict(theirs.named_modules())
    for name, key in names_of(model).items():
        assert getattr(modules[name], "bits", 16) == plan.level_of(key), name
    assert isinstance(modules["model.embed_tokens"], nn.Embedding)


def test_sensitivities_of_mlx_are_of_all_modules_and_in_the_plans_order():
    model = skeleton(tie_word_embeddings=True)
    plan = mixed(model)
    listed = dict(json.loads(export_plan("mlx_sensitivities", plan, model).text))
    highest = max(listed, key=listed.__getitem__)
    assert highest == "model.embed_tokens"
    assert {n: listed[n] for n in listed if n != highest} == {
        name: plan.level_of(key) for name, key in names_of(model).items()
    }


def test_peft_builds_the_ranks_of_the_plan():
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    plan = Plan(kind="ranks", allocation=[1, 3, 4])
    written = export_plan("peft", plan, model)
    wrapped = get_peft_model(model, LoraConfig(**json.loads(written.text)))
    ranks = {
        (int(name.split(".layers.")[1].split(".")[0]), module.r["default"])
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A")
    }
    assert ranks == {(0, 1), (1, 3), (2, 4)}
    assert any("llama.cpp" in note for note in written.notes)


def test_llamacpp_matches_whole_names_and_takes_types_that_fit():
    model = skeleton()
    plan = mixed(model)
    written = export_plan("llamacpp", plan, model)
    lines = [line.split("=") for line in written.text.split()]
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for own in plan.modules or ():
        _, layer, _, name = own.module.split(".")
        tensor = f"blk.{layer}.{names[name]}.weight"
        # As the engine searches: the first that is found anywhere in the name.
        kinds = [kind for pattern, kind in lines if re.search(pattern.lower(), tensor)]
        assert len(kinds) == 1
        wide = {2: "q2_K", 3: "q3_K", 4: "q4_K", 5: "q5_K", 6: "q6_K", 8: "q8_0", 16: "f16"}
        narrow = {2: "q4_0", 3: "q4_0", 4: "q4_0", 5: "q5_0", 6: "q8_0", 8: "q8_0", 16: "f16"}
        assert kinds == [(narrow if name == "down_proj" else wide)[int(own.level)]]
    assert written.bytes == sum(written.sizes.values())
    # 4.5 bits of q4_0 in rows of 320; 2.625 of q2_K in rows of 256.
    assert written.sizes["output_norm.weight"] == 256 * 4
    assert "--tensor-type-file" in written.usage


def test_bytes_of_a_type_are_its_blocks():
    model = skeleton()
    names = {f"model.layers.0.{n}": n for n in ("self_attn.q_proj.weight", "mlp.up_proj.weight")}
    one = [(n, p) for n, p in model.named_parameters() if n in names]

    class Two:
        def named_parameters(self):
            return one

    sizes = tensor_sizes(Two(), names, dict(zip(names.values(), ("q2_K", "q6_K"), strict=True)), "")
    assert sizes == {
        "self_attn.q_proj.weight": 256 * 256 * 84 // 256,
        "mlp.up_proj.weight": 320 * 256 * 210 // 256,
    }


def test_an_engine_without_the_architecture_is_said():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.config.model_type = "teapot"
    with pytest.raises(InputError, match="teapot"):
        export_plan("llamacpp", Plan(kind="bits", allocation=[4, 4, 4]), model)


def test_levels_that_differ_in_a_fused_group_are_refused_where_asked():
    model = skeleton()
    with pytest.raises(InputError, match="as one"):
        export_plan("gptqmodel", mixed(model), model, options=IntegerOptions(fused="refuse"))


def test_levels_of_experts_in_one_parameter_are_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MixtralConfig(**SHAPE, num_local_experts=2))
    with pytest.raises(InputError, match="experts"):
        export_plan("autoround", Plan(kind="bits", allocation=[4, 4, 4]), model)


def test_another_kind_of_plan_is_refused():
    plan = Plan(kind="ranks", allocation=[1, 3, 4])
    with pytest.raises(InputError, match="ranks"):
        export_plan("gptqmodel", plan, skeleton())


def test_a_plan_without_a_model_asks_for_one():
    with pytest.raises(InputError, match="model"):
        export_plan("gptqmodel", Plan(kind="bits", allocation=[4] * 12))


def test_a_file_that_is_there_is_left_as_it_is(tmp_path):
    written = export_plan("autoround", mixed(model := skeleton()), model)
    (out := tmp_path / "own.json").write_text("mine")
    with pytest.raises(InputError, match="remove"):
        export_into(out, written)
    assert out.read_text() == "mine"
    out.unlink()
    assert str(out) in export_into(out, written).usage
    export_into(out, written)


def test_levels_between_those_of_an_engine_go_up():
    targets = [Target("layers.0.a", "m.layers.0.a", "a", 0, 4, 4, level) for level in (3, 4)]
    changed, notes = among(targets, (4, 8, 16), "it")
    assert [t.level for t in changed] == [4, 4]
    assert len(notes) == 1
    assert raised(targets, "keep") == (targets, [])


def test_a_users_own_engine_is_called_like_ours():
    from layerif.export.base import Export, Written

    register_export("own_engine", Export("Own", {"bits": lambda r: Written(r.path, "")}))
    assert "own_engine" in EXPORTS.names()
    model = skeleton()
    assert export_plan("own_engine", mixed(model), model).text == "model.layers"


def test_the_command_writes_prints_and_says_where_it_differs(layerif, tmp_path):
    from helpers.tiny import tiny_model, tiny_tokenizer

    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    mixed(tiny_model()).save(tmp_path / "plan.json")
    named = ("--model", tmp_path / "model")
    status, printed, said = layerif("export", "llamacpp", tmp_path / "plan.json", *named)
    assert status == 0
    assert printed.splitlines()[0].startswith(r"^blk\.0\.attn_q\.weight$=")
    assert "llama-quantize" in said
    out = tmp_path / "own.json"
    status, printed, said = layerif(
        "export", "gptqmodel", tmp_path / "plan.json", *named, "--group-size", 16, "--out", out
    )
    assert status == 0
    assert "as one" in said
    assert json.loads(out.read_text())["dynamic"]
    status, printed, _ = layerif("export", "--help")
    assert all(name in printed for name in ("llamacpp", "mergekit", "lora"))


def test_options_have_their_limits():
    with pytest.raises(InputError, match="embeddings"):
        GgufOptions(embeddings="q1")
    with pytest.raises(InputError, match="group_size"):
        MlxOptions(group_size=16)
