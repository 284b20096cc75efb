"""Processes played by threads of one process: the same collectives, without the seconds that a process takes."""

import threading

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch.testing._internal.distributed import multi_threaded_pg

from compresskd.distributed import Group, together


@pytest.fixture
def in_group():
    """`in_group(world, call)`: what `call(group)` returns in each of `world` processes that call it together."""

    def run(world, call):
        results, errors = [None] * world, []
        store = dist.HashStore()

        def process(rank):
            try:
                dist.init_process_group("threaded", rank=rank, world_size=world, store=store)
                with together(Group(rank, world)) as group:
                    results[rank] = call(group)
            except BaseException as error:
                errors.append(error)
                multi_threaded_pg.ProcessLocalGroup.exception_handle(error)
            finally:
                dist.destroy_process_group()

        multi_threaded_pg._install_threaded_pg()
        _distributed_c10d._set_thread_isolation_mode(True)
        try:
            threads = [threading.Thread(target=process, args=(rank,)) for rank in range(world)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert not any(thread.is_alive() for thread in threads)
        finally:
            _distributed_c10d._set_thread_isolation_mode(False)
            multi_threaded_pg._uninstall_threaded_pg()
            multi_threaded_pg.ProcessLocalGroup.reset()
        if errors:
            raise errors[0]
        return results

    torch.manual_seed(0)
    return run
