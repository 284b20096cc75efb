"""Factorized 3x3 convolutions at 4x fewer parameters against dense ones, forward, in the better layout of each.

python benchmarks/tt_conv.py [--quick] [--threads 1,2]
"""

import argparse

import torch
from torch import nn
from tt_cases import medians

from compresskd.tt import TTConv2d, factorize

SIZES = ((16, 32), (32, 16), (64, 8), (256, 8))
FORMS = (None, ((1, 1), (3, 3), (1, 1)), ((3, 1), (1, 3)), ((1, 1), (3, 3)), ((3, 3), (1, 1)))


def main() -> None:
    """One line for each size and form: the ratio of medians, above 1 where the factorized layer is faster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        print(f"\nforward, batch {options.batch}, {threads} thread(s)")
        for channels, side in SIZES[:2] if options.quick else SIZES:
            for stages in FORMS[:2] if options.quick else FORMS:
                _line(channels, side, stages, options.batch, 5 if options.quick else 15)


def _line(
    channels: int, side: int, stages: tuple[tuple[int, int], ...] | None, batch: int, rounds: int
) -> None:
    dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval()
    layer = factorize(dense, num_parameters=dense.weight.numel() // 4, modes=stages)
    assert isinstance(layer, TTConv2d)
    dense_last = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side)
    x_last = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        times = medians(
            {
                "dense": lambda: dense(x),
                "dense_last": lambda: dense_last(x_last),
                "ours": lambda: layer(x),
                "ours_last": lambda: layer(x_last),
            },
            rounds,
        )
    ratio = min(times["dense"], times["dense_last"]) / min(times["ours"], times["ours_last"])
    form = "-".join(f"{a}x{b}" for a, b in layer.stages) + ("  (search)" if stages is None else "")
    print(
        f"{channels:4} channels {side:3}x{side:<3} rank {layer.ranks!s:<12} {ratio:6.2f}x  {form}", flush=True
    )


if __name__ == "__main__":
    main()
