"""Starting several processes: flags, and what is refused before anything waits. That they meet: test_multi_host.py."""

import argparse
import socket

import pytest

from plip_jax import distributed


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distributed.add_distributed_flags(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def asked(monkeypatch):
    """What jax would have been asked; it is not."""
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def test_one_process_is_not_started(asked):
    distributed.start_from_flags(parse())
    assert asked == []
    assert distributed.is_main_process()


def test_the_cluster_or_the_flags_say_who_is_who(asked):
    distributed.start_from_flags(parse("--distributed"))
    distributed.start_from_flags(parse("--coordinator=node0:1234", "--num-processes=1", "--process-id=0"))
    assert [args for args, _ in asked] == [(None, None, None), ("node0:1234", 1, 0)]
    assert [kwargs["cluster_detection_method"] for _, kwargs in asked] == [None, "deactivate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator=node0:1234", "--process-id=0"], "--num-processes missing"),
        (["--num-processes=2"], "--coordinator, --process-id missing"),
        (["--coordinator=node0", "--num-processes=2", "--process-id=0"], "expected HOST:PORT .* got 'node0'"),
        (["--coordinator=:12", "--num-processes=2", "--process-id=0"], "expected HOST:PORT"),
        (["--coordinator=a:1", "--num-processes=2", "--process-id=2"], "expected 0 <= I < 2, got 2"),
        (["--distributed", "--process-id=0"], "--distributed asks the cluster; leave out --process-id"),
        (["--coordinator=a:1", "--num-processes=2", "--process-id=0"], "have met, and the devices know of 1"),
    ],
)
def test_what_does_not_go_together_is_refused(asked, arguments, message):
    with pytest.raises(distributed.DistributedError, match=message):
        distributed.start_from_flags(parse(*arguments))


def test_a_start_after_the_devices_were_used_is_named():
    import jax

    jax.devices()
    with pytest.raises(distributed.DistributedError, match="must meet before the devices are first used"):
        distributed.start(coordinator="localhost:1", num_processes=1, process_id=0)


def test_no_cluster_here_says_what_to_give(monkeypatch):
    def no_cluster(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", no_cluster)
    with pytest.raises(distributed.DistributedError, match=r"no cluster that jax knows is here .* --coordinator HOST"):
        distributed.start(automatic=True)


def test_no_coordinator_is_said_and_not_waited_for_longer_than_asked(asked):
    with socket.socket() as taken:  # bound and not listening: nobody else's, and refuses
        taken.bind(("localhost", 0))
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(distributed.DistributedError, match=f"no process 0 at {address} within 0 s"):
            distributed.start(coordinator=address, num_processes=2, process_id=1, timeout_seconds=0)
    assert asked == []
