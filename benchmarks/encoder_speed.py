"""A compressed text encoder against its dense self, in torch and in 8-bit integers in onnxruntime.

    python benchmarks/encoder_speed.py RUN [--batch 1,32] [--length 32,128] [--threads 1,2] [--rounds 15]

RUN is the folder of a run whose final model answers texts. Its dense self is the same architecture with ordinary layers
(`compresskd export --to dense`); the integers are onnxruntime's own dynamic quantization of that. All run in turn in
one process, on random tokens without padding. Figures are medians in milliseconds; ratios are times faster, above 1
where the compressed model in torch is the faster one.
"""

import argparse
import functools
import math
import tempfile
from pathlib import Path

import onnx_peers
import torch
from tt_cases import medians

import compresskd
from compresskd.export import dense, open_source
from compresskd.export.agreement import Run, run_of


def contenders(run: Path, folder: Path) -> tuple[dict[str, Run], int]:
    """Each by its name, and how many tokens there are."""
    source = open_source(run)
    plain = dense.fold(source.model, float_inputs=True)
    size = compresskd.load(run).preprocess.about["preprocessing"]["vocabulary_size"]
    example = tokens(2, 8, size)
    onnx_peers.write(plain, example, folder)
    found = {
        "compressed": run_of(source.model),
        "dense": run_of(plain),
        "ONNX float": onnx_peers.read(folder, "dense"),
        "ONNX int8": onnx_peers.read(folder, "int8"),
    }
    return found, size


def tokens(batch: int, length: int, size: int) -> dict[str, torch.Tensor]:
    """Random ones, all of which count."""
    ids = torch.randint(0, size, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main() -> None:
    """Print a line for each batch, length and number of threads, and the geometric means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    for name, default in (("--batch", "1,32"), ("--length", "32,128"), ("--threads", "1,2")):
        parser.add_argument(name, default=default)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    batches, lengths, threads = (
        [int(n) for n in text.split(",")] for text in (options.batch, options.length, options.threads)
    )
    names = ["compressed", "dense", "ONNX float", "ONNX int8"]
    print(
        f"{'threads':>7} {'batch':>6} {'length':>6} "
        + " ".join(f"{name:>11}" for name in names)
        + "  times faster"
    )
    ratios: dict[str, list[float]] = {name: [] for name in names[1:]}
    for number in threads:
        torch.set_num_threads(number)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            runs, size = contenders(options.run, Path(folder))
            for batch in batches:
                for length in lengths:
                    x = tokens(batch, length, size)
                    bound = {name: functools.partial(run, x) for name, run in runs.items()}
                    found = medians(bound, options.rounds)
                    for name, values in ratios.items():
                        values.append(found[name] / found["compressed"])
                    cells = " ".join(f"{1e3 * found[name]:11.2f}" for name in names)
                    told = " ".join(f"{values[-1]:6.2f}" for values in ratios.values())
                    print(f"{number:>7} {batch:>6} {length:>6} {cells}  {told}", flush=True)
    for name, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"than {name}: geometric mean {mean:.2f}, least {min(values):.2f}")


if __name__ == "__main__":
    main()
