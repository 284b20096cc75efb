"""Linear layers in 8-bit integers against float, both as ONNX exports in onnxruntime, and the float layer in torch.

    python benchmarks/onnx_int8.py [--sizes 1024,4096] [--batch 1,32,256] [--threads 1,2] [--rounds 31]

The two exports of one line run in turn in one process, torch after them; threads that have nothing to do sleep, so that
those of one do not hinder the other. Figures are medians in milliseconds, and their ratios. The
integer layer is what `compresskd export --to onnx` writes for weights and activations of 8 bits.
"""

import argparse
import tempfile
import time
from pathlib import Path

import onnx_peers
import torch
from torch import nn
from tt_cases import medians

from compresskd import artifact
from compresskd.export import onnx
from compresskd.export.agreement import Run
from compresskd.models.build import build
from compresskd.quant.activation import calibrate
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare


def linear(size: int) -> nn.Module:
    """A square linear layer, as the architecture that it is in this package."""
    options = {"hidden": [], "num_classes": size, "input_shape": [size]}
    return build("compresskd.models.mlp.MLP", options, seed=0).eval()


def export_both(size: int, folder: Path) -> dict[str, nn.Module]:
    """Write float.onnx and int8.onnx; the layers in torch."""
    example = torch.randn(2, size)
    plain, rounded = linear(size), linear(size)
    onnx.write(plain, {}, example, folder / "float.onnx")
    prepare(rounded, QuantSpec(bits=8, activation_bits=8))
    calibrate(rounded, [torch.randn(64, size)])
    content = artifact.content_of(rounded)
    rounded = artifact.build(content)
    integers = {k: v for k, v in content.tensors.items() if isinstance(v, QuantizedTensor)}
    onnx.write(rounded, integers, example, folder / "int8.onnx")
    return {"float": plain, "int8": rounded}


def line(size: int, batch: int, models: dict[str, nn.Module], sessions: dict[str, Run], rounds: int) -> None:
    """Time one size at one batch and print it."""
    x = torch.randn(batch, size)
    with torch.inference_mode():
        expected = models["int8"](x)
        difference = float((sessions["int8"](x) - expected).abs().max() / expected.abs().max())
        time.sleep(0.3)  # threads of torch go on spinning for a while
        times = medians({"float": lambda: sessions["float"](x), "int8": lambda: sessions["int8"](x)}, rounds)
        times |= medians({"torch": lambda: models["float"](x)}, rounds)
    cells = "  ".join(f"{1e3 * times[name]:9.3f}" for name in ("torch", "float", "int8"))
    print(
        f"{size:>5}  {batch:>5}  {torch.get_num_threads():>7}  {cells}  {times['float'] / times['int8']:10.2f}  "
        f"{times['torch'] / times['int8']:10.2f}  {difference:10.1e}",
        flush=True,
    )


def main() -> None:
    """Print a line for each size, number of threads and batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1024,4096")
    parser.add_argument("--batch", default="1,32,256")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    sizes, batches, threads = (
        [int(n) for n in text.split(",")] for text in (options.sizes, options.batch, options.threads)
    )
    print("forward, milliseconds; int8 against float in onnxruntime (x float) and in torch (x torch)")
    print(" size  batch  threads      torch      float       int8     x float     x torch  difference")
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            models = export_both(size, Path(name))
            for number in threads:
                torch.set_num_threads(number)
                sessions = {form: onnx_peers.read(Path(name), form) for form in ("float", "int8")}
                for batch in batches:
                    line(size, batch, models, sessions, options.rounds)


if __name__ == "__main__":
    main()
