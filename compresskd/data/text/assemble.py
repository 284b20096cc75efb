"""From sequences of tokens to `Data`: cut, checked, and told apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypedDict

import torch
from torch import Tensor

from compresskd.data.assemble import short_hash
from compresskd.data.base import Data
from compresskd.data.cache import Cache
from compresskd.data.checks import check_class_names, check_classes, check_declared
from compresskd.data.columns import tables
from compresskd.data.identical import identical_samples
from compresskd.data.location import Location, located
from compresskd.data.named import named_splits
from compresskd.data.notice import Notice
from compresskd.data.standardize import standardized
from compresskd.data.stratify import cut_rows, cut_size
from compresskd.data.text.masking import Masking
from compresskd.data.text.sequences import Block, Sequences, collected
from compresskd.data.text.split import TextSplit, padded, split_fingerprint
from compresskd.data.text.tokenizer import Tokenizer
from compresskd.data.text.variants import joined
from compresskd.data.text.variants import variants as variants_of
from compresskd.data.unlabelled import KEY, of_unlabelled, without_labels
from compresskd.data.vocabulary import Vocabulary
from compresskd.data.weights import class_weights
from compresskd.options import Count, OptionError, Whole
from compresskd.tasks import IGNORED


class SetOptions(TypedDict, total=False):
    """Where a set of texts is, and how it is cut: what every such set takes from its configuration."""

    id: str | None
    config: str | None
    revision: str | None
    path: str | None
    train_split: str | None
    validation_split: str | None
    test_split: str | None
    test_fraction: float | None
    validation_fraction: float | None
    validation_count: int | None
    num_validation: Count | None
    num_test: Count | None
    split_seed: int
    num_classes: Count | None
    input_shape: Sequence[int] | None
    allow_overlap: bool
    cache_dir: str | None
    max_in_memory_bytes: Whole
    prune_vocabulary: bool | Count


class LabelledOptions(SetOptions, total=False):
    """Those of a set whose samples have labels besides the text: there may be others without."""

    unlabelled_path: str | None


@dataclass(frozen=True)
class Opened:
    """A set that was found: its splits, by our names and by theirs."""

    location: Location
    names: Mapping[str, str]
    notices: tuple[Notice, ...]

    @classmethod
    def at(cls, options: SetOptions) -> "Opened":
        """Raises OptionError where there is none, or it has other splits."""
        location = located(*(options.get(key) for key in ("id", "config", "revision", "path")))
        given = {key: options.get(key) for key in ("train_split", "validation_split", "test_split")}
        return cls(location, *map(_frozen, named_splits(list(location.loaded), location.what, **given)))

    @classmethod
    def unlabelled(cls, options: LabelledOptions) -> "Opened | None":
        """The set of samples without labels, as a split of this name; None where there is none."""
        path = options.get(KEY)
        if path is None:
            return None
        with of_unlabelled():
            location = located(None, None, None, path)
            names, notices = named_splits(list(location.loaded), location.what)
        return cls(location, {"unlabelled": names["train"]}, tuple(notices))

    def part(self, split: str) -> Any:
        """The data set of one split."""
        return self.location.loaded[self.names[split]]

    def where(self, split: str) -> str:
        """In messages."""
        return f"the {self.names[split]} split of {self.location.what}"

    def texts(self, column: str, *, key: str) -> Iterator[str]:
        """Every text of a column, of all splits. Raises OptionError for what is no text."""
        for split in self.names:
            yield from texts_of(self.part(split), column, key, self.where(split))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def texts_of(part: Any, column: str, key: str, where: str) -> Iterator[str]:
    """The texts of a column. Raises OptionError, of the option `key`, for what is no text."""
    position = 0
    for table in tables(part, [column], where):
        for text in table[column].to_pylist():
            if not isinstance(text, str):
                expected = f"a column of texts, not {type(text).__name__} as sample {position} of {where} has"
                raise OptionError(key, column, expected)
            yield text
            position += 1


def sequences_of(
    opened: Opened,
    options: SetOptions,
    tokenizer: Tokenizer,
    determines: Sequence[object],
    blocks: Callable[[str, list[Notice]], Iterator[Block]],
) -> dict[str, Sequences]:
    """The tokens of each split: what `blocks` makes of it, or was made of the same files before.

    `determines` is what the tokens depend on besides the files and the tokenizer.
    """
    cache = Cache.at(options.get("cache_dir"), options.get("max_in_memory_bytes", 2**28))
    found = {}
    for split, theirs in opened.names.items():
        named = (
            opened.location.digest,
            sorted(opened.names.items()),
            theirs,
            tokenizer.describe(),
            determines,
        )
        key = sha256(repr(named).encode()).hexdigest()[:32]
        notices: list[Notice] = []
        found[split] = collected(blocks(split, notices), notices, cache, key, opened.where(split))
    return found


@dataclass(frozen=True, eq=False)
class Labels:
    """What is asked of the samples.

    Attributes:
        class_names: of classes, labels or values; empty where tokens are predicted.
        num_outputs: how many outputs a model must have.
        kind: "classes", "labels", "values", "vectors", "tokens" for a class of each token, or "texts".
        class_weights: of the classes in the label loss, or "balanced": the same for each class of train.
    """

    class_names: tuple[str, ...]
    num_outputs: int
    kind: str
    class_weights: Sequence[float] | str | None = None


def assemble_texts(
    name: str,
    sources: Mapping[str, Sequences],
    labels: Labels,
    *,
    columns: Sequence[str],
    tokenizer: Tokenizer,
    options: SetOptions,
    notices: Sequence[Notice],
    preprocessing: Mapping[str, Any],
    group_by_length: bool = False,
    contiguous: bool = False,
    masking: Masking | None = None,
    decoder_start: int | None = None,
    vocabulary: Vocabulary | None = None,
    variants: Mapping[str, int] | None = None,
) -> Data:
    """Check, cut and fingerprint.

    Args:
        sources: of train, of unlabelled samples where there are any, and of validation and test where they are not cut
            from train. `more` may have targets [M] or
            [M, D], weights [M], and sizes [M], the bytes of what is predicted; a column `targets` is of tokens.
        columns: those that are inputs of the model.
        masking: hides tokens, which are then the targets.
        decoder_start: the token before the targets, where these are another text, of which a model is given the tokens
            before each.
        vocabulary: what became of the tokens, where some are left out.
        variants: how many of each kind are drawn of each training text, as samples without labels.
        contiguous: samples are one text: all have one length, the last ones are cut off, and the ids are the targets.

    Raises:
        OptionError: for options, ValueError for samples, that do not fit.
    """
    _check(labels, options)
    found = {
        split: _split(split, source, rows, labels, columns, tokenizer, contiguous=contiguous)
        for split, (source, rows) in parts_of(sources, options, contiguous=contiguous).items()
    }
    splits, limited = _limited(found, {name: options.get(f"num_{name}") for name in ("validation", "test")})
    splits = {
        split: replace(part, masking=masking, decoder_start=decoder_start) for split, part in splits.items()
    }
    splits, of_targets = _with_checked_targets(splits, labels)
    splits["train"] = replace(
        splits["train"],
        group_by_length=group_by_length,
        weights=_weights(splits["train"], sources["train"], labels),
        token_weights=_token_weights(splits["train"], labels),
    )
    parts = list(splits)
    if variants:
        drawn = variants_of(splits["train"], tokenizer, variants, seed=options.get("split_seed", 0))
        unlabelled = sources.get("unlabelled")
        sources = {**sources, "unlabelled": drawn if unlabelled is None else joined(unlabelled, drawn)}
    if "unlabelled" in sources:
        splits["unlabelled"] = _unlabelled(sources["unlabelled"], splits["train"], labels)
    splits = {split: replace(part, fingerprint=split_fingerprint(part)) for split, part in splits.items()}
    overlap = _overlap(splits, sources, allowed=options.get("allow_overlap", False))
    determines = [splits[split].fingerprint for split in parts]
    return Data(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        num_classes=labels.num_outputs,
        input_shape=(),
        class_names=labels.class_names,
        mean=(),
        std=(),
        fingerprint=short_hash([*determines, list(labels.class_names)]),
        batches_fingerprint=short_hash(determines),
        notices=(
            *notices,
            *(notice for source in sources.values() for notice in source.notices),
            *limited,
            *overlap,
        ),
        preprocessing={
            **preprocessing,
            **of_targets,
            "tokenizer": tokenizer.describe(),
            "vocabulary_size": max(tokenizer.vocabulary_size, masking.mask_id + 1 if masking else 0),
            "padding_id": tokenizer.padding_id,
            "inputs": [*columns, *([] if contiguous else ["attention_mask"])],
        },
        unlabelled=splits.get("unlabelled"),
        vocabulary=vocabulary,
    )


def _check(labels: Labels, options: SetOptions) -> None:
    if options.get("input_shape"):
        raise OptionError("input_shape", options.get("input_shape"), "null: texts differ in length")
    check_class_names(labels.class_names)
    if labels.class_names:
        check_declared(options.get("num_classes"), None, (), labels.class_names)


def _with_checked_targets(
    splits: Mapping[str, TextSplit], labels: Labels
) -> tuple[dict[str, TextSplit], dict[str, Any]]:
    """The splits, values among their targets standardized; and what is to be known to undo that."""
    for split in splits.values():
        if not len(split):
            raise ValueError(f"the {split.name} split has no sample")
    targets = {split: part.targets for split, part in splits.items()}
    if labels.kind == "values":
        made, undone = standardized(targets, targets["train"], labels.class_names, key="label_column")
        return {split: replace(part, targets=made[split]) for split, part in splits.items()}, {
            "targets": undone
        }
    if labels.class_names and labels.kind != "labels" and not targets["train"].is_floating_point():
        check_classes(targets, labels.class_names)
    return dict(splits), {}


def _overlap(
    splits: Mapping[str, TextSplit], sources: Mapping[str, Sequences], *, allowed: bool
) -> list[Notice]:
    hashes = {id(source): source.hashes() for source in sources.values()}
    of_split = {
        split: hashes[id(sources.get(split, sources["train"]))][part.rows] for split, part in splits.items()
    }
    return list(identical_samples(splits, of_split, allowed=allowed))


def parts_of(
    sources: Mapping[str, Sequences], options: SetOptions, *, contiguous: bool
) -> dict[str, tuple[Sequences, Tensor]]:
    """Each split's samples: those that it has, or cut from train; the test never depends on `split_seed`."""
    train = sources["train"]
    rows, parts = torch.arange(len(train)), {}
    targets = train.more.get("targets", rows.float())
    cuts = (
        ("test", options.get("test_fraction"), None, 0),
        (
            "validation",
            options.get("validation_fraction"),
            options.get("validation_count"),
            options.get("split_seed", 0),
        ),
    )
    for split, fraction, count, seed in cuts:
        if split in sources:
            parts[split] = sources[split], torch.arange(len(sources[split]))
        elif contiguous:
            stay = len(rows) - cut_size(split, fraction, count, len(rows))
            rows, cut = rows[:stay], rows[stay:]
            parts[split] = train, cut
        else:
            rows, cut = cut_rows(split, targets[rows], rows, fraction=fraction, count=count, seed=seed)
            parts[split] = train, cut
    return {"train": (train, rows), **parts}


