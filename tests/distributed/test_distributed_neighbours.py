"""Small tensors by sockets: told in the order of ranks, and an end that is told."""

import socket
import threading

import pytest
import torch
import torch.distributed as dist

from compresskd.distributed import Group, ProcessLost, neighbours


def in_threads(world, call):
    """What `call(rank, connections)` returns in each of `world` threads that are connected as processes are."""
    store, results, errors = dist.HashStore(), [None] * world, []

    def process(rank):
        try:
            with neighbours.connected(store, rank, world) as near:
                results[rank] = call(rank, near)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("world", [2, 3, 5])
def test_each_has_the_tensors_of_all_in_the_order_of_ranks(world):
    def told(rank, near):
        own = torch.arange(6.0).reshape(2, 3) + 10 * rank
        many = [near.gathered(torch.tensor([rank, number])) for number in range(200)]
        return near.gathered(own.T), near.gathered(own.double()[0]), many

    for turned, row, many in in_threads(world, told):
        base = torch.arange(6.0).reshape(2, 3)
        for rank in range(world):
            torch.testing.assert_close(turned[rank], (base + 10 * rank).T)
            torch.testing.assert_close(row[rank], (base.double() + 10 * rank)[0])
            assert all(each[rank].tolist() == [rank, number] for number, each in enumerate(many))


def test_a_group_has_its_sums_extremes_and_tables_by_them():
    def told(rank, near):
        group = Group(rank, 2, neighbours=near)
        low, high = group.extremes(torch.tensor([float(rank)]), torch.tensor([5.0 - rank]))
        return (
            group.sum(torch.tensor([1, 2 + rank])).tolist(),
            low.item(),
            high.item(),
            group.table(torch.tensor([rank])).tolist(),
        )

    assert in_threads(2, told) == [([2, 5], 0.0, 5.0, [[0], [1]])] * 2


def test_large_tensors_and_those_of_devices_are_left_to_the_backend():
    def takes(rank, near):
        return (
            near.takes(torch.zeros(4096)),
            near.takes(torch.zeros(4097)),
            near.takes(torch.zeros(3, device="meta")),
        )

    assert in_threads(2, takes) == [(True, False, False)] * 2


def test_a_process_that_ends_is_told_to_those_that_wait_for_it():
    def told(rank, near):
        if rank == 1:
            return None
        with pytest.raises(ProcessLost, match="another process of the run has ended"):
            Group(0, 2, neighbours=near).sum(torch.ones(3))
        return True

    assert in_threads(2, told)[0]


def test_processes_out_of_step_are_found_out():
    def told(rank, near):
        with pytest.raises(RuntimeError, match="out of step"):
            near.gathered(torch.ones(3 + rank))
        return True

    assert in_threads(2, told) == [True, True]


@pytest.mark.parametrize("reason", ["machine", "folder", "number", "path"])
def test_without_a_connection_none_has_one(monkeypatch, reason):
    if reason == "machine":
        machines = iter(["here", "here", "there", "there"])
        monkeypatch.setattr(neighbours, "_machine", lambda: next(machines))
    elif reason == "folder":  # as in another container
        monkeypatch.setattr(
            socket.socket, "connect", lambda *_: (_ for _ in ()).throw(FileNotFoundError()), raising=False
        )
    elif reason == "number":
        monkeypatch.setattr(neighbours, "_MOST_PROCESSES", 1)
    else:
        monkeypatch.setattr(
            socket.socket,
            "bind",
            lambda *_: (_ for _ in ()).throw(OSError("AF_UNIX path too long")),
            raising=False,
        )
    assert in_threads(2, lambda _, near: near is None) == [True, True]
