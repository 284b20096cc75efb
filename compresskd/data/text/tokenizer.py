"""From text to the numbers of its tokens: characters, bytes, or the pieces of a tokenizer.json."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compresskd.options import OptionError, shown

_CODE_POINTS = 0x110000
_ANY_LENGTH = 512  # of a text, where neither the user nor the tokenizer says how many tokens a model takes
_LONGEST = 1_000_000  # transformers write 1e30 where a tokenizer has no limit
_SAID = "characters, bytes, or a folder with tokenizer.json in it, such as that of the teacher"


@dataclass(frozen=True)
class Encoded:
    """One text.

    Attributes:
        ids: [L] int32. types: [L] int32, the segment of each token. truncated: whether the text was longer.
        words: [L] the word that each token is a piece of, None for special tokens; empty unless asked for.
    """

    ids: np.ndarray
    types: np.ndarray
    truncated: bool
    words: Sequence[int | None] = ()


class Tokenizer(ABC):
    """Cuts text into tokens; a frozen value.

    Attributes:
        vocabulary_size: numbers of tokens are below it.
        padding_id: what fills up a batch; it is masked, so that any number does.
        max_length: tokens that a text may have where the user does not say; None for any number.
        has_types: whether inputs need `token_type_ids`.
    """

    padding_id: int = 0
    max_length: int | None = None
    has_types: bool = False

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Numbers of tokens are below it."""

    @abstractmethod
    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int | None
    ) -> list[Encoded]:
        """Texts with the special tokens that a model expects around them, cut at `max_length` tokens."""

    @abstractmethod
    def pieces(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids [T] int32 of a text without special tokens, and the UTF-8 bytes [T] int64 that each stands for."""

    def frame(self) -> tuple[int, int]:
        """How many special tokens stand before and after a text."""
        return 0, 0

    @abstractmethod
    def begin_words(self, ids: np.ndarray) -> np.ndarray:
        """[T] bool, which of the tokens [T] of a text, without special ones, are the first of a word."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values that `described` makes the tokenizer of again."""

    def encode_words(self, texts: Sequence[Sequence[str]], max_length: int | None) -> list[Encoded]:
        """Texts that are cut into words already. Raises OptionError where this tokenizer cannot tell words."""
        del texts, max_length
        expected = (
            "a folder with tokenizer.json in it, such as that of the teacher: words are cut into pieces"
        )
        raise OptionError("tokenizer", next(iter(self.describe())), expected)


class _Plain(Tokenizer):
    """Each unit of a text is a token."""

    @abstractmethod
    def _spaces(self) -> np.ndarray:
        """[V] bool, which tokens are between words."""

    def begin_words(self, ids: np.ndarray) -> np.ndarray:
        """Those after a space."""
        space = self._spaces()[ids]
        return ~space & np.concatenate([[True], space[:-1]])

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int | None
    ) -> list[Encoded]:
        """Ids alone: there are no special tokens, and so no pairs."""
        if pairs is not None:
            named = next(iter(self.describe()))
            raise OptionError("pair_column", named, "null: this tokenizer has no token between two texts")
        found = [self.pieces(text)[0] for text in texts]
        return [
            Encoded(ids[:max_length], np.zeros_like(ids[:max_length]), len(ids) > (max_length or len(ids)))
            for ids in found
        ]