def _split(
    name: str,
    source: Sequences,
    rows: Tensor,
    labels: Labels,
    columns: Sequence[str],
    tokenizer: Tokenizer,
    *,
    contiguous: bool,
) -> TextSplit:
    if contiguous:
        length = int(source.offsets[1]) if len(source) else 0
        ids = source.columns["input_ids"].view(len(source), length)
        # a view: the targets of a text that is larger than memory are in the file of its tokens
        targets = ids[int(rows[0]) : int(rows[-1]) + 1] if len(rows) else ids[:0]
    elif labels.kind == "tokens":
        targets = padded(source.columns["targets"], source.offsets)[rows]
    elif "targets" in source.more:
        targets = source.more["targets"][rows]
    else:
        targets = without_labels(len(rows), rows)
    sizes = source.more["sizes"][rows] if "sizes" in source.more else None
    return TextSplit(
        name=name,
        columns={column: source.columns[column] for column in columns},
        offsets=source.offsets,
        rows=rows,
        targets=targets,
        fingerprint="",
        padding={column: tokenizer.padding_id if column == "input_ids" else 0 for column in columns},
        masked=not contiguous,
        sizes=sizes,
        num_bytes=None if sizes is None else int(sizes.sum()),
        streamed=source.streamed,
    )


def _limited(
    splits: Mapping[str, TextSplit], most: Mapping[str, int | None]
) -> tuple[dict[str, TextSplit], list[Notice]]:
    """The splits, of some only the beginning, and what is said of that."""
    found, notices = dict(splits), []
    for name, count in most.items():
        total = len(splits[name])
        if count is None or count >= total:
            continue
        found[name] = splits[name].take(torch.arange(count), "")
        text = f"{name}: the first {count:,} of {total:,} samples alone, as data.num_{name} says"
        notices.append(Notice("limited", name, total - count, text))
    return found, notices


