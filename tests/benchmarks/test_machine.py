"""The description beside every measurement: JSON, complete, and nothing in it that names this machine."""

import json
import platform

import jax

from benchmarks.machine import describe_machine


def test_the_description_is_complete_and_anonymous(monkeypatch):
    jax.devices()  # XLA reads its flags when it starts, and ends the process over one it does not know
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag=2 --xla_gpu_per_fusion_autotune_cache_dir=/home/someone/cache")
    described = describe_machine()
    assert described["cpu_cores"] >= 1
    assert described["memory_gib"] > 0.1
    assert (described["platform"], described["device_count"]) == ("cpu", 8)  # tests/conftest.py
    assert described["versions"]["jax"] == jax.__version__
    assert described["versions"]["python"] == platform.python_version()
    assert described["xla_flags"] == "--xla_some_flag=2 --xla_gpu_per_fusion_autotune_cache_dir=PATH"
    assert "/" not in json.dumps(described)
    assert platform.node() not in described.values()
