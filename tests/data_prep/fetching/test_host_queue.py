from collections import Counter

import pytest

from data_prep.fetching.host_queue import HostQueue, Task


@pytest.fixture
def make():
    made = []

    def make(requests_per_second=0.0, host_concurrency=10**6):
        made.append(HostQueue(requests_per_second, host_concurrency))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


def tasks(host, count):
    return [Task(host, f"{host}/{n}", f"{host}/{n}") for n in range(count)]


def test_tasks_of_a_host_come_in_their_order_and_all_come(make):
    queue = make()
    queue.add(tasks("a", 3))
    queue.add(tasks("b", 2))
    assert len(queue) == 5
    taken = []
    while task := queue.take(0.0):
        taken.append(task)
    assert sorted(task.asked for task in taken) == ["a/0", "a/1", "a/2", "b/0", "b/1"]
    assert [task for task in taken if task.host == "a"] == tasks("a", 3)
    assert (len(queue), queue.next_due()) == (0, None)


def test_a_host_is_asked_at_its_rate_and_keeps_no_other_waiting(make):
    queue = make(requests_per_second=2.0)
    queue.add([*tasks("a", 3), *tasks("b", 2)])
    starts = []
    for tenth in range(21):
        while task := queue.take(tenth / 10):
            starts.append((tenth / 10, task.asked))
            queue.release(task.host)
    assert sorted(starts) == [(0.0, "a/0"), (0.0, "b/0"), (0.5, "a/1"), (0.5, "b/1"), (1.0, "a/2")]


def test_a_pause_gives_no_burst(make):
    queue = make(requests_per_second=1.0)
    queue.add(tasks("a", 4))
    assert queue.take(0.0)
    assert queue.take(100.0)
    assert queue.take(100.5) is None
    assert queue.next_due() == 101.0


def test_only_so_many_run_at_one_host(make):
    queue = make(host_concurrency=2)
    queue.add([*tasks("a", 4), *tasks("b", 1)])
    running = [queue.take(0.0) for _ in range(4)]
    assert Counter(task.host for task in running if task) == {"a": 2, "b": 1}
    assert queue.next_due() is None
    queue.release("a")
    assert queue.take(0.0) == tasks("a", 3)[2]


def test_a_host_that_asked_to_be_left_alone_is_and_the_others_are_not(make):
    queue = make()
    queue.add([*tasks("a", 2), *tasks("b", 2)])
    first = queue.take(0.0)
    assert first
    queue.release(first.host, not_before=60.0)
    others = [queue.take(1.0), queue.take(1.0), queue.take(59.9)]
    assert [task.host for task in others if task] == [{"a": "b", "b": "a"}[first.host]] * 2
    assert queue.next_due() == 60.0
    assert queue.take(60.0) == Task(first.host, f"{first.host}/1", f"{first.host}/1")


def test_the_longest_wait_that_a_host_asked_for_counts(make):
    queue = make()
    queue.add(tasks("a", 4))
    queue.take(0.0)
    queue.take(0.0)
    queue.release("a", not_before=60.0)
    queue.release("a", not_before=5.0)
    assert queue.next_due() == 60.0


def test_a_task_that_is_to_wait_lets_the_rest_of_its_host_pass(make):
    queue = make()
    queue.add([Task("a", "late", "late", attempts=1)], ready=30.0)
    queue.add(tasks("a", 1))
    assert queue.take(0.0) == tasks("a", 1)[0]
    assert queue.take(29.9) is None
    assert queue.next_due() == 30.0
    assert queue.take(30.0) == Task("a", "late", "late", attempts=1)


def test_the_host_that_waited_longest_is_next(make):
    queue = make(requests_per_second=1.0)
    queue.add(tasks("a", 100))
    queue.add(tasks("b", 1), ready=4.0)
    assert queue.take(2.0) == tasks("a", 1)[0]
    assert queue.take(10.0) == tasks("a", 2)[1]  # due since 3.0, b since 4.0
    assert queue.take(10.0) == tasks("b", 1)[0]


def test_many_hosts_are_all_served(make):
    queue = make(requests_per_second=1.0, host_concurrency=1)
    for host in range(2000):
        queue.add(tasks(f"host{host}", 2))
    served = Counter()
    for now in (0.0, 1.0):
        while task := queue.take(now):
            served[task.host] += 1
            queue.release(task.host)
    assert set(served.values()) == {2}
    assert len(served) == 2000
