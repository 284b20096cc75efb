"""Where the attention of a block makes its queries, keys and values: modules found by their usual names."""

from collections.abc import Iterable

_FUSED = ("c_attn", "qkv", "qkv_proj", "Wqkv")  # all three by one layer, one after the other
_SEPARATE = (
    ("query", "q_lin", "q_proj", "query_proj", "q"),
    ("key", "k_lin", "k_proj", "key_proj", "k"),
    ("value", "v_lin", "v_proj", "value_proj", "v"),
)


def is_fused(name: str) -> bool:
    """Whether a module gives queries, keys and values side by side."""
    return name.rpartition(".")[2] in _FUSED


def projections(names: Iterable[str], block: str) -> list[str]:
    """The modules of a block that make its queries, keys and values: three, or one for all; none where none is known.

    Args:
        names: of modules, in the order in which they run; of several attentions the first counts.
        block: name of the block.
    """
    within = [name for name in names if name.startswith(f"{block}.")]
    found = [_first(within, usual) for usual in (*_SEPARATE, _FUSED)]
    if all(found[:3]):
        return [name for name in found[:3] if name]
    return [found[3]] if found[3] else []


def _first(names: list[str], usual: tuple[str, ...]) -> str | None:
    return next((name for name in names if name.rpartition(".")[2] in usual), None)
