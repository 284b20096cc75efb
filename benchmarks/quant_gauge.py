"""What the gauge is worth: tensor-train cores rounded to few bits, by plain rounding, learned gauge, least squares.

Without data of one's own: scikit-learn's digits. With `--data DIR` Fashion-MNIST (DIR/*.parquet, as on the hub).
Prints relative errors of the product for TT-SVD factors of a trained dense layer and for trained TT layers, the
accuracy after rounding, and with `--qat EPOCHS` the accuracy after quantization-aware training from each start and
that of floats trained on as long, at the end with means over seeds. Every learning rate is tried from every start; a
tenth of the training set chooses among them, and the test set scores what was chosen besides each of them.
`--model lenet5` trains TT convolutions too.

    python benchmarks/quant_gauge.py
    python benchmarks/quant_gauge.py --data data/fashion_mnist --epochs 12 --bits 2 --qat 2 --seed 0 1 2
    python benchmarks/quant_gauge.py --data data/fashion_mnist --epochs 12 --bits 2 --qat 2 --seed 0 1 2 --model lenet5
"""

import argparse
import copy
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from compresskd.quant.cores import CORE_METHODS, quantize_cores
from compresskd.quant.prepare import QuantSpec, prepare
from compresskd.tt.decompose.tt_svd import tt_svd
from compresskd.tt.layers.conv import TTConv2d
from compresskd.tt.layers.linear import TTLinear


