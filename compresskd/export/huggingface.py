"""The folder that `AutoModel...from_pretrained` loads: layers folded, the tokenizer, and a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from compresskd.artifact import write_compact
from compresskd.export.agreement import Run, run_of
from compresskd.export.errors import ExportError
from compresskd.export.source import Source
from compresskd.models.build import spec_of
from compresskd.models.huggingface import huggingface
from compresskd.models.sentence import write_pooling
from compresskd.run import Record
from compresskd.version import __version__

COMPACT = "model.ckd"


def check(model: nn.Module) -> None:
    """Raise ExportError where the model is none of transformers."""
    if not hasattr(model, "save_pretrained"):
        raise ExportError(
            f"--to huggingface: {type(model).__name__} is no model of transformers; write --to onnx, pt2 or dense"
        )


def write(source: Source, dense: nn.Module, path: Path, *, trust: list[str]) -> Run:
    """Write the folded model with its configuration, its tokenizer, the factorized form and the card.

    Args:
        source: the model that is exported.
        dense: its layers folded.
        path: of an existing folder.

    Returns:
        The folder as transformers reads it.
    """
    model: Any = dense
    names = source.about.get("class_names") or []
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    with _without_bars():
        model.save_pretrained(path, safe_serialization=True)
    _write_tokenizer(source.about.get("preprocessing", {}), path)
    write_compact(source.content, path / COMPACT, trust=trust)
    kwargs = spec_of(dense)["kwargs"]
    auto = kwargs.get("auto", "AutoModel")
    (path / "README.md").write_text(card(source, auto, path / COMPACT), encoding="utf-8")
    if not kwargs.get("pooling"):
        return run_of(read(path, auto))
    length = source.about.get("preprocessing", {}).get("max_length")
    write_pooling(path, kwargs, model.config.hidden_size, length)
    return run_of(huggingface(id=str(path), task="embedding", num_classes=0).eval())


def read(path: Path, auto: str) -> nn.Module:
    """The folder by transformers' own `from_pretrained`, offline."""
    import transformers

    with _without_bars():
        return getattr(transformers, auto).from_pretrained(path, local_files_only=True).eval()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without progress bars, which would stand among what we say."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _write_tokenizer(preprocessing: Mapping[str, Any], path: Path) -> None:
    plain = preprocessing.get("tokenizer", {})
    if not isinstance(plain.get("json"), str):
        if plain:  # characters and bytes are no tokenizers of theirs
            (path / "compresskd_tokenizer.json").write_text(json.dumps(plain), encoding="utf-8")
        return
    (path / "tokenizer.json").write_text(plain["json"], encoding="utf-8")
    tokens = {token["id"]: token["content"] for token in json.loads(plain["json"]).get("added_tokens", [])}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": preprocessing["inputs"]}
    if preprocessing.get("max_length"):
        config["model_max_length"] = preprocessing["max_length"]
    if preprocessing.get("padding_id") in tokens:
        config["pad_token"] = tokens[preprocessing["padding_id"]]
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def card(source: Source, auto: str, compact: Path) -> str:
    """The model card: what it is, how it is loaded, its figures and how they came about."""
    record = source.record
    lines = [
        "---",
        "library_name: transformers",
        "tags: [compresskd, knowledge-distillation, tensor-train, quantization]",
        "---",
        "",
        "# A compressed model",
        "",
        f"Written by compresskd {__version__}. The weights are those of the compressed model with every factorized",
        "layer multiplied out and every rounded weight as its value, so they take as much as a dense model's;",
        f"`{COMPACT}` holds the same model in {compact.stat().st_size:,} bytes.",
        "",
        "```python",
        f"from transformers import {auto}",
        "",
        f"model = {auto}.from_pretrained(DIR)",
        "```",
        "",
        "The factorized form, as small as it is, needs compresskd:",
        "",
        "```python",
        "import compresskd",
        "",
        f'model = compresskd.load("DIR/{COMPACT}")',
        'inputs = model.preprocess(["a text"])',
        "```",
    ]
    return "\n".join([*lines, *(_figures(record) if record is not None else ()), ""])


def _figures(record: Record) -> list[str]:
    """The record's figures and protocol."""
    monitor = record.monitor
    entries = [*([{"name": "teacher", **record.teacher}] if record.teacher else []), *record.stages]
    data = record.data
    lines = [
        "",
        "## Figures",
        "",
        f"| | validation {monitor.name} | test {monitor.name} | parameters | bytes |",
        "|---|---|---|---|---|",
    ]
    for entry in entries:
        validation, test = (entry["metrics"][f"{split}_{monitor.name}"] for split in ("validation", "test"))
        size = entry["size"]
        lines.append(
            f"| {entry['name']} | {monitor.shown(validation)} | {monitor.shown(test)} | {size['num_parameters']:,} | "
            f"{size.get('file_bytes', size['folder_bytes']):,} |"
        )
    return [
        *lines,
        "",
        f"Strategy `{record.strategy}`, seed {record.seed}, data `{data.get('name')}`: {data.get('num_train'):,} "
        f"samples for training, {data.get('num_validation'):,} for validation, {data.get('num_test'):,} for test.",
        "The validation split chose the epochs; the test split was scored once for each row. Bytes are those of the",
        "whole model file, tokenizer included. The run was made by:",
        "",
        "```sh",
        f"compresskd {' '.join(map(_without_folders, record.overrides))}",
        "```",
    ]


def _without_folders(override: str) -> str:
    """An override without where a path of the user's lies, which is nobody else's business."""
    key, _, value = override.partition("=")
    return f"{key}=.../{Path(value).name}" if value.startswith(("/", "~")) else override
