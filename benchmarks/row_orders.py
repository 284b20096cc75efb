"""Rows of an embedding in other orders before it becomes a tensor train: errors, and the bytes of the order.

    python benchmarks/row_orders.py MODEL TEXTS [--column sentence] [--shares 0.1,0.05,0.025]

MODEL is a folder of a text encoder with a WordPiece tokenizer.json, TEXTS a parquet file. The table is that of the
tokens which the texts use. For each order of its rows: the bytes of the words in that order as `model.ckd` holds them,
and for each share of the table's weights the error of a tensor train of two and of three cores, relative, over all rows
and over rows as often as the texts use them. Beside each the same with so many weights fewer, at 4 bits, as the order
costs more bytes than the alphabetical one. The low-rank SVD, which no order changes, is the first line; the second is
one that counts rows by their frequency.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet
from safetensors import safe_open
from torch import Tensor

from compresskd.artifact.words import pack_words
from compresskd.data.text.prune import pruned
from compresskd.data.text.tokenizer import Pieces, tokenizer_of
from compresskd.tt.decompose.cores import to_matrix
from compresskd.tt.decompose.tt_svd import tt_svd

MODES = (((108, 108), (16, 24)), ((23, 23, 23), (6, 8, 8)))
WEIGHTS_PER_BYTE = 2


def bisected(table: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows halved again and again by their first principal component, so that neighbours are alike."""
    if len(rows) <= 8:
        return rows
    centred = table[rows] - table[rows].mean(0)
    direction = torch.randn(table.shape[1], generator=generator)
    for _ in range(8):
        direction = centred.T @ (centred @ direction)
        direction /= direction.norm()
    ordered = rows[(centred @ direction).argsort()]
    half = len(rows) // 2
    return torch.cat([bisected(table, part, generator) for part in (ordered[:half], ordered[half:])])


def orders_of(table: Tensor, counts: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """By name, the rows in order; `kept` [V] are their numbers in the whole table."""
    generator = torch.Generator().manual_seed(0)
    component = torch.linalg.svd(table - table.mean(0), full_matrices=False)[0][:, 0]
    rows = torch.arange(len(table))
    return {
        "alphabetical": rows,
        "numbers in the whole vocabulary": kept.argsort(),
        "frequency": (-counts).argsort(stable=True),
        "random": torch.randperm(len(table), generator=generator),
        "first principal component": component.argsort(),
        "norm": table.norm(dim=1).argsort(),
        "bisected by principal components": bisected(table, rows, generator),
    }


def errors(table: Tensor, made: Tensor, counts: Tensor) -> str:
    """Over all rows / over rows as often as they are used."""
    wrong, whole = (table - made).double().square().sum(1), table.double().square().sum(1)
    plain, weighted = (
        (weights * wrong).sum() / (weights * whole).sum() for weights in (torch.ones(len(table)), counts)
    )
    return f"{math.sqrt(plain):.3f}/{math.sqrt(weighted):.3f}"


def low_rank(table: Tensor, weights: Tensor, size: int) -> Tensor:
    """The best [V, D] of its rank, where the squared error of each row counts so often."""
    rank = size // sum(table.shape)
    scale = weights.sqrt()[:, None]
    left, values, right = torch.linalg.svd(scale * table, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank] / scale


def ranks_of(rows: Sequence[int], columns: Sequence[int], size: int) -> list[int]:
    """TT-ranks of two or three cores with at most so many weights; of three one rank, as far as there is one."""
    sizes = [m * n for m, n in zip(rows, columns, strict=True)]
    if len(sizes) == 2:
        return [min(size // sum(sizes), *sizes)]
    first, middle, last = sizes
    rank = int((math.sqrt((first + last) ** 2 + 4 * middle * size) - first - last) / (2 * middle))
    rank = min(rank, first)
    return [rank, min((size - first * rank) // (rank * middle + last), last)]


def train(table: Tensor, modes: Sequence[Sequence[int]], size: int) -> Tensor:
    """A table by way of a tensor train of so many weights."""
    rows, columns = modes
    padded = torch.zeros(math.prod(rows), table.shape[1])
    padded[: len(table)] = table
    cores = tt_svd(padded, columns, rows, ranks=ranks_of(rows, columns, size)).cores
    return to_matrix(cores)[: len(table), : table.shape[1]]


def lines(
    table: Tensor, names: Sequence[str], counts: Tensor, kept: Tensor, shares: Sequence[float]
) -> Iterator[str]:
    """The figures."""
    sizes = [int(share * table.numel()) for share in shares]
    for name, weights in (("low rank", torch.ones(len(table))), ("low rank by frequency", counts.float())):
        yield f"{name}: {'  '.join(errors(table, low_rank(table, weights, size), counts) for size in sizes)}"
    least = len(pack_words(names))
    for name, order in orders_of(table, counts, kept).items():
        num_bytes = len(pack_words([names[row] for row in order.tolist()]))
        less = WEIGHTS_PER_BYTE * (num_bytes - least)
        for modes in MODES:
            found = [
                errors(table[order], train(table[order], modes, size - taken), counts[order])
                for size in sizes
                for taken in (0, less)
            ]
            pairs = "  ".join(f"{a} ({b})" for a, b in zip(found[::2], found[1::2], strict=True))
            yield f"{len(modes[0])} cores, {name}, {num_bytes:,} bytes: {pairs}"


def main() -> None:
    """Read the table and the texts, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--shares", default="0.1,0.05,0.025")
    options = parser.parse_args()
    tokenizer = tokenizer_of(str(options.model), lambda: ())
    assert isinstance(tokenizer, Pieces)
    texts = parquet.read_table(options.texts).column(options.column).to_pylist()
    ids = np.concatenate([each.ids for each in tokenizer.encode(texts, None, None)])
    found = np.bincount(ids, minlength=tokenizer.vocabulary_size)
    made, kept = pruned(tokenizer, found, True)
    with safe_open(options.model / "model.safetensors", "pt") as file:
        names = file.keys()
        name = next(name for name in names if name.endswith("word_embeddings.weight"))
        table = file.get_tensor(name).float()[torch.from_numpy(kept)]
    names = [made.rust.id_to_token(number) for number in range(len(kept))]
    counts = torch.from_numpy(found[kept]) + 0.5  # tokens that stay without being used
    print(f"{len(kept):,} rows of {table.shape[1]}")
    for line in lines(
        table, names, counts, torch.from_numpy(kept), [float(s) for s in options.shares.split(",")]
    ):
        print(line, flush=True)


if __name__ == "__main__":
    main()
