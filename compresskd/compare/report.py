"""The HTML report: one file that asks for nothing from outside and runs no script but its own.

Everything that comes from a record goes through `escape`; style and script are constants of the template, and
the content security policy names them by their hashes, so that nothing else could run even if it got in.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from compresskd.compare import numbers, plots, tables
from compresskd.compare.comparison import Comparison
from compresskd.compare.curves import Curve, curve, read_epochs
from compresskd.compare.factors import factor_table
from compresskd.compare.grouping import Group
from compresskd.compare.output import MARKS
from compresskd.compare.pairing import PairedTests
from compresskd.compare.records import LayerRecord, Record, RecordError, read_record
from compresskd.compare.study import Entry
from compresskd.compare.tables import Cell, Column, Table

CAP = 100  # rows shown before "show all"
MAX_POINTS = 2_000
MAX_DETAILED = plots.NUM_COLOURS  # groups with curves and ranks: as many as colours can tell apart
RUNS_PER_GROUP = 5
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def html(
    title: str, head: Sequence[str], comparison: Comparison, tests: PairedTests, first: Sequence[Table] = ()
) -> str:
    """The whole document; tables of whoever asked for it come first."""
    detailed = [group for group in comparison.groups if group.counted] or list(comparison.groups)
    detailed = detailed[:MAX_DETAILED]
    records = {id(group): _first_record(comparison, group) for group in detailed}
    sections = [
        *((f"own{number}", escape(table.title), _table(table)) for number, table in enumerate(first)),
        ("results", "Results", _table(tables.group_table(comparison, tests, every_number=True))),
        ("factors", "Compression by factor", _table(factor_table(comparison))),
        ("plots", "Accuracy against cost", _scatters(comparison)),
        ("tests", "Paired tests", _table(tables.paired_table(comparison, tests), "tests")),
        ("curves", "Training curves", _curves(comparison, detailed)),
        ("layers", "Ranks per layer", _layers(comparison, detailed, records)),
        ("config", "Configuration", _table(tables.difference_table(comparison)) + _common(comparison)),
        ("flags", "Flags", _table(tables.flag_table(comparison), "flags")),
        ("unread", "Not read", _table(tables.problem_table(comparison))),
        ("runs", "Every run", _table(tables.record_table(comparison))),
    ]
    filled = [(name, heading, body) for name, heading, body in sections if body]
    return _page(
        title=escape(title),
        lead="".join(f"<p>{escape(line)}</p>" for line in [*head, *_origin(records.values())]),
        navigation="".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in filled),
        sections="".join(
            f'<section id="{name}"><h2>{heading}</h2>{body}</section>' for name, heading, body in filled
        ),
    )


def _page(**places: str) -> str:
    template = files("compresskd.compare").joinpath("report.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    for tag in ("style", "script"):
        content = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        policy += f"; {tag}-src 'sha256-{digest}'"
    places |= {"policy": policy, "generator": MARKS["html"]}
    return _PLACE.sub(lambda place: places[place[1]], template)  # one pass: values are not searched again


def _table(table: Table, method: str = "") -> str:
    if not table.rows:
        return ""
    head = "".join(_heading(column) for column in table.columns)
    body = "".join(
        f"<tr{' class=over' if number >= CAP else ''}>{''.join(map(_cell, row, table.columns))}</tr>"
        for number, row in enumerate(table.rows)
    )
    texts = [*table.notes, *([_METHODS[method]] if method else [])]
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in texts)
    return (
        f'<div class="sortable" data-cap="{CAP}"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(table.title)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>{notes}"
    )


def _heading(column: Column) -> str:
    kind = " class=number" if column.numeric else ""
    hint = f' title="{escape(column.help)}"' if column.help else ""
    return f"<th scope=col{kind}{hint}>{escape(column.name)}</th>"


def _cell(cell: Cell, column: Column) -> str:
    kinds = " ".join(filter(None, ["number" if column.numeric else "", cell.kind]))
    order = (
        ""
        if cell.order is None
        else f"{cell.order:.17g}"
        if isinstance(cell.order, float | int)
        else cell.order
    )
    attributes = f' class="{kinds}"' if kinds else ""
    if order != cell.text:
        attributes += f' data-v="{escape(order)}"'
    return f"<td{attributes}>{escape(cell.text)}</td>"


def _scatters(comparison: Comparison) -> str:
    sizes: dict[tuple[object, ...], int] = {}
    for group in comparison.groups:
        sizes[group.identity] = sizes.get(group.identity, 0) + bool(group.counted)
    usual = max(sizes, key=lambda identity: sizes[identity])
    drawn = [group for group in comparison.groups if group.identity == usual and group.counted]
    series, legend = _series(comparison, drawn)
    figures = [_scatter(comparison, drawn, cost, series) for cost in numbers.COSTS]
    if not any(figures):
        return ""
    others = sum(sizes.values()) - len(drawn)
    some = "1 group" if others == 1 else f"{others} groups"
    note = f"<p class=note>Not drawn: {some} of other data, test set or schema.</p>" if others else ""
    return f'{legend}<div class="figures">{"".join(figures)}</div>{note}'


def _series(comparison: Comparison, groups: Sequence[Group]) -> tuple[dict[int, int], str]:
    """Series number of each group (by the first key, the strategy as a rule) and the legend."""
    if not comparison.by:
        return dict.fromkeys(map(id, groups), 0), ""
    found: dict[str, int] = {}
    series = {id(group): found.setdefault(group.values[0], len(found)) for group in groups}
    items = "".join(
        f"<li>{plots.swatch(number)}{escape(text)}</li>" for text, number in list(found.items())[:24]
    )
    return series, f'<ul class="legend" aria-label="{escape(comparison.by[0])}">{items}</ul>'


def _scatter(comparison: Comparison, groups: Sequence[Group], cost: str, series: Mapping[int, int]) -> str:
    name, metric = comparison.cost_name(cost), comparison.metric
    factor = 100 if numbers.is_fraction(metric) else 1
    points = []
    for group in groups:
        x, summary = group.mean(name), group.summaries.get(metric)
        if x is None or x <= 0 or summary is None:
            continue
        low, high = (None if end is None else factor * end for end in (summary.low, summary.high))
        label = comparison.label(group)
        title = (
            f"{label}: {numbers.show(metric, summary.mean)} ({numbers.label(metric)}, n {summary.n}), "
            f"{numbers.show(name or '', x)} {numbers.label(name or '')}"
        )
        on_front = cost in group.fronts
        points.append(
            plots.Point(x, factor * summary.mean, low, high, series[id(group)], title, label, on_front)
        )
    if not points:
        return ""
    kept = [point for point in points if point.on_front]
    kept += [point for point in points if not point.on_front][: max(0, MAX_POINTS - len(kept))]
    left = f" The first {len(kept)} of {len(points)} groups." if len(kept) < len(points) else ""
    better_high = not numbers.lower_is_better(metric)
    picture = plots.scatter(kept, numbers.label(name or ""), numbers.label(metric), better_high)
    caption = f"Group means with 95% intervals; the line is the Pareto front.{left}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _curves(comparison: Comparison, groups: Sequence[Group]) -> str:
    epochs = [
        (number, entry.run, read_epochs(entry.directory))
        for number, group in enumerate(groups)
        for entry in _some_runs(comparison, group)
    ]
    figures, thinned = [], False
    monitors = dict.fromkeys(f"validation_{e.monitor}" for g in groups for e in _some_runs(comparison, g))
    for name, text in (*((name, numbers.label(name)) for name in monitors), ("train_loss", "training loss")):
        found: list[tuple[int, str, Curve]] = [(n, run, curve(lines, name)) for n, run, lines in epochs]
        if any(one.points for _, _, one in found):
            factor = 100 if numbers.is_fraction(name) else 1
            figures.append(f"<figure>{plots.lines(found, text, lambda y, k=factor: k * y)}</figure>")
            thinned = thinned or any(one.total > len(one.points) for _, _, one in found)
    if not figures:
        return ""
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-toggle="{number}">{plots.swatch(number)}'
        f"{escape(comparison.label(group))}</button></li>"
        for number, group in enumerate(groups)
    )
    note = (
        f"The first {len(groups)} groups of the table, up to {RUNS_PER_GROUP} runs of each; a tick marks the "
    )
    note += "start of a stage." + (" Long curves are thinned to 200 points." if thinned else "")
    figures = f'<div class="figures">{"".join(figures)}</div>'
    return f'<ul class="legend">{buttons}</ul>{figures}<p class=note>{note}</p>'


def _some_runs(comparison: Comparison, group: Group) -> list[Entry]:
    unique = {entry.directory: entry for entry in comparison.entries(group.counted or group.members)}
    return list(unique.values())[:RUNS_PER_GROUP]


def _first_record(comparison: Comparison, group: Group) -> tuple[Entry, Record] | None:
    for entry in _some_runs(comparison, group)[:1]:
        try:
            return entry, read_record(entry.path)
        except RecordError:  # it was there a moment ago; the tables hold what was read then
            return None
    return None


def _layers(
    comparison: Comparison,
    groups: Sequence[Group],
    records: Mapping[int, tuple[Entry, Record] | None],
) -> str:
    blocks = []
    for group in groups:
        found = records[id(group)]
        stage = found[1].stage(found[0].stage) if found else None
        if found is None or stage is None or not (stage.layers or stage.skipped):
            continue
        rows = "".join(_layer(name, layer) for name, layer in stage.layers.items())
        skipped = "".join(
            f"<tr><td>{escape(name)}</td><td colspan=5>left dense: {escape(reason)}</td></tr>"
            for name, reason in stage.skipped.items()
        )
        blocks.append(
            f"<details{' open' if not blocks else ''}><summary>{escape(comparison.label(group))} "
            f"<small>{escape(found[0].run)}, stage {escape(stage.name)}</small></summary>"
            '<div class="scroll"><table><thead><tr><th>layer</th><th>kind</th><th>ranks</th>'
            "<th class=number>parameters</th><th class=number>dense</th><th>share kept</th></tr></thead>"
            f"<tbody>{rows}{skipped}</tbody></table></div></details>"
        )
    return "".join(blocks)


def _layer(name: str, layer: LayerRecord) -> str:
    now, dense = layer.num_parameters, layer.num_parameters_dense
    share = now / dense if now is not None and dense else None
    bar = "–" if share is None else f"{_bar(share)} {share:.1%}"
    return (
        f"<tr><td>{escape(name)}</td><td>{escape(layer.kind)}</td>"
        f"<td>{escape(' · '.join(map(str, layer.ranks)) or '–')}</td>"
        f"<td class=number>{numbers.show('', now)}</td><td class=number>{numbers.show('', dense)}</td>"
        f"<td>{bar}</td></tr>"
    )


def _bar(share: float) -> str:
    width = round(120 * min(max(share, 0.0), 1.0), 1)
    return (
        '<svg viewBox="0 0 120 10" class="bar" aria-hidden="true"><rect class="rest" width="120" height="10"/>'
        f'<rect width="{width}" height="10"/></svg>'
    )


def _common(comparison: Comparison) -> str:
    differing = comparison.keys.differing
    equal = sorted((key, text) for key, text in comparison.study.base.items() if key not in differing)
    if not equal:
        return ""
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in equal)
    return (
        f"<details><summary>{len(equal)} keys are equal in all records</summary>"
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )


def _origin(records: object) -> list[str]:
    """One line on what produced the first group, for whoever wants to repeat it."""
    found = next((one for one in records if one), None)  # type: ignore[attr-defined]
    if found is None:
        return []
    record: Record = found[1]
    hardware = ", ".join(found[0].hardware) or "unknown hardware"
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    revision = f", revision {record.revision[:12]}" if record.revision else ""
    return [
        f"First group: {record.data.name or 'unknown data'}; {hardware}; {versions or 'no versions'}{revision}."
    ]


_METHODS = {
    "tests": "Interval and p of the difference: paired bootstrap, 10,000 resamples of test samples and seeds "
    "(the same samples for every seed), percentile interval, two-sided. p (Holm): corrected for all comparisons "
    "with the reference. Over seeds: Student interval of the per-seed differences. McNemar: exact, two-sided, one "
    "test a seed, corrected over the groups.",
    "flags": "Failed, interrupted and running runs, older duplicates, teachers of other runs and runs without the "
    "metric are shown and do not enter means, tests or fronts. Fronts and tests stay within one data set, test set "
    "and schema. Latency from other hardware or another number of threads does not enter means of latency.",
}
