"""Topologies, and how long their links take."""

import os

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.core.gpu_memory import GPU_MEMORY_SHARE, claim_gpu_memory
from memocr_jax.plan.chips import CHIPS, GIB, parse_topology
from memocr_jax.plan.devices import TARGETS


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v9:2x2", ("'v9'", "not known")),
        ("v5e:4", ("v5e has 2 sides", "v5e:16x16")),
        ("v5p", ("v5p:4x4x4",)),
        ("h100:2x2x2", ("nodes x GPUs",)),
    ],
)
def test_topologies_that_mean_nothing(topology, words):
    with pytest.raises(UserError) as error:
        parse_topology(topology)
    assert all(word in str(error.value) for word in words)


def test_topologies():
    slice_ = parse_topology("v5e:16x16")
    assert (slice_.devices, slice_.per_process, slice_.processes, slice_.within) == (256, 4, 64, 256)
    assert str(slice_.one_host) == "v5e:2x2" and str(parse_topology("v5p:4x4x4").one_host) == "v5p:2x2x1"
    nodes = parse_topology("h100:8x8")
    assert (nodes.devices, nodes.per_process, nodes.processes, nodes.within) == (64, 8, 8, 8)
    assert str(nodes.one_host) == str(parse_topology("h100:8")) == "h100:1x8"


def test_between_nodes_the_network_is_slower_than_the_links_within():
    nodes = parse_topology("h100:8x8")
    within, across = (nodes.collective_s("all-gather", 1e9, 8, count) for count in (1, 8))
    assert across > 8 * within  # 8 devices, each on a node of its own
    # All eight of a node send at once, each over its own network card.
    everywhere = nodes.collective_s("all-gather", 1e9, 64, 8)
    assert within < everywhere < 1.2 * within + 1e-3


def test_every_gpu_can_be_compiled_for():
    gpus = {name for name, chip in CHIPS.items() if chip.kind.startswith("NVIDIA")}
    assert gpus == set(TARGETS) == {"a100", "h100", "h200", "b200"}
    assert all(CHIPS[name].flops_s > 3e14 for name in gpus)


def test_plans_count_with_the_memory_that_commands_ask_for(monkeypatch):
    assert CHIPS["h100"].hbm_bytes == GPU_MEMORY_SHARE * 79.1 * GIB
    environment = {}
    monkeypatch.setattr(os, "environ", environment)
    claim_gpu_memory()
    assert environment == {"XLA_CLIENT_MEM_FRACTION": str(GPU_MEMORY_SHARE)}
    # JAX refuses both names at once: who set the old one keeps it.
    environment.clear()
    environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.5"
    claim_gpu_memory()
    assert list(environment) == ["XLA_PYTHON_CLIENT_MEM_FRACTION"]
