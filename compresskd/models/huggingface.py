"""Models of Hugging Face's transformers: of a folder or the hub, or fresh from the options of an architecture.

`huggingface` is what users configure. The module that it returns, the ordinary one of transformers, says that it is
rebuilt by `from_config`, which needs the plain configuration alone: no folder, no weights, no network.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import nn

from compresskd.models.hub_folder import HubFolder, hub_folder
from compresskd.models.sentence import MEAN, Pooling, pooled, pooling_of
from compresskd.options import Count, OptionError, Whole, checked, did_you_mean, joined, one_of

HUGGING_FACE = f"{__name__}.huggingface"
_SEQUENCE, _IMAGE, _AUDIO = (f"AutoModelFor{kind}Classification" for kind in ("Sequence", "Image", "Audio"))
_OF_TASK = {
    "token_classification": "AutoModelForTokenClassification",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "embedding": "AutoModel",
}
_ENCODER = "AutoModel"  # without a head: its states are pooled
_LANGUAGE = (
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
)  # outputs are a vocabulary
AUTO = (_SEQUENCE, _IMAGE, _AUDIO, *_OF_TASK.values())
# Of a configuration: where it was, what ran it, and how numbers are kept, none of which makes an architecture.
_NOT_STORED = {
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype", "tokenizer_class",
    "_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_experts_implementation_internal",
    "experts_implementation", "quantization_config", "label2id", "output_attentions", "output_hidden_states",
    "return_dict", "problem_type", "torchscript",
}  # fmt: skip
# Of a configuration: what would run code, or read weights, from elsewhere.
_ACTS = ("auto_map", "custom_pipelines", "use_pretrained_backbone", "trust_remote_code")
_MOST = 1_000_000  # layers, labels, heads: what is counted in a configuration, before anything of it is built
_OTHERS = ("timm_wrapper", "timm_backbone")  # model types whose options timm would act on: write student=timm
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOLD = ("num_labels", "id2label", "label2id")  # by the data
_HUB_CODE = (
    "no code of its own: an architecture of transformers; for one of your own write student=custom "
    "student._target_=my_module.make with a function that returns the module"
)

Auto = Annotated[str, one_of(*AUTO)]
Attention = Literal["eager", "sdpa"]


@checked
def huggingface(
    *,
    id: str | None = None,
    config: Mapping[str, Any] | None = None,
    auto: Auto | None = None,
    pretrained: bool = True,
    attn_implementation: Attention | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    task: str = "classification",
    num_classes: Whole,
    input_shape: Sequence[Count] = (),
    class_names: Sequence[str] = (),
    vocabulary_size: Count | None = None,
    pad_token_id: Whole | None = None,
) -> nn.Module:
    """The model of a folder or of the hub, with its weights where it has them, or a fresh one.

    In float32, without a cache of keys and values. What the weights lack, such as a head for other labels, is drawn
    at random; its names are the module's `fresh_parameters`.

    Args:
        id: a folder as `save_pretrained` writes it, one with a GGUF file, such a file, or a name on the hub.
        config: options of the architecture, in transformers' names. Without `id` it must have a `model_type`; with
            it they change those of the folder.
        auto: the class AutoModelFor... that gives the architecture its head; None: as the task and the inputs ask.
        pretrained: whether the weights beside `id` are taken.
        attn_implementation: eager or sdpa; None is sdpa where the architecture has it.
        pooling: of an encoder without a head: mean or cls; None: what the folder says, else the mean.
        normalize: whether its vectors have length 1; None: what the folder says, else false.
        task: the name of the task.
        num_classes: how many outputs; of a language model the size of its vocabulary.
        input_shape: of one sample: [C, H, W] of images, [mel, T] of audio, empty for texts.
        class_names: of the outputs, in order.
        vocabulary_size: of the tokenizer; that of a fresh architecture where `config` says none.
        pad_token_id: the tokenizer's, for a fresh architecture and one that has none.

    Raises:
        OptionError: of the option that cannot be.
    """
    auto = auto or _auto_of(task, input_shape)
    folder = None if id is None else hub_folder(id)
    names = list(class_names) or (list(folder.labels.values()) if folder else [])
    if auto != _ENCODER and (pooling, normalize) != (None, None):
        key, value = ("normalize", normalize) if pooling is None else ("pooling", pooling)
        raise OptionError(
            key, value, f"null: only an encoder without a head pools (task=embedding), not {auto}"
        )
    outputs = {} if auto in (*_LANGUAGE, _ENCODER) else _outputs(num_classes, names)
    known = {
        "vocab_size": vocabulary_size or (num_classes if auto in _LANGUAGE else None),
        "pad_token_id": pad_token_id,
    }
    if len(input_shape) == 3:
        known |= {"image_size": input_shape[1], "num_channels": input_shape[0]}
    options = _options_of(folder, dict(config or {}), known if folder is None else {})
    if options.get("pad_token_id") is None and pad_token_id is not None:
        options["pad_token_id"] = pad_token_id
    made = configuration({**options, **outputs, "use_cache": False})
    kind = _class_of(auto, made)
    if folder is not None and pretrained and folder.has_weights:
        if kind.__name__ in (folder.config.get("architectures") or ()):
            _check_labels(folder, class_names)
        model, fresh = _with_weights(kind, made, folder, attn_implementation)
    else:
        model, fresh = _without_weights(kind, made, attn_implementation), ()
    stored = {"auto": auto, "config": plain(made), "attn_implementation": model.config._attn_implementation}
    if auto == _ENCODER:
        stored |= _pooled_as(folder, pooling, normalize)
        pooled(model, stored["pooling"], normalize=stored["normalize"])
    model.spec = {"target": f"{__name__}.from_config", "kwargs": stored}
    model.fresh_parameters = fresh
    return model


@checked
def from_config(
    *,
    auto: Auto,
    config: Mapping[str, Any],
    attn_implementation: Attention,
    pooling: Pooling | None = None,
    normalize: bool = False,
) -> nn.Module:
    """An architecture from its whole configuration, with parameters of no particular value; of no folder or network.

    Args:
        auto: the class AutoModelFor... of transformers.
        config: plain values, as `plain` returns them.
        attn_implementation: eager or sdpa.
        pooling: of an encoder without a head.
        normalize: whether its vectors have length 1.

    Raises:
        OptionError: an unknown model type, options that it refuses, or some that would run code from elsewhere.
    """
    made = configuration(dict(config))
    model = _without_weights(_class_of(auto, made), made, attn_implementation)
    return model if pooling is None else pooled(model, pooling, normalize=normalize)


def weights_folder(node: Mapping[str, Any]) -> HubFolder | None:
    """The folder whose weights a configured model starts from; None where it has none, or is none of `huggingface`."""
    if node.get("_target_") != HUGGING_FACE or not node.get("id") or not node.get("pretrained", True):
        return None
    folder = hub_folder(node["id"])
    return folder if folder.has_weights else None


def is_trained_for(options: Mapping[str, Any]) -> bool:
    """Whether a configured model comes with the trained head that the task needs, and not with a fresh one."""
    folder = weights_folder(options)
    if folder is None:
        return False
    auto = options.get("auto") or _auto_of(options["task"], options.get("input_shape") or ())
    made = configuration(_options_of(folder, dict(options.get("config") or {}), {}))
    stored = folder.config.get("architectures") or [_class_of("AutoModelForCausalLM", made).__name__]
    if auto == _ENCODER:  # whatever head it was stored with
        return True
    is_as_wide = auto in _LANGUAGE or made.num_labels == options["num_classes"]
    return _class_of(auto, made).__name__ in stored and is_as_wide


def plain(made: Any) -> dict[str, Any]:
    """A configuration of transformers as plain values, without what makes no architecture."""
    values = _cleaned(json.loads(made.to_json_string(use_diff=False)))
    if values.get("id2label") == {str(number): f"LABEL_{number}" for number in range(made.num_labels)}:
        values |= {"num_labels": made.num_labels, "id2label": None}
    return values


def is_of_transformers(spec: Mapping[str, Any]) -> bool:
    """Whether `{"target": ..., "kwargs": ...}` is one of `from_config`."""
    return spec["target"] == f"{__name__}.from_config"


def _auto_of(task: str, input_shape: Sequence[int]) -> str:
    of_inputs = {3: _IMAGE, 2: _AUDIO}.get(len(input_shape), _SEQUENCE)
    return _OF_TASK.get(task, of_inputs)


def _options_of(folder: HubFolder | None, typed: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an architecture: the folder's, then those that the data tell, then the typed."""
    if folder is None and "model_type" not in typed:
        expected = (
            "an architecture of transformers, such as {model_type: bert, num_hidden_layers: 2}, or an id"
        )
        raise OptionError("config" if typed else "id", typed or None, expected)
    base = _cleaned(folder.config) if folder else {"model_type": typed["model_type"]}
    found = configuration(dict(base))
    names, values = dict(found.attribute_map), plain(found)
    for name, value in typed.items():
        if name in _TOLD:
            raise OptionError(f"config.{name}", value, "nothing: the data tell it")
        if name not in {*values, *names, *vars(found)}:
            expected = f"an option of {type(found).__name__}{did_you_mean(name, values)}"
            raise OptionError(f"config.{name}", value, expected)
    told = {names.get(name, name): value for name, value in known.items() if value is not None}
    told = {name: value for name, value in told.items() if name in values}
    for name in _SPECIAL:  # of the vocabulary that the class is made for
        if "vocab_size" in told and (values.get(name) or 0) >= told["vocab_size"]:
            told[name] = None
    return {**base, **told, **{names.get(name, name): value for name, value in typed.items()}}


