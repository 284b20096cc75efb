"""Quantization-aware training of a trained ResNet-20 on CIFAR-10 against float training that goes on as long.

Paired: every variant starts from the same weights and sees the same samples in the same order with the same
augmentation, learning rate and number of steps; the last weights are scored. Differences are in points of test
accuracy, with the standard error of a difference of paired predictions. With --distill the loss is that of a run,
soft targets of the network that all start from beside the labels. --batch-norm says what becomes of the statistics:
keep renews them to the end, freeze normalizes by the running ones in the last quarter, reestimate keeps and then finds
them anew over 2,048 training samples.

    python benchmarks/qat_resnet20.py --data data/cifar10 --weights resnet20.safetensors --epochs 1 --seed 0 1 2
    python benchmarks/qat_resnet20.py ... --samples 12800       # an epoch is a part of the training set
    python benchmarks/qat_resnet20.py ... --distill --batch-norm keep freeze reestimate --bits 4 3
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
from loop_overhead import configured
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from compresskd.compression.norm_statistics import norms_of, reestimate
from compresskd.data import Data
from compresskd.data.draw import draw
from compresskd.kd.logits import SoftTargets
from compresskd.models.resnet import ResNet
from compresskd.models.weights import load_weights
from compresskd.quant.prepare import QuantSpec, freeze, prepare
from compresskd.tasks import Batch, ModelOutputs
from compresskd.training.parameters import parameter_groups

WAYS = ("keep", "freeze", "reestimate")


def main() -> None:
    """Print one line a run, then the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 parquet files")
    parser.add_argument("--weights", type=Path, required=True, help="of a ResNet-20")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], help="besides float")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=None, help="in an epoch; default: all")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--distill", action="store_true", help="from the network before")
    parser.add_argument("--batch-norm", choices=WAYS, nargs="+", default=["keep"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = configured("cifar10", [f"data.path={args.data.resolve()}"])
    start = _resnet20(args.weights)
    print(f"start: {_correct(start, data).mean():.2%}", flush=True)
    variants = list(itertools.product(args.bits, args.batch_norm))
    differences: dict[tuple[int, str], list[Tensor]] = {variant: [] for variant in variants}
    for seed in args.seed:
        control = _trained(args, data, seed, None, "keep")
        for variant in variants:
            differences[variant].append(_trained(args, data, seed, *variant) - control)
    for (bits, way), each in differences.items():
        points = torch.stack([100 * difference.mean() for difference in each])
        error = 100 * float(torch.stack(each).mean(0).std()) / math.sqrt(len(each[0]))
        print(
            f"{bits} bits, {way} - float: {float(points.mean()):+.2f} points (standard error {error:.2f}; "
            f"by seed {', '.join(f'{float(p):+.2f}' for p in points)})"
        )


def _trained(args: argparse.Namespace, data: Data, seed: int, bits: int | None, batch_norm: str) -> Tensor:
    """Which test samples a network gets right after training: [N] of 0 and 1."""
    model = _resnet20(args.weights)
    teacher = _resnet20(args.weights).eval() if args.distill else None
    if bits is not None:
        prepare(model, QuantSpec(bits=bits))
    steps = data.train.num_batches(args.batch_size)
    if args.samples is not None:
        steps = min(steps, args.samples // args.batch_size)
    total, began = args.epochs * steps, time.process_time()
    optimizer = torch.optim.SGD(
        parameter_groups([model]), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    done, largest = 0, 0.0
    for epoch in range(args.epochs):
        model.train()
        for step, batch in enumerate(data.train.batches(args.batch_size, epoch=epoch, seed=seed)):
            if step == steps:
                break
            if bits is not None and done == round(0.75 * total):
                freeze(model)
                if batch_norm == "freeze":
                    for norm in norms_of(model):
                        norm.eval()
            with parametrize.cached():
                loss = _loss(model, teacher, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            largest = max(largest, loss.item())
    seconds = time.process_time() - began
    if batch_norm == "reestimate":
        reestimate(model, draw(data.train, 2048, seed=seed), batch_size=args.batch_size)
    correct = _correct(model, data)
    name = "float" if bits is None else f"{bits} bits, {batch_norm}"
    print(
        f"seed {seed} {name}: {correct.mean():.2%}, {seconds:.0f} s, largest loss {largest:.2f}", flush=True
    )
    return correct


def _loss(model: nn.Module, teacher: nn.Module | None, batch: Batch) -> Tensor:
    """Cross-entropy, beside soft targets at temperature 4 with weight 0.7 where there is a teacher."""
    images = _channels_last(batch.inputs)
    logits = model(images)
    loss = F.cross_entropy(logits, batch.targets)
    if teacher is None:
        return loss
    with torch.no_grad():
        said = ModelOutputs(teacher(images))
    return 0.3 * loss + 0.7 * SoftTargets()(ModelOutputs(logits), said, batch.targets)


@torch.no_grad()
def _correct(model: nn.Module, data: Data) -> Tensor:
    model.eval()
    right = [model(_channels_last(b.inputs)).argmax(1) == b.targets for b in data.test.batches(256)]
    return torch.cat(right).float()


def _resnet20(weights: Path) -> nn.Module:
    model = ResNet(depth=20, num_classes=10, input_shape=[3, 32, 32])
    load_weights(model, weights)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
