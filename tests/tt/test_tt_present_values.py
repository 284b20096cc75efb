"""Evaluation answers for the present values of its cores, by whatever way they came to be."""

import copy
import itertools
import pickle
import threading

import pytest
import torch
from factorized_layers import CASES, quantized
from torch import nn
from torch.func import functional_call

from compresskd.tt import TTConv2d, TTEmbedding, TTLinear, constant_weights
from compresskd.tt import plans as plans_from
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.planner import plans
from compresskd.tt.execution.plans import copied_cores, groups


def step(make):
    def change(layer, x):
        optimizer = make(layer.parameters())
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    return change


def each(change):
    def change_all(layer, x):
        for parameter in layer.parameters():
            change(parameter)

    return change_all


def set_data(parameter):
    parameter.data = parameter.data * 2


def write_by_numpy(parameter):
    parameter.detach().numpy()[...] *= 3


def write_by_dlpack(parameter):
    torch.from_dlpack(parameter.detach()).numpy()[...] *= 3


def write_to_storage(parameter):
    storage = parameter.untyped_storage()
    storage.copy_((torch.frombuffer(bytearray(storage.tolist()), dtype=torch.float32) * 2).untyped_storage())


def write_by_another_alias(layer, x):
    aliases = [parameter.detach() for parameter in layer.parameters()]
    layer(x)
    for alias in aliases:
        alias.data.add_(1)


def assign(layer, x):
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def assign_over_and_over(layer, x):
    for _ in range(20):  # an allocation that was freed comes back at its old address
        assign(layer, x)


def replace_parameters(layer, x):
    for holder in layer.modules():
        for name, parameter in list(holder.named_parameters(recurse=False)):
            delattr(holder, name)
            holder.register_parameter(name, nn.Parameter(torch.randn_like(parameter)))


def resize_storage(parameter):
    values = parameter.detach().clone()
    storage = parameter.untyped_storage()
    size = storage.nbytes()
    if storage.resizable():
        storage.resize_(0)
        storage.resize_(size)
    parameter.data.copy_(values * 2)


def read_elsewise(layer, x):
    for holder in (layer.cores if hasattr(layer, "cores") else layer.factors,):
        for parameter in holder:
            parameter.data = parameter.data.flip(-2).contiguous()


def swap(layer, x):
    other = copy.deepcopy(layer)
    each(lambda p: p.data.mul_(2))(other, x)
    for mine, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        torch.utils.swap_tensors(mine, theirs)


ROUTES = {
    "sgd": step(lambda p: torch.optim.SGD(p, 0.1)),
    "sgd, fused": step(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True)),
    "sgd, foreach": step(lambda p: torch.optim.SGD(p, 0.1, foreach=True)),
    "adam, fused": step(lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    "adamw, fused": step(lambda p: torch.optim.AdamW(p, 0.1, fused=True)),
    "adagrad, fused": step(lambda p: torch.optim.Adagrad(p, 0.1, fused=True)),
    "adam, foreach": step(lambda p: torch.optim.Adam(p, 0.1, foreach=True)),
    "in place": each(lambda p: p.mul_(2)),
    "data in place": each(lambda p: p.data.mul_(2)),
    "data set": each(set_data),
    "data of the next": each(lambda p: setattr(p, "data", torch.randn_like(p))),
    "numpy": each(write_by_numpy),
    "dlpack": each(write_by_dlpack),
    "storage": each(write_to_storage),
    "storage resized": each(resize_storage),
    "alias of before": write_by_another_alias,
    "one element": each(lambda p: p.data.view(-1)[0].add_(1)),
    "sign of zero": each(lambda p: p.data.mul_(0).neg_()),
    "assign": assign,
    "assign over and over": assign_over_and_over,
    "copied by load": lambda layer, x: layer.load_state_dict(
        {k: v * 2 if v.is_floating_point() else v for k, v in layer.state_dict().items()}
    ),
    "replaced": replace_parameters,
    "read elsewise": read_elsewise,
    "swapped": swap,
    "vector_to_parameters": lambda layer, x: nn.utils.vector_to_parameters(
        torch.randn(sum(p.numel() for p in layer.parameters())), layer.parameters()
    ),
    "there and back": lambda layer, x: each(lambda p: p.data.mul_(2))(layer.double().float(), x),
    "shared memory": lambda layer, x: each(lambda p: p.data.mul_(2))(layer.share_memory(), x),
    "half": lambda layer, x: layer.bfloat16().float(),
    "training": lambda layer, x: (
        step(lambda p: torch.optim.Adam(p, 0.1, fused=True))(layer.train(), x) or layer.eval()
    ),
}


