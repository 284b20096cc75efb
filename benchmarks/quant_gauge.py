"""What the gauge is worth: tensor-train cores rounded to few bits, by plain rounding, learned gauge, least squares.

Without data of one's own: scikit-learn's digits. With `--data DIR` Fashion-MNIST (DIR/*.parquet, as on the hub).
Prints relative errors of the product for TT-SVD factors of a trained dense layer and for trained TT layers, the
accuracy after rounding, and with `--qat EPOCHS` the accuracy after quantization-aware training from each start.

    python benchmarks/quant_gauge.py
    python benchmarks/quant_gauge.py --data data/fashion_mnist --epochs 5 --bits 2 --qat 2 --seed 0 1 2
"""

import argparse
import copy
import io
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from compresskd.quant.cores import CORE_METHODS, quantize_cores
from compresskd.quant.prepare import QuantSpec, prepare
from compresskd.tt.linear import TTLinear

Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of Fashion-MNIST or MNIST parquet files; default: digits"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2, 8])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=None, help="of float training (digits 40, else 4)")
    parser.add_argument(
        "--qat", type=int, default=0, help="epochs of quantization-aware training from each start"
    )
    parser.add_argument("--qat-lr", type=float, default=1e-4, help="a higher one evens out the starts")
    parser.add_argument(
        "--covariance", action="store_true", help="weigh the error by the inputs' second moments"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = _digits() if args.data is None else _images(args.data)
    epochs = args.epochs or (40 if args.data is None else 4)
    for seed in args.seed:
        print(f"\nseed {seed}")
        torch.manual_seed(seed)
        dense = _mlp(sets[0].shape[1], None)
        _train(dense, sets, epochs, 1e-3)
        factors = _tt_svd(dense[0].weight.detach(), *_modes(sets[0].shape[1]), args.rank)
        covariance = _second_moments(sets[0]) if args.covariance else None
        print(
            f"TT-SVD factors of a trained dense layer, accuracy of the dense network {_accuracy(dense, sets):.2%}"
        )
        _table({"layer 0": factors}, args.bits, {"layer 0": covariance})
        network = _mlp(sets[0].shape[1], args.rank)
        _train(network, sets, epochs, 1e-3)
        print(f"trained TT layers, float accuracy {_accuracy(network, sets):.2%}")
        rounded = _table(_trains(network), args.bits, _inputs_of(network, sets[0]) if args.covariance else {})
        _accuracies(network, rounded, sets, args)


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


def _accuracies(network: nn.Sequential, rounded: dict, sets: Sets, args: argparse.Namespace) -> None:
    """Print the accuracy of the network after rounding, and after quantization-aware training if asked for."""
    if args.qat:
        control = copy.deepcopy(network)
        _train(control, sets, args.qat, args.qat_lr)
        print(f"  float, trained {args.qat} epochs more: {_accuracy(control, sets):.2%}")
    for number in args.bits:
        for method in CORE_METHODS:
            model = copy.deepcopy(network)
            layers = {name: result for (b, m, name), result in rounded.items() if (b, m) == (number, method)}
            for name, result in layers.items():
                _load(model, name, [tensor.dequantize() for tensor in result.tensors])
            line = f"  {number} bits {method}: accuracy {_accuracy(model, sets):.2%}"
            if args.qat:
                for name, result in layers.items():
                    _load(model, name, result.cores)
                start = {f"{n}.cores.{k}": t for n, r in layers.items() for k, t in enumerate(r.tensors)}
                spec = QuantSpec(bits=number, layers={str(len(model) - 1): 0})
                prepare(model, spec, start=start)
                _train(model, sets, args.qat, args.qat_lr)
                line += f", after {args.qat} epochs of training {_accuracy(model, sets):.2%}"
            print(line)


def _mlp(width: int, rank: int | None) -> nn.Sequential:
    if rank is None:
        return nn.Sequential(
            nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    first, second = TTLinear(*_modes(width), rank), TTLinear([4, 8, 8], [8, 8, 4], rank)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(256, 10))


def _modes(width: int) -> tuple[list[int], list[int]]:
    """Input and output modes of a layer of 256 outputs."""
    return {784: [4, 7, 28], 64: [4, 4, 4]}[width], [8, 8, 4]


def _train(model: nn.Module, sets: Sets, epochs: int, lr: float) -> None:
    x, y = sets[:2]
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
def _accuracy(model: nn.Module, sets: Sets) -> float:
    return (model(sets[2]).argmax(1) == sets[3]).float().mean().item()


def _trains(model: nn.Sequential) -> dict[str, list[Tensor]]:
    return {n: [c.detach() for c in m.cores] for n, m in model.named_children() if isinstance(m, TTLinear)}


def _load(model: nn.Sequential, name: str, cores: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, core in zip(model.get_submodule(name).cores, cores, strict=True):
            parameter.copy_(core)


@torch.no_grad()
def _inputs_of(model: nn.Sequential, x: Tensor) -> dict[str, Tensor | None]:
    result, x = {}, x[:2048]
    for name, layer in model.named_children():
        if isinstance(layer, TTLinear):
            result[name] = _second_moments(x)
        x = layer(x)
    return result


def _second_moments(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def _tt_svd(w: Tensor, input_modes: Sequence[int], output_modes: Sequence[int], rank: int) -> list[Tensor]:
    """Cores [r, m, n, r'] of a matrix [M, N]."""
    d = len(input_modes)
    rest = w.reshape(*output_modes, *input_modes).permute([axis for k in range(d) for axis in (k, d + k)])
    cores, left = [], 1
    for m, n in zip(output_modes[:-1], input_modes[:-1], strict=True):
        u, s, v = torch.linalg.svd(rest.reshape(left * m * n, -1), full_matrices=False)
        kept = min(rank, len(s))
        cores.append(u[:, :kept].reshape(left, m, n, kept))
        rest, left = s[:kept, None] * v[:kept], kept
    return [*cores, rest.reshape(left, output_modes[-1], input_modes[-1], 1)]


def _digits() -> Sets:
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = (images.float() / 16 - 0.3)[order], labels.long()[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


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
    return parts[0], parts[1], parts[2], parts[3]


if __name__ == "__main__":
    main()