def configuration(options: dict[str, Any]) -> Any:
    """The configuration of these options, as transformers makes it. Raises OptionError for what it refuses."""
    from transformers import CONFIG_MAPPING, AutoConfig

    _judge(options)
    kind = options.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        expected = f"an architecture of transformers{did_you_mean(str(kind), CONFIG_MAPPING.keys())}"
        raise OptionError("config.model_type", kind, expected)
    options = _cleaned(options)
    if options.get("id2label"):
        options.pop("num_labels", None)
        options["id2label"] = {int(number): name for number, name in options["id2label"].items()}
    try:
        with _quiet():
            made = AutoConfig.for_model(kind, **options)
    except Exception as error:  # each architecture refuses in its own way
        raise OptionError("config", kind, f"options that it takes: {_sentence(error)}") from error
    labels: Any = made.id2label
    made.label2id = {name: number for number, name in labels.items()}
    return made


def _judge(value: Any) -> None:
    """Raise OptionError for what would run code, or read weights, from elsewhere, and for counts that no model has."""
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if (name in _ACTS and inner) or (name == "model_type" and inner in _OTHERS):
            raise OptionError(joined("config", name), inner, _HUB_CODE)
        if ("num_" in str(name) or "layer" in str(name)) and isinstance(inner, int) and inner > _MOST:
            raise OptionError(joined("config", name), inner, f"<= {_MOST}")
        _judge(inner)


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _cleaned(v) for k, v in value.items() if k not in _NOT_STORED}
    return [_cleaned(item) for item in value] if isinstance(value, list | tuple) else value


