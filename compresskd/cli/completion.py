"""`compresskd completion`: what a shell may put in at the cursor. Nothing is composed, nothing heavy loaded."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from compresskd.config.shipped import conf_dir

SHELLS = ("bash", "zsh", "fish")
_ASK = "compresskd completion words --"
_BASH = f"""\
_compresskd() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" found word
    mapfile -t found < <({_ASK} "$line" 2>/dev/null)
    word="${{line##*[[:space:]]}}"
    COMPREPLY=("${{found[@]#"${{word%"${{word##*[=:]}}"}}"}}")
    [[ ${{#found[@]}} -eq 1 && ${{found[0]}} == *[=.] ]] && compopt -o nospace
}}
complete -o default -F _compresskd compresskd"""
_ZSH = f"""\
_compresskd() {{
    local -a found
    found=("${{(@f)$({_ASK} "$LBUFFER" 2>/dev/null)}}")
    found=(${{found:#}})
    if (( $#found )); then compadd -S '' -- $found; else _files; fi
}}
compdef _compresskd compresskd"""
_FISH = f"complete -c compresskd -a '({_ASK} (commandline -cp))'"
_SCRIPTS = dict(zip(SHELLS, (_BASH, _ZSH, _FISH), strict=True))
_OF_RUNS = ("run", "plan", "evaluate", "track")  # verbs that take overrides
_KEYS = {"evaluate": ("data",), "track": ("tracker",)}  # of verbs that take some of them alone
_FOLDERS = {"teacher": "model", "student": "model"}  # of groups whose files lie elsewhere
_OF_HYDRA = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra/launcher=")
_LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")


def run(arguments: Namespace) -> int:
    """Print the script of a shell, or the words that fit a line up to the cursor."""
    if arguments.shell in _SCRIPTS:
        print(_SCRIPTS[arguments.shell])
    else:
        for word in words(arguments.line or ""):
            print(word)
    return 0


def words(line: str) -> list[str]:
    """Whole words that may stand in place of the last one of a command line, which may be empty."""
    from compresskd.cli.parser import RUN, VERBS

    *before, current = re.split(r"\s+", line.lstrip())
    typed = before[1:]
    verb = typed[0] if typed and typed[0] in VERBS else RUN
    if current.startswith("-"):
        found: Iterator[str] = _flags(verb)
    elif typed and (choices := _choices(verb, typed[-1])) is not None:
        found = iter(choices)
    else:
        found = iter(()) if typed else iter(VERBS)
        if verb in _OF_RUNS:
            found = iter([*found, *_overrides(verb, typed, current)])
    return sorted({word for word in found if word.startswith(current)})


def _actions(verb: str) -> Sequence[Any]:
    from compresskd.cli.parser import VERBS, common

    parser = common()
    VERBS[verb].arguments(parser)
    return parser._actions


def _flags(verb: str) -> Iterator[str]:
    for action in _actions(verb):
        yield from (name for name in action.option_strings if action.help != "==SUPPRESS==")
    yield "--help"


def _choices(verb: str, flag: str) -> Sequence[str] | None:
    """What a flag takes; nothing, so that the shell offers files, where it takes any text; None for no such flag."""
    for action in _actions(verb) if flag.startswith("-") else ():
        if flag in action.option_strings and action.nargs != 0:
            return [*map(str, action.choices or ())]
    if verb == "completion" and flag == verb:
        return SHELLS
    return None


def _overrides(verb: str, typed: Sequence[str], current: str) -> Iterator[str]:
    """Keys, or the values of a key, as whole words."""
    folders = _folders(typed)
    key, equals, value = current.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    path = key[len(sign) :]
    if equals:
        before = value[: max(value.rfind(","), value.rfind("[")) + 1]
        yield from (f"{key}={before}{name}" for name in _values(path, typed, folders))
        return
    allowed = _KEYS.get(verb)
    for name in _keys(path, typed, folders):
        if allowed is None or re.match(rf"({'|'.join(allowed)})[=.]", name):
            yield sign + name


def _folders(typed: Sequence[str]) -> list[Path]:
    """The shipped configuration, and those that the line names."""
    named = [after for flag, after in pairwise(typed) if flag in ("--config-dir", "-cd")]
    named += [word.partition("=")[2] for word in typed if word.startswith("--config-dir=")]
    return [conf_dir(), *(Path(name).expanduser() for name in named)]


def _keys(path: str, typed: Sequence[str], folders: Sequence[Path]) -> Iterator[str]:
    """The keys at the level of a dotted path, `kd.alpha=`; `kd.objective.` where there is more below."""
    above, dot, _ = path.rpartition(".")
    if dot:
        node = _node(above, typed, folders)
    else:
        yield from (f"{group}=" for group in (*_groups(folders), "experiment"))
        yield from _OF_HYDRA
        node = {**{group: {"": None} for group in _groups(folders)}, **_primary()}
    for name, value in node.items():
        if not name.startswith("_") and name not in ("defaults", "hydra"):
            yield f"{above}{dot}{name}{'.' if isinstance(value, dict) and value else '='}"


def _node(path: str, typed: Sequence[str], folders: Sequence[Path]) -> Mapping[str, Any]:
    """What stands at a dotted path: in the chosen file of its group, else in the primary configuration."""
    group, *rest = path.split(".")
    node: Any = {}
    if group in _groups(folders):
        for name in _chosen(group, typed):
            node = {**node, **_read(_FOLDERS.get(group, group), name, folders)}
        node |= {"weights": None} if group in _FOLDERS else {}
    else:
        node = _primary().get(group)
    for part in rest:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _chosen(group: str, typed: Sequence[str]) -> list[str]:
    """The names of a group's files that the line, or else the defaults, choose."""
    for word in reversed(typed):
        if word.startswith(f"{group}="):
            return [name for name in re.split(r"[\[\],]", word.partition("=")[2]) if name]
    defaults = _parsed(conf_dir() / "config.yaml").get("defaults", ())
    return [
        str(entry[group])
        for entry in defaults
        if isinstance(entry, dict) and isinstance(entry.get(group), str)
    ]


def _values(path: str, typed: Sequence[str], folders: Sequence[Path]) -> Iterator[str]:
    if path == "hydra/launcher":
        yield from _LAUNCHERS
    if path in (*_groups(folders), "experiment") or "/" in path:
        for folder in folders:
            place = folder / _FOLDERS.get(path, path).replace(".", "/")
            yield from (file.stem for file in place.glob("*.yaml"))
        return
    above, _, name = path.rpartition(".")
    value = (_node(above, typed, folders) if above else _primary()).get(name)
    if isinstance(value, bool):
        yield from ("true", "false")
    elif isinstance(value, int | float):
        yield str(value)


def _groups(folders: Sequence[Path]) -> list[str]:
    found = {file.parent.name for folder in folders for file in folder.glob("*/*.yaml")}
    return sorted(found - {"model", "experiment"} | (_FOLDERS.keys() if "model" in found else set()))


def _read(group: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    for folder in reversed(folders):
        if (folder / group / f"{name}.yaml").is_file():
            return _parsed(folder / group / f"{name}.yaml")
    return {}


def _primary() -> dict[str, Any]:
    return {k: v for k, v in _parsed(conf_dir() / "config.yaml").items() if k != "defaults"}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
