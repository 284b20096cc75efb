"""What is told of the samples of a split that are not read, or not whole."""

from collections.abc import Sequence

from compresskd.data.notice import Notice, listed


def left_out(
    split: str, where: str, bad: Sequence[str], total: int, what: str, *, skip_bad: bool
) -> list[Notice]:
    """A notice of the bad samples, where there are any; ValueError unless they may be skipped.

    Args:
        bad: the rows. total: of the split. what: such as "texts are empty".
    """
    if bad and not skip_bad:
        raise ValueError(
            f"{len(bad):,} of {total:,} {what} in {where}: {listed(bad)}; mend them, or write data.skip_bad=true to "
            f"leave them out"
        )
    text = f"{split}: {len(bad):,} of {total:,} {what}, and left out"
    return [Notice.of("skipped", split, bad, text)] if bad else []


def cut_off(
    split: str, truncated: int, total: int, what: str, max_length: int | None, option: str = "max_length"
) -> list[Notice]:
    """A notice of the samples that are longer than `max_length`, the value of an option, where there are any."""
    share = f"{truncated:,} of {total:,} {what} ({100 * truncated / max(1, total):.2g}%)"
    text = f"{split}: {share} are longer than {max_length} tokens, and cut (data.{option})"
    return [Notice("truncated", split, truncated, text)] if truncated else []
