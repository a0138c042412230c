"""Positions in batches of unequal prompts, with and without a cache: a generation is the full recomputation."""

import pytest
import torch

from tests.unit.interp.interventions.models import CONFIG, V, tiny, tokens
from topklm.errors import ConfigError
from topklm.generate import SamplingConfig, generate
from topklm.generate import loop as generation
from topklm.interp.interventions import Intervention, intervene
from topklm.model import KVCache

PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 7], [1, 8, 2, 8], [2, 7]]


def reread(model, completion, make):
    """ln p of the completion's tokens by one full forward pass of the row alone, intervened on as `make` says."""
    n = len(completion.prompt_ids)
    ids = torch.tensor([completion.prompt_ids + completion.ids])
    with intervene(model, [make(n, ids.shape[1])]), torch.no_grad():
        log_p = model(ids).log_softmax(-1)[0]
    return [float(log_p[n - 1 + i, token]) for i, token in enumerate(completion.ids)]


def mask(length, chosen):
    return torch.tensor([[t in chosen for t in range(length)]])


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last", "mask"])
@pytest.mark.parametrize("site", ["pre", "post"])
def test_a_generation_with_a_cache_is_the_full_recomputation(positions, site, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL", 4)  # a prompt in two parts
    model = tiny()
    one = {"layers": [0, 2], "neurons": [1, 5, 7], "site": site, "op": "add", "value": 3.0}
    given = mask(5, {0, 2, 3, 4}) if positions == "mask" else positions
    settings = SamplingConfig(max_tokens=6, temperature=1.0, n_samples=2, seed=1)
    with intervene(model, [Intervention(**one, positions=given)]):
        rows = [c for row in generate(model, None, PROMPTS, settings, batch_size=5) for c in row]

    def make(n, length):
        chosen = {
            "all": set(range(length)), "prompt": set(range(n)), "generated": set(range(n, length)),
            "last": set(range(n - 1, length)), "mask": {0, 2, 3, 4},
        }[positions]  # fmt: skip
        return Intervention(**one, positions=mask(length, chosen))

    plain = [c for row in generate(model, None, PROMPTS, settings, batch_size=5) for c in row]
    assert any(a.ids != b.ids for a, b in zip(rows, plain, strict=True))
    for completion in rows:
        assert completion.logprobs == pytest.approx(reread(model, completion, make), abs=1e-9)


def test_rows_that_end_early_leave_the_positions_of_others_right():
    model = tiny()
    settings = SamplingConfig(max_tokens=40, n_samples=3)  # prompts of other lengths end at the context at other steps
    with intervene(model, [Intervention(layer=1, neurons=[2, 3], site="pre", op="add", value=4.0, positions="prompt")]):
        rows = [c for row in generate(model, None, PROMPTS, settings, batch_size=12, context=14) for c in row]
    assert len({len(c.ids) for c in rows}) > 1

    def make(n, length):
        return Intervention(
            layer=1, neurons=[2, 3], site="pre", op="add", value=4.0, positions=mask(length, set(range(n)))
        )

    for completion in rows:
        assert completion.logprobs == pytest.approx(reread(model, completion, make), abs=1e-9)


def test_the_context_tells_the_prompts_of_a_plain_forward_pass():
    model, ids = tiny(), tokens(3, 7)
    lengths = [2, 7, 4]
    for positions, chosen in (("prompt", lambda t, n: t < n), ("generated", lambda t, n: t >= n),
                              ("last", lambda t, n: t >= n - 1)):  # fmt: skip
        one = {"layer": 1, "neurons": [4], "op": "set", "value": 2.5}
        rows = torch.tensor([[chosen(t, n) for t in range(7)] for n in lengths])
        with intervene(model, [Intervention(**one, positions=rows)]):
            expected = model(ids)
        with intervene(model, [Intervention(**one, positions=positions)], prompt_lengths=lengths):
            assert torch.equal(model(ids), expected)
    with intervene(model, [Intervention(**one, positions=mask(7, {6}))]):
        expected = model(ids)
    with intervene(model, [Intervention(**one, positions="last")]):
        assert torch.equal(model(ids), expected)


def test_positions_that_are_not_known_are_refused_in_the_forward_pass():
    model, ids = tiny(), tokens(3, 7)
    one = {"layer": 1, "neurons": [4], "op": "zero"}
    with intervene(model, [Intervention(**one, positions="generated")]):
        with pytest.raises(ConfigError, match="prompt_lengths"):
            model(ids)
        with pytest.raises(ConfigError, match="prompt_lengths"):
            model(ids, cache=KVCache(CONFIG, 3, 8, device="cpu", dtype=torch.float64))
    prompt, two_rows = (Intervention(**one, positions=p) for p in ("prompt", torch.ones(2, 7, dtype=torch.bool)))
    with intervene(model, [prompt], prompt_lengths=[1, 2]), pytest.raises(ConfigError, match="2 prompt lengths, and 3"):
        model(ids)
    with intervene(model, [two_rows]), pytest.raises(ConfigError, match="2 rows, and a forward pass 3"):
        model(ids)
    with pytest.raises(ConfigError, match="prompt_lengths"), intervene(model, [], prompt_lengths=[-1]):
        pass
    assert int(ids.max()) < V
