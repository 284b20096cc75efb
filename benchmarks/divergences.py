"""What a divergence of logits costs: python benchmarks/divergences.py [--rounds 7] [--threads 1].

Value and gradient by the student's logits at temperature 4, of `kd=soft_targets`, `reverse_kl` and `jensen_shannon`
beside what is usually written: `F.kl_div` of two `log_softmax` (for Jensen and Shannon's, of the logarithm of the
mixture). They take turns in one process; printed are medians in milliseconds, how many times as fast ours is, the
bytes that the graph keeps beside the two logits, in bytes of the student's logits, and the relative error of either
gradient to that in float64, at T 4 and at T 1000.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskd.engine.environment import keep_freed_memory
from compresskd.kd.logits import JensenShannon, ReverseKL, SoftTargets
from compresskd.tasks import ModelOutputs

Loss = Callable[[Tensor, Tensor, float], Tensor]
SHAPES = ((128, 10), (128, 100), (64, 1000), (32, 30522), (256, 49152))


def ours(kind: type) -> Loss:
    """A term of the package."""

    terms = {temperature: kind(temperature=temperature) for temperature in (4.0, 1000.0)}
    targets = torch.zeros(1, dtype=torch.int64)  # it asks for none

    def loss(s: Tensor, t: Tensor, temperature: float) -> Tensor:
        return terms[temperature](ModelOutputs(s), ModelOutputs(t), targets)

    return loss


def soft_targets(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """As distillation scripts have it."""
    log_p, log_q = (F.log_softmax(x / temperature, dim=-1) for x in (s, t))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def reverse_kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """The other way round."""
    return soft_targets(t, s, temperature)


def jensen_shannon(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """To the mixture of both, half and half."""
    logs = [F.log_softmax(x / temperature, dim=-1) for x in (s, t)]
    mixture = torch.logaddexp(*logs) - math.log(2)
    parts = [F.kl_div(mixture, each, reduction="batchmean", log_target=True) for each in logs]
    return (parts[0] + parts[1]) / 2 * temperature**2


PAIRS: dict[str, tuple[Loss, Loss]] = {
    "soft_targets": (ours(SoftTargets), soft_targets),
    "reverse_kl": (ours(ReverseKL), reverse_kl),
    "jensen_shannon": (ours(JensenShannon), jensen_shannon),
}


def gradient(loss: Loss, s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """By the student's logits."""
    s = s.detach().requires_grad_()
    return torch.autograd.grad(loss(s, t, temperature), s)[0]


def milliseconds(loss: Loss, s: Tensor, t: Tensor) -> float:
    """Of value and gradient, repeated where it is short."""
    count = max(1, 200_000 // s.numel())
    start = time.perf_counter()
    for _ in range(count):
        gradient(loss, s, t, 4.0)
    return 1e3 * (time.perf_counter() - start) / count


def kept(loss: Loss, s: Tensor, t: Tensor) -> float:
    """Bytes that the graph keeps beside both logits, over those of one."""
    s = s.detach().requires_grad_()
    found = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: found.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
    ):
        loss(s, t, 4.0)
    own = {s.untyped_storage().data_ptr(), t.untyped_storage().data_ptr()}
    return sum(x.untyped_storage().nbytes() for place, x in found.items() if place not in own) / s.nbytes


def error(loss: Loss, exact: Loss, s: Tensor, t: Tensor, temperature: float) -> float:
    """Relative, of the gradient."""
    wanted = gradient(exact, s.double(), t.double(), temperature)
    return float((gradient(loss, s, t, temperature) - wanted).norm() / wanted.norm())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    print(
        "| term | logits | ours, ms | usual, ms | times as fast | kept, ours / usual | error at T 4 | at T 1000 |"
    )
    print("|---" * 8 + "|")
    for rows, classes in SHAPES:
        generator = torch.Generator().manual_seed(0)
        t = 3 * torch.randn(rows, classes, generator=generator)
        s = t + torch.randn(rows, classes, generator=generator)
        for name, (own, usual) in PAIRS.items():
            times: dict[str, list[float]] = {"own": [], "usual": []}
            for _ in range(options.rounds + 1):
                times["own"].append(milliseconds(own, s, t))
                times["usual"].append(milliseconds(usual, s, t))
            own_ms, usual_ms = (statistics.median(each[1:]) for each in times.values())
            errors = [
                " / ".join(f"{error(loss, usual, s, t, temperature):.0e}" for loss in (own, usual))
                for temperature in (4.0, 1000.0)
            ]
            print(
                f"| {name} | {rows} x {classes:,} | {own_ms:.3g} | {usual_ms:.3g} | {usual_ms / own_ms:.2f} | "
                f"{kept(own, s, t):.2f} / {kept(usual, s, t):.2f} | {errors[0]} | {errors[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
