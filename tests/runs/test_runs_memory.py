"""Memory of a whole run: so many times the model, whatever the model's size."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from compresskd.models.build import build

HIDDEN = [512] * 11  # a decomposition of one layer takes several times that layer


class Counting(TorchDispatchMode):
    """Notes the most bytes that the tensors which operators take and return have together."""

    def __init__(self):
        super().__init__()
        self.held, self.taken, self.peak = {}, 0, 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # to skip it would load torch's compiler

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.layout == torch.strided:
                self.note(leaf.untyped_storage())
        return out

    def note(self, storage):
        key = storage._cdata
        known = self.held.get(key)
        if known is not None and not known[0].expired():
            return
        self.taken += storage.nbytes() - (0 if known is None else known[1])
        self.held[key] = StorageWeakRef(storage), storage.nbytes()
        if self.taken > self.peak:
            self.held = {key: each for key, each in self.held.items() if not each[0].expired()}
            self.taken = sum(size for _, size in self.held.values())
            self.peak = max(self.peak, self.taken)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of an MLP of 10.7 MB for digits, and its bytes."""
    path = tmp_path_factory.mktemp("weights") / "teacher.pt"
    options = {"hidden": HIDDEN, "num_classes": 10, "input_shape": [1, 8, 8]}
    model = build("compresskd.models.mlp.MLP", options, seed=0)
    torch.save(model.state_dict(), path)
    return path, sum(p.numel() * 4 for p in model.parameters())


@pytest.mark.slow
def test_compress_takes_three_times_the_model(weights, run_cli):
    path, size = weights
    command = (
        "strategy=compress", "rank=16", "compress.whitening=none", "teacher=mlp", f"teacher.weights={path}",
        f"teacher.hidden={HIDDEN}", "epochs=0", "measure.latency=false", "hydra.run.dir=run",
    )  # fmt: skip
    with Counting() as counted:
        assert run_cli(*command).status == 0
    assert size < counted.peak <= 3 * size
