"""The same change on every kind of model, compiled or not, in training, and with the caches of transformers."""

import logging
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.unit.interp.interventions.models import CONFIG, SPARSE, tiny, tokens
from tests.unit.sparsity.tiny_stack import PlainBlock, SeamBlock, TupleBlock, checkpoint_blocks, make_batch, make_stack
from topklm.errors import ConfigError
from topklm.interp.interventions import Intervention, intervene
from topklm.model.huggingface import config_to_hf, weights_to_hf
from topklm.sparsity import TopKConfig, set_alpha, sparsify

module = sys.modules["topklm.interp.interventions.intervene"]  # the package has the function by that name
EDITS = [
    Intervention(layers=[0, 2], neurons=[1, 5], site="pre", op="add", value=1.5),
    Intervention(layer=1, neurons=[0, 2, 4, 6], op="zero", refill=True),
    Intervention(layers="2:", neurons=[7], op="set", value=2.0, positions="last"),
]


@pytest.mark.parametrize("block", [PlainBlock, TupleBlock])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_foreign_blocks_are_changed_as_blocks_with_a_seam_are(block, alpha):
    models = [make_stack(TopKConfig(k=6, n_dense_tail=1), kind) for kind in (block, SeamBlock)]
    for model in models:
        set_alpha(model, alpha)
    ids = make_batch(0)[:, :-1]
    plain = models[0](ids)
    with intervene(models[0], EDITS), intervene(models[1], EDITS):
        found = [model(ids) for model in models]
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], plain)
    assert torch.equal(models[0](ids), plain)


def llama(topk):
    """(a LlamaForCausalLM with the weights of `tiny`, `tiny`), both float64."""
    transformers = pytest.importorskip("transformers")
    ours = tiny(topk=topk)
    config = transformers.LlamaConfig(**{k: v for k, v in config_to_hf(CONFIG).items() if k != "model_type"})
    model = transformers.LlamaForCausalLM(config).double().eval()
    model.load_state_dict(weights_to_hf(ours.state_dict(), CONFIG))
    model.generation_config.eos_token_id = None
    return model, ours


@pytest.mark.parametrize("kind", ["sparsified", "exported", "dense"])
def test_a_model_of_transformers_is_changed_as_ours_is(kind, caplog):
    caplog.set_level(logging.ERROR)
    model, ours = llama(None if kind == "dense" else SPARSE)
    if kind == "sparsified":
        sparsify(model, SPARSE)
    elif kind == "exported":
        from topklm.export.modeling_topklm import TopKLlamaConfig, TopKLlamaForCausalLM

        topk = {"k": SPARSE.k, "n_dense_tail": SPARSE.n_dense_tail}
        exported = TopKLlamaForCausalLM(TopKLlamaConfig(topk=topk, **model.config.to_dict())).double().eval()
        exported.load_state_dict(model.state_dict())
        model = exported
    edits = [one for one in EDITS if not (one.refill and kind == "dense")]
    ids = tokens(2, 6)
    plain = model(ids).logits
    with intervene(model, edits), intervene(ours, edits), torch.no_grad():
        found, expected = model(ids).logits, ours(ids)
        assert not torch.allclose(found, plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # it has norms and rotation in fp32
    assert torch.equal(model(ids).logits, plain)
    if kind == "dense":
        with pytest.raises(ConfigError, match="dense"), intervene(model, EDITS):
            pass


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
def test_their_generation_with_a_cache_is_the_full_recomputation(positions, caplog):
    caplog.set_level(logging.ERROR)
    model, _ = llama(SPARSE)
    sparsify(model, SPARSE)
    ids = tokens(2, 5)
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # on the left, as transformers wants it
    one = {"layers": [0, 2], "neurons": [1, 5], "site": "pre", "op": "add", "value": 3.0}
    with intervene(model, [Intervention(**one, positions=positions)], prompt_lengths=[3, 5]):
        made = model.generate(
            ids, attention_mask=padding, max_new_tokens=6, do_sample=False, return_dict_in_generate=True,
            output_logits=True, pad_token_id=0,
        )  # fmt: skip
    for row, (start, n) in enumerate([(2, 3), (0, 5)]):
        alone = made.sequences[row : row + 1, start:]
        length = alone.shape[1]
        chosen = {"all": range(length), "prompt": range(n), "generated": range(n, length),
                  "last": range(n - 1, length)}[positions]  # fmt: skip
        mask = torch.tensor([[t in chosen for t in range(length)]])
        with intervene(model, [Intervention(**one, positions=mask)]), torch.no_grad():
            whole = model(alone).logits[0]
        for i, logits in enumerate(made.logits):
            torch.testing.assert_close(logits[row].double(), whole[n - 1 + i], rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["blocks", "model"])
def test_a_compiled_model_is_changed_and_its_graphs_are_used_again_afterwards(how):
    model, ids = tiny(), tokens(2, 6)
    with intervene(model, EDITS), torch.no_grad():
        expected = model(ids)
    counted = []

    def backend(graph, inputs):
        counted.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = model
    if how == "blocks":
        for block in model.layers:
            block.compile(backend=backend, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        plain = compiled(ids)
        graphs = len(counted)
        assert graphs
        with intervene(compiled, EDITS):
            assert torch.equal(compiled(ids), expected)
        assert torch.equal(compiled(ids), plain)
    assert len(counted) == graphs
    torch._dynamo.reset()


def test_what_is_compiled_inside_is_changed_and_forgets_it(monkeypatch):
    # As if the compiler had not been there when the context began: then nothing keeps it out.
    monkeypatch.setattr(module, "_eagerly", nullcontext)
    model, ids = tiny(), tokens(2, 6)
    with torch.no_grad():
        plain = model(ids)
        with intervene(model, EDITS):
            expected = model(ids)
            compiled = torch.compile(model, backend="eager")
            torch.testing.assert_close(compiled(ids), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(compiled(ids), plain, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain, expected)
    torch._dynamo.reset()


def test_training_inside_with_transformers_own_checkpointing(caplog):
    caplog.set_level(logging.ERROR)
    gradients = []
    for checkpointing in (False, True):
        model, _ = llama(SPARSE)
        sparsify(model, SPARSE).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with intervene(model, EDITS):
            model(tokens(2, 6)).logits.square().sum().backward()
        gradients.append(np.concatenate([p.grad.flatten().numpy() for p in model.parameters()]))
    np.testing.assert_allclose(*gradients, rtol=1e-9)


def test_wrapped_blocks_are_refused():
    model = make_stack(TopKConfig(k=6, n_dense_tail=1))
    checkpoint_blocks(model, "full")
    with pytest.raises(ConfigError, match="CheckpointWrapper"), intervene(model, EDITS[:1]):
        pass
