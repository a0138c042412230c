"""Where the bytes of a step go. The sizes of the buffers are held against FSDP2's in test_memory.py."""

import pytest

from tests.unit.budget.conftest import cpu_setting
from topklm.budget.network import ADAPTER, REACHED, traffic_of

LINK = 450e9


def traffic(make_config, ranks, replicas=None):
    config = make_config(
        distributed__model_dtype="bf16", distributed__dp_replicate=replicas, data__global_batch_size=4 * ranks
    )
    return cpu_setting(config, ranks), traffic_of(cpu_setting(config, ranks), 8, LINK)


def test_one_node_uses_no_adapter(make_config):
    setting, found = traffic(make_config, 8)
    assert found.between == 0
    assert found.seconds(1) == pytest.approx((found.gathered + found.scattered) / (LINK * REACHED))
    assert setting.micro_batches == 2  # each gathers anew; the gradient is reduced once
    n, head = setting.model.n_params, 2 * 512 * 128 + 128
    assert found.gathered == pytest.approx(2 * 7 / 8 * 2 * (2 * (n - head) + head))
    assert found.scattered == pytest.approx(7 / 8 * 4 * n)


def test_hsdp_sends_shards_of_gradients_between_nodes(make_config):
    _, found = traffic(make_config, 64, replicas=8)
    n = cpu_setting(make_config()).model.n_params
    assert found.between == found.reduced == pytest.approx(2 * 7 / 8 * 4 * n / 8)
    assert found.inside == found.gathered + found.scattered
    assert found.seconds(8) == pytest.approx(found.inside / (LINK * REACHED) + found.between / (ADAPTER * REACHED))


def test_sharding_over_nodes_sends_all_weights_through_the_adapters(make_config):
    _, found = traffic(make_config, 64)
    assert found.reduced == 0
    assert found.between == pytest.approx((found.gathered + found.scattered) / 8)