MAY_EQUAL = (
    "half",
    "sign of zero",
    "read elsewise",
    "one element",
)  # where an input meets the change by chance


def fresh(layer):
    """A layer that never answered, of the same values."""
    other = copy.deepcopy(layer)
    other.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()})
    return other.eval()


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_seen(route):
    for case, mode in itertools.product(CASES, (torch.no_grad, torch.inference_mode)):
        layer, x = CASES[case].make().eval(), CASES[case].x
        for _ in range(2):
            with mode():
                layer(x)
                before = layer(x).clone()
            with torch.no_grad():
                ROUTES[route](layer, x)
            with mode():
                after = layer(x)
                assert torch.equal(after, fresh(layer)(x)), (case, mode)
                assert not torch.equal(after, before) or route in MAY_EQUAL, (case, mode)


@pytest.mark.parametrize("route", ["data in place", "numpy", "adam, fused", "data set", "assign", "in place"])
@pytest.mark.parametrize("case", CASES)
def test_every_route_is_seen_through_a_parametrization(case, route):
    layer, x = quantized(CASES[case].make()), CASES[case].x
    for _ in range(2):
        with torch.no_grad():
            for _ in range(2):
                layer(x)
            ROUTES[route](layer, x)
            assert torch.equal(layer(x), fresh(layer)(x))


@pytest.mark.parametrize("case", CASES)
def test_a_parametrization_that_is_taken_off_again(case):
    layer, x = CASES[case].make().eval(), CASES[case].x
    with torch.no_grad():
        layer(x)
        holder = layer.cores if hasattr(layer, "cores") else layer.factors
        nn.utils.parametrize.register_parametrization(holder, "0", nn.Softplus())
        layer(x)
        nn.utils.parametrize.remove_parametrizations(holder, "0")  # "0" is now the last of its holder's names
        for _ in range(2):
            assert torch.equal(layer(x), fresh(layer)(x))


