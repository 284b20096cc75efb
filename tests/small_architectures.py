"""Architectures that people compress, small and with random weights: transformers' from configurations, timm's by name.

`build(name)` gives a model that takes one tensor and returns one, `inputs(name)` [3, ...] what it takes: token ids
[3, 12], images [3, 3, side, side] or frames [3, 16, 40].
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, LAYERS, HEADS = 120, 32, 2, 4
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
}
_BERT = {**_SIZES, "max_position_embeddings": 40, "num_labels": 3}
_LLAMA = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 40}
_BART = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 40, "pad_token_id": 1, "decoder_start_token_id": 2,
}  # fmt: skip
_IMAGES = {**_SIZES, "image_size": 32, "patch_size": 8}


@dataclass(frozen=True)
class HuggingFace:
    """A model of transformers by the names of its class and its configuration's, and how it is asked."""

    model: str
    config: str
    options: Mapping[str, Any]
    asked: Callable[[nn.Module, Tensor], Any] = field(default=lambda model, ids: model(input_ids=ids).logits)
    shape: tuple[int, ...] | None = None  # of a sample; None for token ids

    def build(self) -> nn.Module:
        """Build it fresh; it takes one tensor."""
        import transformers

        config = getattr(transformers, self.config)(**self.options)
        home = transformers if hasattr(transformers, self.model) else _modeling(config)
        return Asked(getattr(home, self.model)(config), self.asked)


@dataclass(frozen=True)
class Timm:
    """A model of timm by its name."""

    model: str
    side: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image."""
        return 3, self.side, self.side

    def build(self) -> nn.Module:
        """Build it fresh."""
        return import_timm().create_model(self.model, pretrained=False, num_classes=10, **self.options)


class Asked(nn.Module):
    """A model that is asked by one tensor and answers one."""

    def __init__(self, model: nn.Module, asked: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self._asked = model, asked

    def forward(self, inputs: Tensor) -> Tensor:
        return self._asked(self.model, inputs)


def _modeling(config: Any) -> Any:
    home = type(config).__module__.replace(".configuration_", ".modeling_")
    return importlib.import_module(home)


def _translating(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits


def _seeing(model: nn.Module, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels).logits


ARCHITECTURES: dict[str, HuggingFace | Timm] = {
    "bert": HuggingFace("BertForSequenceClassification", "BertConfig", _BERT),
    "distilbert": HuggingFace(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 64,
         "max_position_embeddings": 40, "num_labels": 3},
    ),
    "roberta": HuggingFace("RobertaForSequenceClassification", "RobertaConfig", {**_BERT, "pad_token_id": 1}),
    "albert": HuggingFace(
        "AlbertForSequenceClassification", "AlbertConfig", {**_BERT, "embedding_size": 16}
    ),
    "electra": HuggingFace(
        "ElectraForSequenceClassification", "ElectraConfig", {**_BERT, "embedding_size": 16}
    ),
    "gpt2": HuggingFace(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 40,
         "bos_token_id": 0, "eos_token_id": 0},
    ),
    "llama": HuggingFace("LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen2": HuggingFace("Qwen2ForCausalLM", "Qwen2Config", {**_LLAMA, "tie_word_embeddings": False}),
    "opt": HuggingFace(
        "OPTForCausalLM",
        "OPTConfig",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
         "num_attention_heads": HEADS, "ffn_dim": 64, "max_position_embeddings": 40, "word_embed_proj_dim": 16},
    ),
    "t5": HuggingFace(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS,
         "num_heads": HEADS},
        _translating,
    ),
    "bart": HuggingFace(
        "BartForConditionalGeneration", "BartConfig", {**_BART, "scale_embedding": True}, _translating
    ),
    "whisper_encoder": HuggingFace(
        "WhisperEncoder",
        "WhisperConfig",
        {**_BART, "num_mel_bins": 16, "max_source_positions": 20, "eos_token_id": 2, "bos_token_id": 0},
        lambda model, frames: model(input_features=frames).last_hidden_state,
        (16, 40),
    ),
    "vit": HuggingFace(
        "ViTForImageClassification", "ViTConfig", {**_IMAGES, "num_labels": 3}, _seeing, (3, 32, 32)
    ),
    "clip_vision": HuggingFace(
        "CLIPVisionModel",
        "CLIPVisionConfig",
        _IMAGES,
        lambda model, pixels: model(pixel_values=pixels).pooler_output,
        (3, 32, 32),
    ),
    "timm_resnet18": Timm("resnet18", 32, {"channels": (16, 32, 64, 64), "layers": (1, 1, 1, 1)}),
    "timm_resnetv2": Timm("resnetv2_50", 32, {"channels": (64, 64, 128, 128), "layers": (1, 1, 1, 1)}),
    "timm_convnext": Timm("test_convnext", 32),
    "timm_efficientnet": Timm("test_efficientnet", 32),
    "timm_mobilenetv3": Timm("mobilenetv3_small_050", 32),
    "timm_regnet": Timm("regnetx_002", 32),
    "timm_densenet": Timm("densenet121", 32, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "timm_vit": Timm("test_vit", 32, {"img_size": 32, "patch_size": 8}),
    "timm_deit": Timm(
        "deit_tiny_patch16_224", 32, {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
    ),
    "timm_swin": Timm(
        "swin_tiny_patch4_window7_224",
        64,
        {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    ),
    "timm_mixer": Timm("mixer_s32_224", 64, {"img_size": 64, "mlp_ratio": (0.5, 0.5)}),
    "timm_nfnet": Timm("test_nfnet", 64),
    "timm_xcit": Timm("xcit_nano_12_p16_224", 64, {"img_size": 64, "embed_dim": 64, "depth": 2}),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The architecture of this name, in training mode; what begins at zero (the head of a mixer) is drawn."""
    model = ARCHITECTURES[name].build()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.is_meta and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def inputs(name: str, batch_size: int = 3) -> Tensor:
    """What it takes, the same each time."""
    generator = torch.Generator().manual_seed(0)
    shape = ARCHITECTURES[name].shape
    if shape is None:
        return torch.randint(3, VOCABULARY, (batch_size, 12), generator=generator)
    return torch.randn(batch_size, *shape, generator=generator)


def import_timm() -> Any:
    """Import timm, beside a torch for which there is no torchvision, too: no image is read here, and names will do."""
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    sys.meta_path.append(_Names())
    try:
        return importlib.import_module("timm")
    finally:
        sys.meta_path.pop()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # so that nobody else takes it for installed


class _Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules `torchvision...` in which every name is an empty class."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _OfNames(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _OfNames(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(
            name,
            (nn.Module,),
            {"BILINEAR": 0, "BICUBIC": 1, "NEAREST": 2, "HAMMING": 3, "BOX": 4, "LANCZOS": 5},
        )