@dataclass(frozen=True)
class Characters(_Plain):
    """Each of the characters, in their order, is a token."""

    characters: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Characters":
        """Those that occur in the texts, by code point."""
        seen = np.zeros(_CODE_POINTS, bool)
        for text in texts:
            seen[code_points(text)] = True
        return cls("".join(map(chr, seen.nonzero()[0])))

    @property
    def vocabulary_size(self) -> int:
        """How many characters there are."""
        return len(self.characters)

    @cached_property
    def _numbers(self) -> np.ndarray:
        numbers = np.full(_CODE_POINTS, -1, np.int32)
        numbers[code_points(self.characters)] = np.arange(len(self.characters))
        return numbers

    def _spaces(self) -> np.ndarray:
        return np.array([character.isspace() for character in self.characters])

    def pieces(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError for a character that is none of them."""
        codes = code_points(text)
        ids = self._numbers[codes]
        if len(ids) and ids.min() < 0:
            unknown = chr(codes[ids.argmin()])
            raise ValueError(
                f"expected the {len(self.characters)} characters of the training data, got {unknown!r}"
            )
        return ids, utf8_lengths(codes)

    def describe(self) -> dict[str, Any]:
        """The characters."""
        return {"characters": self.characters}


@dataclass(frozen=True)
class Bytes(_Plain):
    """Each byte of the UTF-8 form is a token."""

    @property
    def vocabulary_size(self) -> int:
        """256."""
        return 256

    def _spaces(self) -> np.ndarray:
        return np.array([byte < 0x80 and chr(byte).isspace() for byte in range(256)])

    def pieces(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Bytes as numbers."""
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        return ids, np.ones(len(ids), np.int64)

    def describe(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {"bytes": True}


@dataclass(frozen=True, eq=False)
class Pieces(Tokenizer):
    """A `tokenizers.Tokenizer`."""

    rust: Any
    padding_id: int = 0
    max_length: int | None = _ANY_LENGTH
    has_types: bool = False

    @cached_property
    def _size(self) -> int:
        return max(self.rust.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def vocabulary_size(self) -> int:
        """One above the largest number of a token."""
        return self._size

    def frame(self) -> tuple[int, int]:
        """Those that its post-processor adds."""
        self.rust.no_padding()
        self.rust.no_truncation()
        special = self.rust.encode("a").special_tokens_mask
        own = [place for place, is_special in enumerate(special) if not is_special] or [len(special)]
        return own[0], len(special) - 1 - own[-1]

    @cached_property
    def _begins_word(self) -> np.ndarray | None:
        """[V] bool by the marks of WordPiece and byte-level or SentencePiece tokens; None where there are none."""
        tokens = [self.rust.id_to_token(number) or "" for number in range(self.vocabulary_size)]
        prefix = getattr(self.rust.model, "continuing_subword_prefix", None)
        if prefix:
            return np.array([not token.startswith(prefix) for token in tokens])
        found = np.array([token.startswith(("\u0120", "\u010a", "\u2581")) for token in tokens])
        return found if found.any() else None

    def begin_words(self, ids: np.ndarray) -> np.ndarray:
        """Those that the tokenizer marks so, and the first; of one without marks, all."""
        begins = self._begins_word
        found = np.ones(len(ids), bool) if begins is None else begins[ids].copy()
        found[:1] = True
        return found

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int | None
    ) -> list[Encoded]:
        """As the tokenizer's own post-processor makes of each text, or of two."""
        given = texts if pairs is None else list(zip(texts, pairs, strict=True))
        return self._encode(given, max_length)

    def encode_words(self, texts: Sequence[Sequence[str]], max_length: int | None) -> list[Encoded]:
        """As `encode`, with the word that each token is of."""
        return self._encode([list(words) for words in texts], max_length, is_pretokenized=True)

    def _encode(self, given: Sequence[Any], max_length: int | None, **options: Any) -> list[Encoded]:
        self.rust.no_padding()
        if max_length is None:
            self.rust.no_truncation()
        else:
            self.rust.enable_truncation(max_length)
        return [
            Encoded(
                np.array(each.ids, np.int32),
                np.array(each.type_ids, np.int32),
                bool(each.overflowing),
                each.word_ids if options else (),
            )
            for each in self.rust.encode_batch(given, **options)
        ]

    def pieces(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """A character that is cut into several tokens is counted at the first, one that is dropped at the next."""
        self.rust.no_padding()
        self.rust.no_truncation()
        encoded = self.rust.encode(text, add_special_tokens=False)
        ids = np.array(encoded.ids, np.int32)
        ends = np.array(encoded.offsets, np.int64).reshape(-1, 2)[:, 1]
        before = np.concatenate([[0], utf8_lengths(code_points(text)).cumsum()])
        return ids, np.diff(before[np.maximum.accumulate(ends)], prepend=0)

    def describe(self) -> dict[str, Any]:
        """Its JSON, without how long a text may be."""
        self.rust.no_padding()
        self.rust.no_truncation()
        return {"json": self.rust.to_str(), "padding_id": self.padding_id, "has_types": self.has_types}


def code_points(text: str) -> np.ndarray:
    """[T] uint32, of each character."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def utf8_lengths(codes: np.ndarray) -> np.ndarray:
    """[T] int64, how many bytes each character takes."""
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def tokenizer_of(named: str | None, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that the user names: characters (those of `texts`), bytes, a folder, a file, or a hub id.

    Raises OptionError for what is none of them.
    """
    if named is None:
        raise OptionError("tokenizer", None, _SAID)
    if named == "characters":
        return Characters.of(texts())
    if named == "bytes":
        return Bytes()
    path = Path(named).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    return _from_file(file) if file.is_file() else _from_transformers(named)


def described(plain: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.describe` told of. Raises ValueError for anything else."""
    if isinstance(plain.get("characters"), str):
        return Characters(plain["characters"])
    if plain.get("bytes") is True:
        return Bytes()
    if not isinstance(plain.get("json"), str):
        raise ValueError(f"expected a tokenizer's characters, bytes or json, got {shown(dict(plain))}")
    from tokenizers import Tokenizer as Rust

    return Pieces(Rust.from_str(plain["json"]), int(plain["padding_id"]), has_types=bool(plain["has_types"]))


def _from_file(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Rust

    try:
        rust = Rust.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise OptionError("tokenizer", str(file), f"a tokenizer.json ({error})") from error
    beside = file.with_name("tokenizer_config.json")
    try:
        config = json.loads(beside.read_text()) if beside.is_file() else {}
    except ValueError as error:
        raise OptionError("tokenizer", str(beside), f"JSON ({error})") from error
    padding = (rust.padding or {}).get("pad_id")
    # where no token is for padding, the one that ends a text, which stands within none
    named = [_token(config, name, rust) for name in ("pad_token", "eos_token")]
    number = next((number for number in (named[0], padding, named[1]) if number is not None), None)
    longest = config.get("model_max_length") or (rust.truncation or {}).get("max_length")
    return _pieces(rust, number, longest, config.get("model_input_names"))


def _token(config: Mapping[str, Any], name: str, rust: Any) -> int | None:
    """The number of a special token, where there is one."""
    token = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return rust.token_to_id(token) if isinstance(token, str) else None


def _from_transformers(named: str) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        expected = f"{_SAID}; others need transformers: pip install transformers"
        raise OptionError("tokenizer", named, expected) from error
    try:
        loaded: Any = AutoTokenizer.from_pretrained(named, use_fast=True, trust_remote_code=False)
        rust = loaded.backend_tokenizer
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        expected = f"{_SAID}, or the id of a model on the hub ({type(error).__name__}: {said})"
        raise OptionError("tokenizer", named, expected) from error
    padding_id = loaded.eos_token_id if loaded.pad_token_id is None else loaded.pad_token_id
    return _pieces(rust, padding_id, loaded.model_max_length, loaded.model_input_names)


def _pieces(rust: Any, padding_id: int | None, longest: Any, inputs: Sequence[str] | None) -> Pieces:
    is_length = isinstance(longest, int | float) and 0 < longest < _LONGEST
    rust.no_padding()
    # without special tokens nobody chose the segments of a pair: it is what the library says of any
    chosen = rust.num_special_tokens_to_add(True) > 0 and any(rust.encode("a", "a").type_ids)
    types = chosen and (inputs is None or "token_type_ids" in inputs)
    return Pieces(rust, padding_id or 0, int(longest) if is_length else _ANY_LENGTH, types)
