import pytest
import torch
from torch import nn

from compresskd.distributed import ALONE, ProcessLost, active, alone, of_batch, spread
from compresskd.distributed.gradients import Gradients


def test_a_group_of_one_gives_back_what_it_is_given():
    x = torch.randn(3)
    assert ALONE.sum(x) is x
    assert ALONE.rows(x) is x
    assert ALONE.gathered("a") == ["a"]
    assert ALONE.first(lambda: 3) == 3
    assert ALONE.in_order([1, 2]) == [1, 2]
    assert list(ALONE.turns("abc")) == ["a", "b", "c"]
    assert torch.equal(ALONE.shares(x), torch.ones(3))


def test_what_the_processes_tell_each_other(in_group):
    def call(group):
        low, high = group.extremes(torch.tensor(1.0 - group.rank), torch.tensor(float(group.rank)))
        return (
            group.sum(torch.tensor([1.0, group.rank])).tolist(),
            (float(low), float(high)),
            group.first(lambda: f"of {group.rank}"),
            group.in_order([10 * item for item in group.turns(range(5))]),
            group.shares(torch.tensor([group.rank + 1.0])).item(),
        )

    for rank, found in enumerate(in_group(3, call)):
        *alike, share = found
        assert alike == [[3, 3], (-1, 2), "of 0", [0, 10, 20, 30, 40]]
        assert share == pytest.approx((rank + 1) / 6)


def test_rows_of_all_processes_have_the_gradient_of_the_whole(in_group):
    whole = torch.randn(5, 2)
    sizes = [(0, 2), (2, 5)]

    def call(group):
        own = whole[slice(*sizes[group.rank])].clone().requires_grad_()
        rows = group.rows(own)
        (rows.cumsum(0).square().sum() / group.world).backward()
        return rows.detach(), own.grad

    expected = whole.clone().requires_grad_()
    expected.cumsum(0).square().sum().backward()
    found = in_group(2, call)
    assert all(torch.equal(rows, whole) for rows, _ in found)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), expected.grad)


@pytest.mark.parametrize("size", [1, 2**20], ids=["a bucket each", "one bucket"])
def test_gradients_are_added_up_and_missing_ones_stay_missing(in_group, monkeypatch, size):
    monkeypatch.setattr("compresskd.distributed.gradients._BUCKET", size)

    def call(group):
        parameters = [nn.Parameter(torch.zeros(2, 3)) for _ in range(3)]
        with Gradients(parameters, group) as gradients:
            parameters[0].grad = torch.full((2, 3), 1.0 - group.rank)  # of a batch before
            with gradients.last():
                (2 * group.rank * parameters[0] + (parameters[1] if group.rank else 0)).sum().backward()
            values = gradients.add_up(torch.tensor([1.0, group.rank]))
        return values.tolist(), [None if p.grad is None else p.grad.unique().tolist() for p in parameters]

    assert in_group(2, call) == [([2, 1], [[3], [1], None])] * 2


def test_modules_are_those_of_the_first_process(in_group):
    models = [nn.BatchNorm1d(2) for _ in range(2)]
    nn.init.normal_(models[1].weight)

    def call(group):
        group.copy_first([models[group.rank]])
        return models[group.rank].weight.tolist()

    assert in_group(2, call) == [[1, 1]] * 2


def test_modules_of_other_shapes_are_refused(in_group):
    def call(group):
        group.copy_first([nn.Linear(group.rank + 1, 1)])

    with pytest.raises(ValueError, match="different shapes"):
        in_group(2, call)


def test_who_is_active_and_who_shares_a_batch(in_group):
    def call(group):
        found = [active().world, of_batch().world]
        with spread(1, 4):
            found += [of_batch().world, of_batch().part]
        with spread(4, 4):
            found.append(of_batch().world)
        with alone():
            found.append(active().world)
        return found

    assert in_group(2, call) == [[2, 1, 2, 0.25, 1, 1]] * 2
    assert active() is ALONE


def test_a_collective_that_fails_says_who_is_gone(monkeypatch, in_group):
    def fail(*_, **__):
        raise RuntimeError("Connection closed by peer")

    def call(group):
        monkeypatch.setattr(torch.distributed, "all_reduce", fail)
        with pytest.raises(ProcessLost, match="another process of the run has ended"):
            group.sum(torch.zeros(1))

    in_group(2, call)
