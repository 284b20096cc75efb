"""`configuration`: every key of the configuration, read from the shipped YAML files and the classes that they name.

What a key means is the comment beside it; where there is none, what the docstring of the class says. Types are those
of the class's signature. Nothing here is a copy that could grow old.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from compresskd import stages
from compresskd.config.shipped import conf_dir
from compresskd.targets.paths import resolve

AS_WRITTEN = ("experiment", "strategy")  # whose files are read whole rather than key by key
PREFIX = {"model": "student"}  # the group that a folder serves, where the names differ


@dataclass(frozen=True)
class Key:
    """One line of a file: its dotted name, its value as written, and the comment beside it."""

    name: str
    value: str
    comment: str


def header(text: str) -> str:
    """The comment that a file begins with, as one paragraph."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or line.startswith("# @package"):
            if lines or not line.startswith("#"):
                break
            continue
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def keys(text: str) -> Iterator[Key]:
    """Every key whose value is no mapping, those of nested mappings too; `defaults` and `hydra` are Hydra's."""
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from _keys(root, "", text.splitlines())


def _keys(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Key]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in ("defaults", "hydra", "objective"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            yield from _keys(value, f"{name}.", lines)
        elif key.value != "_target_":
            start, end = value.start_mark, value.end_mark
            shown = lines[start.line][start.column : end.column if end.line == start.line else None]
            yield Key(name, re.sub(r"\s+#.*", "", shown), _comment(lines, start.line))


def _comment(lines: list[str], at: int) -> str:
    found = re.search(r"\s(#\s.*)$", lines[at])
    if found is None:
        return ""
    parts = [found[1]]
    for line in lines[at + 1 :]:
        if not line.strip().startswith("#") or line.index("#") != found.start(1):
            break
        parts.append(line)
    return " ".join(part.strip().removeprefix("#").strip() for part in parts)


def targets(text: str) -> list[Callable[..., Any]]:
    """The classes and functions that a file names by `_target_`, each once."""
    names = dict.fromkeys(re.findall(r"_target_: ([\w.]+)", text))
    return [resolve(name) for name in names if not name.startswith("torch.")]


def described(made: Callable[..., Any]) -> dict[str, str]:
    """What a docstring's `Args` or `Attributes` say of each name."""
    found: dict[str, str] = {}
    name = ""
    inside = False
    for line in (inspect.getdoc(made) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes):", line):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and (entry := re.match(r"    (\w+): (.*)", line)):
            name, found[entry[1]] = entry[1], entry[2]
        elif inside and name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def types(made: Callable[..., Any]) -> dict[str, str]:
    """The annotations of a signature, as written."""
    parameters = inspect.signature(made).parameters.values()
    given = {p.name: p.annotation for p in parameters if p.annotation is not inspect.Parameter.empty}
    shown = {
        name: hint if isinstance(hint, str) else inspect.formatannotation(hint)
        for name, hint in given.items()
    }
    return {name: re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", hint) for name, hint in shown.items()}


def reference(made: Callable[..., Any]) -> str:
    """A link to the page of a class or function."""
    return f"{{py:obj}}`{made.__qualname__} <{made.__module__}.{made.__qualname__}>`"


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A Markdown table, without the columns that are empty in every row."""
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)]
    lines = [[head[at] for at in kept], ["---"] * len(kept)]
    lines += [[row[at].replace("|", "\\|") for at in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def of_file(path: Path, group: str) -> str:
    """What one file of a group offers."""
    text = path.read_text(encoding="utf-8")
    title = f"`{group}={path.stem}`" if group else "Top level"
    parts = [f"### {title}" if group else f"## {title}", header(text)]
    if group in AS_WRITTEN:
        return "\n\n".join([*parts, f"```yaml\n{text.strip()}\n```"])
    made = targets(text)
    if made:
        parts.append(f"Builds {', '.join(map(reference, made))}.")
    meaning: dict[str, str] = {}
    hints: dict[str, str] = {}
    for each in reversed(made):  # of names that several have, those of the first count
        meaning |= described(each)
        hints |= types(each)
    prefix = f"{PREFIX.get(group, group.replace('/', '.'))}." if group else ""
    rows = [
        (
            _code(prefix + key.name),
            _code(key.value),
            _code(hints.get(key.name, "")),
            key.comment or meaning.get(key.name, ""),
        )
        for key in keys(text)
    ]
    return "\n\n".join([*parts, table(rows, ("key", "default", "type", "meaning")) if rows else ""])


def of_stage(name: str) -> str:
    """The options of one kind of stage."""
    stage = getattr(stages, name)
    meaning, parameters = described(stage), inspect.signature(stage).parameters
    hints = types(stage)
    rows = [
        (
            _code(each.name),
            _code("" if each.default is each.empty else repr(each.default)),
            _code(hints.get(each.name, "")),
            meaning.get(each.name, ""),
        )
        for each in parameters.values()
    ]
    summary = " ".join((inspect.getdoc(stage) or "").partition("\n\n")[0].split())
    return f"### {name}\n\n{reference(stage)}: {summary}\n\n{table(rows, ('option', 'default', 'type', 'meaning'))}"


def everything() -> str:
    """The text of the whole page below its introduction."""
    folder = conf_dir()
    parts = [of_file(folder / "config.yaml", "")]
    for group in sorted({path.parent for path in folder.rglob("*.yaml")} - {folder}):
        name = group.relative_to(folder).as_posix()
        shown = "`teacher=` and `student=`" if name == "model" else f"`{name}=`"
        parts.append(f"## {shown}")
        parts += [of_file(path, name) for path in sorted(group.glob("*.yaml"))]
    parts.append("## Stages\n\nWhat `strategy.stages.NAME.OPTION` may set, by the kind of the stage NAME.")
    parts += [of_stage(name) for name in stages.__all__]
    return "\n\n".join(parts)


class Configuration(SphinxDirective):
    """All keys, as sections of the page."""

    def run(self) -> list[nodes.Node]:
        """Read the files and the classes, which may have changed without this page."""
        self.env.note_reread()
        return self.parse_text_to_nodes(everything(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("configuration", Configuration)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