def _class_of(auto: str, made: Any) -> Any:
    import transformers

    known = getattr(transformers, auto)._model_mapping
    if type(made) not in known:
        kinds = sorted(each.model_type for each in known)
        near = f"one of {', '.join(kinds)}" if len(kinds) <= 40 else f"one of {len(kinds)} architectures"
        raise OptionError("config.model_type", made.model_type, f"one that has the head of {auto}: {near}")
    try:
        kind = known[type(made)]
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"transformers cannot import its {made.model_type} ({_cause(error)})") from error
    return kind[0] if isinstance(kind, tuple) else kind


def _cause(error: BaseException) -> str:
    """What an import failed for at the bottom, and what to do about the reason that is met most."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    said = _sentence(error)
    remedy = (
        "; uninstall torchvision, or install the one that belongs to this torch"
        if "torchvision" in said
        else ""
    )
    return said + remedy


def _without_weights(kind: Any, made: Any, attention: str | None) -> Any:
    with _quiet():
        return kind._from_config(
            made, attn_implementation=attention, dtype=torch.float32, **_without_pooler(kind, made)
        )


def _with_weights(
    kind: Any, made: Any, folder: HubFolder, attention: str | None
) -> tuple[Any, tuple[str, ...]]:
    """The model with the weights of a folder; the names of the parameters that these lack."""
    with _quiet():
        model, found = kind.from_pretrained(
            folder.path,
            config=made,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_without_pooler(kind, made),
            local_files_only=True,
            **folder.reading,
        )
    resized = sorted(each[0] for each in found["mismatched_keys"])
    fresh = tuple(sorted({*found["missing_keys"], *resized}))
    body = f"{kind.base_model_prefix}." if hasattr(model, kind.base_model_prefix) else ""
    wrong = [name for name in resized if name.startswith(body)]
    if wrong:
        raise OptionError(
            "config", wrong[0], "options that leave the shapes of the folder's weights as they are"
        )
    if all(name in fresh for name, _ in model.named_parameters() if name.startswith(body)):
        raise OptionError("id", folder.id, f"weights of a {made.model_type}, which none of its are")
    if folder.reading:  # a model that was read from GGUF believes itself quantized, and refuses to be saved
        same = _without_weights(kind, made, attention)
        same.load_state_dict(model.state_dict())
        model = same
    return model.train(), fresh


def _without_pooler(kind: Any, made: Any) -> dict[str, bool]:
    """For an encoder without a head, whose own layer over the first token nothing would use."""
    name = "add_pooling_layer"
    if name not in inspect.signature(kind.__init__).parameters:
        return {}
    return {name: False} if _class_of(_ENCODER, made) is kind else {}


def _pooled_as(folder: HubFolder | None, pooling: str | None, normalize: bool | None) -> dict[str, Any]:
    said = (MEAN, False) if folder is None else pooling_of(folder.path)
    return {
        "pooling": said[0] if pooling is None else pooling,
        "normalize": said[1] if normalize is None else normalize,
    }


def _outputs(count: int, names: Sequence[str]) -> dict[str, Any]:
    """How many labels, with their names where there are as many."""
    named = {"id2label": {number: str(name) for number, name in enumerate(names)}}
    return {"num_labels": count, "id2label": None} if len(names) != count else named


def _check_labels(folder: HubFolder, names: Sequence[str]) -> None:
    """Raise OptionError where the folder has the labels of the data in another order."""
    theirs = [str(name).lower() for _, name in sorted(folder.labels.items())]
    ours = [str(name).lower() for name in names]
    if theirs != ours and sorted(theirs) == sorted(ours):
        expected = (
            f"its labels in the order of the data, {list(names)}; write another order into its config.json"
        )
        raise OptionError("id", theirs, expected)


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no tables of what the weights lack, which the caller tells in its own words."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