class Sets(NamedTuple):
    """Images [N, pixels] and labels [N] of the three splits."""

    x: Tensor
    y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Score(NamedTuple):
    """Accuracies of one trained network."""

    validation: float
    test: float


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of Fashion-MNIST or MNIST parquet files; default: digits"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2, 8])
    parser.add_argument("--model", choices=["mlp", "lenet5"], default="mlp", help="lenet5 needs --data")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=None, help="of float training (digits 40, else 4)")
    parser.add_argument(
        "--qat", type=int, default=0, help="epochs of quantization-aware training from each start"
    )
    parser.add_argument("--qat-lr", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3])
    parser.add_argument(
        "--covariance", action="store_true", help="weigh the error by the inputs' second moments"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = _digits() if args.data is None else _images(args.data)
    epochs = args.epochs or (40 if args.data is None else 4)
    trained: dict[str, list[dict[float, Score]]] = {}
    for seed in args.seed:
        print(f"\nseed {seed}")
        torch.manual_seed(seed)
        if args.model == "mlp":
            _dense_layer(sets, epochs, args)
        network = _lenet5(args.rank) if args.model == "lenet5" else _mlp(sets.x.shape[1], args.rank)
        _train(network, sets, epochs, 1e-3)
        print(f"trained TT layers, float accuracy {_score(network, sets).test:.2%}")
        rounded = _table(_trains(network), args.bits, _inputs_of(network, sets.x) if args.covariance else {})
        for name, scores in _accuracies(network, rounded, sets, args).items():
            trained.setdefault(name, []).append(scores)
    if args.qat and len(args.seed) > 1:
        for rate in args.qat_lr:
            _summary(
                f"learning rate {rate:g}",
                {n: [s[rate].test for s in each] for n, each in trained.items()},
            )
        _summary(
            "each with the learning rate that validation chose",
            {n: [max(s.values(), key=_validation).test for s in each] for n, each in trained.items()},
        )


def _dense_layer(sets: Sets, epochs: int, args: argparse.Namespace) -> None:
    """Train a dense network and print the errors for the factors of its first layer."""
    dense = _mlp(sets.x.shape[1], None)
    _train(dense, sets, epochs, 1e-3)
    modes = _modes(sets.x.shape[1])
    factors = tt_svd(dense[0].weight.detach(), *modes, ranks=[args.rank] * (len(modes[0]) - 1)).cores
    covariance = _second_moments(sets.x) if args.covariance else None
    print(
        f"TT-SVD factors of a trained dense layer, accuracy of the dense network {_score(dense, sets).test:.2%}"
    )
    _table({"layer 0": factors}, args.bits, {"layer 0": covariance})


def _table(
    trains: dict[str, list[Tensor]], bits: Sequence[int], covariances: dict[str, Tensor | None]
) -> dict:
    """Print relative errors; return the quantized cores by (bits, method, layer)."""
    results = {}
    for number in bits:
        for name, cores in trains.items():
            start = time.perf_counter()
            for method in CORE_METHODS:
                results[number, method, name] = quantize_cores(
                    cores, number, method=method, input_covariance=covariances.get(name)
                )
            nearest, *better = (results[number, m, name].errors[m] for m in CORE_METHODS)
            row = "".join(
                f"  {m} {e:.4f} ({e / nearest:.2f})" for m, e in zip(CORE_METHODS[1:], better, strict=True)
            )
            print(f"  {number} bits {name}: nearest {nearest:.4f}{row}  {time.perf_counter() - start:.1f} s")
    return results


def _accuracies(
    network: nn.Sequential, rounded: dict, sets: Sets, args: argparse.Namespace
) -> dict[str, dict[float, Score]]:
    """Print test accuracies after rounding and, if asked for, after training; return the latter by learning rate."""
    trained: dict[str, dict[float, Score]] = {}
    state = torch.get_rng_state()

    def train(name: str, start: Callable[[], nn.Module]) -> None:
        for rate in args.qat_lr if args.qat else []:
            torch.set_rng_state(state)  # the same batches from each start, and for the floats
            model = start()
            _train(model, sets, args.qat, rate)
            score = _score(model, sets)
            trained.setdefault(name, {})[rate] = score
            print(
                f"    trained at {rate:g}: validation {score.validation:.2%}, test {score.test:.2%}",
                flush=True,
            )

    print(f"  float: {_score(network, sets).test:.2%}", flush=True)
    train("float", lambda: copy.deepcopy(network))
    for number in args.bits:
        for method in CORE_METHODS:
            layers = {name: result for (b, m, name), result in rounded.items() if (b, m) == (number, method)}
            model = copy.deepcopy(network)
            for name, result in layers.items():
                _load(model, name, [tensor.dequantize() for tensor in result.tensors])
            print(f"  {number} bits {method}: {_score(model, sets).test:.2%}", flush=True)
            train(f"{number} bits {method}", partial(_quantized, network, layers, number))
    return trained


def _quantized(network: nn.Sequential, layers: dict, bits: int) -> nn.Module:
    """The network ready for quantization-aware training of its tensor trains, from these rounded cores."""
    model = copy.deepcopy(network)
    for name, result in layers.items():
        _load(model, name, result.cores)
    start = {f"{n}.cores.{k}": t for n, r in layers.items() for k, t in enumerate(r.tensors)}
    prepare(model, QuantSpec(bits=bits, layers={str(len(model) - 1): 0}), start=start)
    return model


def _validation(score: Score) -> float:
    """What alone may choose: of equals the first stays, whatever they have on the test set."""
    return score.validation


def _summary(title: str, trained: dict[str, list[float]]) -> None:
    """Mean and deviation over seeds of every accuracy, and paired differences."""
    print(f"\nafter training, over seeds, {title}")
    for name, accuracies in trained.items():
        values = 100 * torch.tensor(accuracies)
        line = f"  {name}: {float(values.mean()):.2f} +- {float(values.std()):.2f}"
        for other in ("float", f"{name.split(' ')[0]} bits nearest"):
            if other in trained and other != name:
                gains = values - 100 * torch.tensor(trained[other])
                line += f"; against {other} {float(gains.mean()):+.2f} +- {float(gains.std()):.2f}"
        print(line)


def _mlp(width: int, rank: int | None) -> nn.Sequential:
    if rank is None:
        return nn.Sequential(
            nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    first, second = TTLinear(*_modes(width), rank), TTLinear([4, 8, 8], [8, 8, 4], rank)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(256, 10))


def _lenet5(rank: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        TTConv2d(1, 20, [(5, 5), (1, 1)], rank),
        nn.MaxPool2d(2),
        nn.ReLU(),
        TTConv2d(20, 50, [(1, 1), (5, 1), (1, 5), (1, 1)], rank),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        TTLinear([10, 5, 4, 4], [2, 5, 5, 10], rank),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def _modes(width: int) -> tuple[list[int], list[int]]:
    """Input and output modes of a layer of 256 outputs."""
    return {784: [4, 7, 28], 64: [4, 4, 4]}[width], [8, 8, 4]


def _train(model: nn.Module, sets: Sets, epochs: int, lr: float) -> None:
    x, y = sets.x, sets.y
    steps = epochs * (len(x) // 128)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * lr, total_steps=steps + 1)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // 128 * 128].view(-1, 128):
            with parametrize.cached():
                loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def _score(model: nn.Module, sets: Sets) -> Score:
    def accuracy(x: Tensor, y: Tensor) -> float:
        right = sum((model(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum() for i in range(0, len(x), 500))
        return float(right) / len(x)

    return Score(accuracy(sets.validation_x, sets.validation_y), accuracy(sets.test_x, sets.test_y))


def _trains(model: nn.Sequential) -> dict[str, list[Tensor]]:
    return {n: [c.detach() for c in m.cores] for n, m in model.named_children() if hasattr(m, "cores")}


def _load(model: nn.Sequential, name: str, cores: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, core in zip(model.get_submodule(name).cores, cores, strict=True):
            parameter.copy_(core)


@torch.no_grad()
def _inputs_of(model: nn.Sequential, x: Tensor) -> dict[str, Tensor | None]:
    result, x = {}, x[:2048]
    for name, layer in model.named_children():
        if isinstance(layer, TTLinear):  # of a convolution it would be that of patches
            result[name] = _second_moments(x)
        x = layer(x)
    return result


def _second_moments(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def _digits() -> Sets:
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = (images.float() / 16 - 0.3)[order], labels.long()[order]
    return _cut(x[:1400], y[:1400], x[1400:], y[1400:])


def _images(folder: Path) -> Sets:
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    parts = []
    for split in ("train", "test"):
        (path,) = sorted(folder.glob(f"{split}-*.parquet"))
        rows = pq.read_table(path).to_pydict()
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in rows["image"]])
        parts.append(torch.from_numpy(pixels).float().flatten(1) / 255 - 0.3)
        parts.append(torch.tensor(rows["label"]))
    return _cut(*parts)


def _cut(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Sets:
    """A tenth of the training set, drawn with a fixed seed, becomes the validation split."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, kept = order[: len(x) // 10], order[len(x) // 10 :]
    return Sets(x[kept], y[kept], x[held], y[held], test_x, test_y)


if __name__ == "__main__":
    main()