@pytest.mark.parametrize("case", CASES)
def test_functional_calls_answer_by_what_they_are_given(case):
    layer, x = CASES[case].make().eval(), CASES[case].x
    own = {k: v.detach().clone() for k, v in layer.state_dict().items()}
    with torch.no_grad():
        expected = layer(x)
        for _ in range(50):  # what is freed after a call comes back at the same address
            given = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in own.items()}
            other = fresh(layer)
            other.load_state_dict(given)
            assert torch.equal(functional_call(layer, given, (x,)), other(x))
            del given
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_copies_and_pickles_go_their_own_way(case):
    layer, x = CASES[case].make().eval(), CASES[case].x
    with torch.no_grad():
        expected = layer(x).clone()
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            each(lambda p: p.data.mul_(2))(other, x)
            assert torch.equal(other(x), fresh(other)(x))
            assert torch.equal(layer(x), expected)
        shallow = copy.copy(layer)
        each(lambda p: p.data.mul_(2))(layer, x)
        assert torch.equal(shallow(x), fresh(layer)(x))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_eight_threads_and_their_replicas_answer_right(case):
    layer, x = CASES[case].make().eval(), CASES[case].x
    layers = [layer, copy.copy(layer), layer]
    for factor in (2.0, 3.0):
        replica = layer._replicate_for_data_parallel()
        for name, holder in layer.named_modules():
            copied = holder._replicate_for_data_parallel() if name else replica
            if name:
                setattr(replica, name, copied)
            for key, parameter in holder._parameters.items():  # as nn.parallel.replicate does
                if parameter is None:
                    copied._parameters[key] = None
                else:
                    setattr(copied, key, parameter.detach() * factor)
        layers.append(replica)
    with torch.no_grad():
        inputs = [x, x[:1]]
        expected = [[model(v).clone() for v in inputs] for model in layers]
    wrong = []

    def work(number):
        with torch.inference_mode(number % 2 == 0), torch.no_grad():
            for k in range(250):
                which, row = (number + k) % len(layers), k % 2
                if not torch.allclose(layers[which](inputs[row]), expected[which][row], atol=1e-5):
                    wrong.append((which, row))
                if k % 50 == 49:
                    layer.clear_prepared() if hasattr(layer, "clear_prepared") else None

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("shapes", [((1, 4, 3, 5), (5, 3, 4, 1)), ((1, 8, 1, 3), (3, 1, 8, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_called_a_view_is_one(shapes, dtype):
    cores = [torch.randn(shape) for shape in [*shapes[:-1], (shapes[0][3], 2, 2, shapes[-1][0]), shapes[-1]]]
    found = set()
    for plan in plans(3, 64, False):
        if plan.kind != "chain":
            continue
        Gs = groups(cores, Chain.of(plan, shapes_of(cores)), dtype)
        places = {G.untyped_storage().data_ptr() for G in Gs}
        copied = {k for k, core in enumerate(cores) if core.untyped_storage().data_ptr() not in places}
        assert copied == copied_cores(cores, plan, dtype)
        found.add(len(copied))
    assert found == ({3} if dtype == torch.float64 else {0, 1, 2} if shapes[0][2] == 1 else {0, 2, 3})


def folded():
    """A layer whose weight is folded, so that a call holds copies of its cores' values."""
    layer, x = TTLinear((8, 8), (8, 8), 60, bias=False).eval(), torch.randn(16, 64)
    assert "folded" in layer.plan(x, training=False)
    return layer, x


def test_weights_that_are_said_to_be_constant_are_compared_once_in_a_block():
    layer, x = folded()
    with torch.no_grad():
        layer(x)
        each(lambda p: p.data.mul_(2))(layer, x)
        with constant_weights():
            before = layer(x).clone()
            assert torch.equal(before, fresh(layer)(x))  # changed before the block: seen by its first call
            each(lambda p: p.data.mul_(2))(layer, x)
            with constant_weights():
                assert torch.equal(layer(x), before)  # against the promise, and so not seen
        assert torch.equal(layer(x), fresh(layer)(x))
        with constant_weights():
            assert not torch.equal(layer(x), before)
            each(lambda p: p.data.mul_(2))(layer, x)
        with constant_weights():  # another block's promise
            assert torch.equal(layer(x), fresh(layer)(x))


@pytest.mark.parametrize("case", CASES)
def test_every_layer_answers_alike_where_weights_are_constant(case):
    layer, x = CASES[case].make().eval(), CASES[case].x
    with torch.no_grad(), plans_from("fixed"):
        expected = layer(x).clone()
        for _ in range(2):
            with constant_weights():
                for _ in range(2):
                    assert torch.equal(layer(x), expected)
            each(lambda p: p.data.mul_(2))(layer, x)
            expected = layer(x).clone()
            assert torch.equal(expected, fresh(layer)(x))


def test_a_promise_is_one_thread_s_own():
    layer, x = folded()
    seen = []

    def other():
        with torch.no_grad():
            seen.append(layer(x).clone())

    with torch.no_grad(), constant_weights():
        before = layer(x).clone()
        each(lambda p: p.data.mul_(2))(layer, x)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert torch.equal(seen[0], fresh(layer)(x))
    assert not torch.equal(seen[0], before)


def shapes_of(cores):
    return tuple(tuple(core.shape) for core in cores)


def test_views_hold_no_memory_and_copies_are_counted():
    layer, x = TTLinear((1, 512), (512, 1), 4).eval(), torch.randn(4, 512)
    with torch.no_grad():
        layer(x)
        assert layer.inference_bytes in (0, 4 * (512 * 512 + 2 * 4 * 512))
        conv = TTConv2d(8, 8, ((1, 1), (3, 3), (1, 1)), 4, padding=1).eval()
        conv(torch.randn(1, 8, 6, 6))
        cores = sum(core.numel() for core in conv.cores)
        kernel, stages = 8 * 8 * 9, sum(core.numel() for core in conv.cores)
        assert conv.inference_bytes in (4 * (kernel + cores), 4 * (stages + cores))  # of what runs, no more
        table = TTEmbedding(30, 16, (5, 6), (4, 4), 3)
        table(torch.arange(3))
        assert table.inference_bytes == 0


def test_what_lies_in_no_one_piece_is_not_kept():
    layer, x = TTLinear((4, 8), (8, 4), 3).eval(), torch.randn(5, 32)
    with torch.no_grad():
        expected = layer(x)
        layer.cores[0].data = layer.cores[0].detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        layer.clear_prepared()
        assert torch.allclose(layer(x), expected, atol=1e-6)
        assert layer.inference_bytes == 0
