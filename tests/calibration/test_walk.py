"""The walk calls each layer as the model itself would."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny import ARCHITECTURES, tiny_model, use_mlps_twice
from layerif.calibration.statistics import InputNorms
from layerif.calibration.walk import walk
from layerif.data.batching import Encoded, collate
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers


def batches(count=5, rows=2, length=20):
    generator = torch.Generator().manual_seed(0)
    found = []
    for b in range(count):
        rows_here = rows if b < count - 1 else 1  # the last batch has another shape
        ids = torch.randint(3, 260, (rows_here, length), generator=generator)
        items = [Encoded(i, row.tolist(), 1) for i, row in enumerate(ids)]
        found.append(collate(items, device=torch.device("cpu")).inputs)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_those_of_the_forward_pass(architecture):
    model = tiny_model(architecture)
    layers = find_decoder_layers(model)
    inputs = batches()
    expected = {}

    def keep(index):
        def hook(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            expected.setdefault(index, []).append(hidden)

        return hook

    handles = [m.register_forward_hook(keep(i)) for i, m in enumerate(layers.modules)]
    with torch.no_grad():
        for batch in inputs:
            model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    visited = []
    for visit in walk(model, layers, inputs):
        visited.append(visit.index)
        for output, reference in zip(visit.run(), expected[visit.index], strict=True):
            torch.testing.assert_close(output, reference)
            assert not output.requires_grad
    assert visited == [0, 1, 2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unchanged_layers_run_once_and_hand_on_the_same(architecture):
    model = tiny_model(architecture)
    layers, inputs = find_decoder_layers(model), batches()
    expected = {
        visit.index: ([h.clone() for h in visit.inputs()], list(visit.run()))
        for visit in walk(model, layers, inputs)
    }
    for visit in walk(model, layers, inputs, unchanged=True):
        calls = []
        handle = visit.module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        # zip takes a batch's input before its output is put in its place.
        for batch, (before, after) in enumerate(zip(visit.inputs(), visit.run(), strict=True)):
            assert torch.equal(before, expected[visit.index][0][batch])
            assert torch.equal(after, expected[visit.index][1][batch])
        handle.remove()
        assert len(calls) == len(inputs)
        with pytest.raises(InputError, match=f"layer {visit.index}"):
            list(visit.run())


def test_what_is_not_run_to_the_end_is_handed_on_all_the_same():
    model = tiny_model()
    layers, inputs = find_decoder_layers(model), batches()
    expected = [[h.clone() for h in visit.inputs()] for visit in walk(model, layers, inputs)]
    for visit in walk(model, layers, inputs, unchanged=True):
        for mine, wanted in zip(visit.inputs(), expected[visit.index], strict=True):
            assert torch.equal(mine, wanted)
        if visit.index == 1:
            outputs = visit.run()
            next(outputs), next(outputs)


def test_a_changed_layer_is_what_the_next_one_sees():
    model = tiny_model()
    layers = find_decoder_layers(model)
    inputs = batches(count=2)
    for visit in walk(model, layers, inputs):
        if visit.index == 0:
            visit.module.mlp.down_proj.weight.data.zero_()
        if visit.index == 1:
            found = list(visit.run())
    with torch.no_grad():
        reference = [
            model(**batch, use_cache=False, output_hidden_states=True).hidden_states[2]
            for batch in inputs
        ]
    for output, expected in zip(found, reference, strict=True):
        torch.testing.assert_close(output, expected)


def test_arguments_that_depend_on_the_tokens_are_captured_for_every_batch():
    """A model that hands its layers something of each token, as some do, not just masks."""
    model = tiny_model()
    layers = find_decoder_layers(model)
    inputs = batches(count=4)
    seen = []
    forward = type(layers.modules[0]).forward

    def add_tokens(module, args, kwargs):
        tokens = kwargs.pop("tokens", None)
        if tokens is not None:
            seen.append(tokens[0, 0].item())

    def hand_tokens(module, args, kwargs):
        kwargs["tokens"] = current[0]
        return args, kwargs

    current = [None]
    model.base_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: current.__setitem__(0, kwargs["input_ids"]), with_kwargs=True
    )
    for module in layers.modules:
        module.forward = lambda hidden, tokens, m=module, **kw: forward(
            m, hidden * (1 + 0.01 * tokens[:, :1, None]), **kw
        )
        handle = module.register_forward_pre_hook(hand_tokens, with_kwargs=True, prepend=True)
        module._hand_tokens = handle
    reference = [
        model(**batch, use_cache=False, output_hidden_states=True).hidden_states for batch in inputs
    ]
    walker = walk(model, layers, inputs)
    visit = next(walker)
    for module in layers.modules:
        module._hand_tokens.remove()  # from here on only captured arguments supply the tokens
    for output, hidden in zip(visit.run(), reference, strict=True):
        torch.testing.assert_close(output, hidden[1])


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "falcon"])
def test_to_see_how_layers_are_called_two_batches_pass_through_the_first_alone(architecture):
    """Would see: whole forward passes beside the one or two that each layer is run for."""
    model = tiny_model(architecture)
    layers = find_decoder_layers(model)
    forwards = [module.__dict__.get("forward") for module in layers.modules]
    runs = [0] * len(layers)

    def counter(index):
        def count(_module, args, kwargs, output):
            runs[index] += 1

        return count

    # The last layer's last operation: skipped layers do not come to it.
    for index in range(len(layers)):
        projection = layers.of(index)[-1].module
        projection.register_forward_hook(counter(index), with_kwargs=True)
    alike = batches(count=6)[:5]
    for _visit in walk(model, layers, alike):
        pass
    # Two batches to see the calls; each batch once to hand on, but for the last layer.
    assert runs == [2 + 5, 5, 0]
    assert [module.__dict__.get("forward") for module in layers.modules] == forwards


@pytest.mark.parametrize("architecture", ["llama", "llama twice", "gemma3", "gpt2", "opt"])
def test_input_norms_are_those_of_all_tokens_together(architecture):
    """And, where a projection is used twice in its layer, of both uses."""
    model = tiny_model(architecture.split()[0])
    if "twice" in architecture:
        use_mlps_twice(model)
    layers = find_decoder_layers(model)
    inputs = batches()
    projections = layers.of(1)
    collected = {p.key: [] for p in projections}
    handles = [
        p.module.register_forward_pre_hook(
            lambda _m, args, key=p.key: collected[key].append(args[0].flatten(0, -2).double())
        )
        for p in projections
    ]
    with torch.no_grad():
        for batch in inputs:
            model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    for visit in walk(model, layers, inputs):
        if visit.index == 1:
            norms = InputNorms(projections)
            with norms.watching():
                for _ in visit.run():
                    pass
    for p in projections:
        expected = torch.cat(collected[p.key]).norm(dim=0)
        torch.testing.assert_close(norms.norms(p), expected, rtol=1e-5, atol=1e-6)
