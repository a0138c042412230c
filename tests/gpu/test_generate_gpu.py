"""Generation on a GPU: the cache's logits in float64, the CPU's completions, and bf16; skipped without CUDA."""

import dataclasses

import pytest
import torch

from topklm.data.tokenizers import ByteTokenizer
from topklm.generate import SamplingConfig, generate
from topklm.model import KVCache, ModelConfig, build_model
from topklm.sparsity import TopKConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

CONFIG = ModelConfig(dim=256, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=258, max_seqlen=128)
PROMPTS = ["hello", "", "a much longer prompt than the others", "x"]


def model_in(dtype, kv_heads=2):
    """The CPU's weights on the GPU: the two draw other numbers."""
    model = build_model(dataclasses.replace(CONFIG, n_kv_heads=kv_heads), TopKConfig(k=16, n_dense_tail=1))
    with torch.no_grad():
        model.head_weight.mul_(3)
    return model.to("cuda", dtype)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_prefill_and_decode_give_the_logits_of_a_full_pass(kv_heads):
    model = model_in(torch.float64, kv_heads)
    tokens = torch.randint(0, 258, (3, 20), generator=torch.Generator().manual_seed(0)).cuda()
    cache = KVCache(model.config, 3, 32, device="cuda", dtype=torch.float64)
    model(tokens[:, :9], cache=cache)
    cache.rewind([9, 4, 1])
    full = model(tokens)
    for i, start in enumerate((9, 4, 1)):  # row by row the same tokens as a full pass has
        assert cache.lengths[i].item() == start
    continued = torch.stack([tokens[i, n : n + 6] for i, n in enumerate((9, 4, 1))])
    parts = [model(part, cache=cache) for part in (continued[:, :1], continued[:, 1:4], continued[:, 4:])]
    for i, n in enumerate((9, 4, 1)):
        torch.testing.assert_close(torch.cat(parts, 1)[i], full[i, n : n + 6], atol=1e-10, rtol=0)


def test_in_float64_completions_are_those_of_the_cpu():
    config = SamplingConfig(max_tokens=40, n_samples=2, top_k=50, top_p=0.9, seed=4, stop=["5"])
    here = model_in(torch.float64)
    gpu = generate(here, ByteTokenizer(), PROMPTS, config, batch_size=3)
    cpu = generate(here.cpu(), ByteTokenizer(), PROMPTS, config)
    assert [[c.ids for c in samples] for samples in gpu] == [[c.ids for c in samples] for samples in cpu]


def test_bf16_generates_as_many_tokens_as_asked_for():
    config = SamplingConfig(max_tokens=30, n_samples=4, stop_at_eos=False)
    results = generate(model_in(torch.bfloat16), ByteTokenizer(), PROMPTS, config, batch_size=7)
    assert {len(c.ids) for samples in results for c in samples} == {30}
    assert all(p <= 0 for samples in results for c in samples for p in c.logprobs)