def _unlabelled(source: Sequences, train: TextSplit, labels: Labels) -> TextSplit:
    """Samples whose targets, as far as there are any, tell which tokens are asked."""
    if not len(source):
        raise OptionError(KEY, "no sample", "one text or more")
    count = len(source)
    targets = without_labels(count, train.targets)
    if labels.kind == "tokens":
        targets = padded(source.columns["targets"], source.offsets)
    return replace(
        train,
        name="unlabelled",
        columns={column: source.columns[column] for column in train.columns},
        offsets=source.offsets,
        rows=torch.arange(count),
        targets=targets,
        weights=None,
        token_weights=None,
        sizes=None,
        num_bytes=None,
        streamed=source.streamed,
    )


def _token_weights(split: TextSplit, labels: Labels) -> Tensor | None:
    """[K] float32 of the classes of tokens in the label loss."""
    if labels.class_weights is None or labels.kind != "tokens":
        return None
    asked = split.targets[split.targets != IGNORED].long()
    return class_weights(labels.class_weights, asked, labels.class_names)


def _weights(split: TextSplit, source: Sequences, labels: Labels) -> Tensor | None:
    """[N] float32 of the samples in the label loss: their own, times that of their class."""
    own = source.more["weights"][split.rows] if "weights" in source.more else None
    if labels.class_weights is None or labels.kind == "tokens":
        return own
    by_class = class_weights(labels.class_weights, split.targets, labels.class_names)
    found = by_class[split.targets]
    return found if own is None else own * found
