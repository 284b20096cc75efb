"""What to write instead of a line that is no override; what is proposed has been read by Hydra's parser first."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

_GRAMMAR = "https://hydra.cc/docs/1.3/advanced/override_grammar/basic"
_WORD = re.compile(r"""[^\s\[\]{},:"']+""")
_PLAIN = re.compile(r"[A-Za-z0-9_/\-\\+.$%*@?|]+")
_QUOTED_KEY = re.compile(r"""(["'])([^"']*)\1(\s*:)""")


def instead(line: str, is_override: Callable[[str], bool]) -> str:
    """Words that say what to write in place of `line`.

    Args:
        is_override: whether Hydra reads a line, and reads a bracketed value as a list or mapping.
    """
    key, equals, value = line.partition("=")
    if not is_override(f"{key}=VALUE"):
        return f"a key has letters, digits, _ and dots, and is followed by '='; see {_GRAMMAR}"
    if not equals:
        return f"write {key}=VALUE"
    for words, proposed in _proposals(key, value):
        if is_override(proposed):
            return words.format(proposed if proposed == shlex.quote(proposed) else _for_shell(proposed))
    unmatched = [pair for pair in ("[]", "{}", "()") if value.count(pair[0]) != value.count(pair[1])]
    unmatched += [mark for mark in "'\"" if value.count(mark) % 2]
    if unmatched:
        return f"{' '.join(unmatched)} do not match in {value}"
    return f"see {_GRAMMAR}, or write the value in a file of --config-dir"


def _proposals(key: str, value: str) -> Iterator[tuple[str, str]]:
    """(words with a place for it, line) for each way to mend a value, the likeliest first."""
    if value.startswith("="):
        yield "write {}, with one '='", f"{key}={value.lstrip('=')}"
    if value.endswith(","):
        yield "a value is missing after the last comma; write {}", f"{key}={value.rstrip(',')}"
    bracketed = value[:1] in ("[", "{")
    if value.startswith("{"):
        value = _QUOTED_KEY.sub(r"\2\3", value)
        yield "keys within braces take no quotes; write {}", f"{key}={value}"
    if bracketed:
        quoted = _WORD.sub(lambda m: m[0] if _PLAIN.fullmatch(m[0]) else f'"{m[0]}"', value)
        yield "quote words with special characters, once more for the shell: {}", f"{key}={quoted}"
    elif not _is_unmatched(value):
        inner = value.replace("\\", "\\\\").replace('"', '\\"')
        yield "quote a value with special characters twice, once for the shell: {}", f'{key}="{inner}"'


def _is_unmatched(value: str) -> bool:
    return any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")) or value.count('"') % 2 == 1


def _for_shell(line: str) -> str:
    return f"'{line}'" if "'" not in line else shlex.quote(line)
