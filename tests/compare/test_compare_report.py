import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from compresskd.compare import main
from compresskd.compare.curves import curve, read_epochs, thin
from compresskd.compare.plots import linear_axis, log_axis, short

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Elements with their attributes, text by section, and what was left open."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text, self.section = [], [], {}, "head"
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder, *arguments):
    path = folder.parent / "report.html"
    assert main([str(folder), "--html", str(path), *arguments]) == 0
    return path.read_text(encoding="utf-8")


def epochs(folder, num=5, stage="distill"):
    lines = [
        {"stage": stage, "epoch": e, "validation_accuracy": 0.5 + e / 100, "train_loss": 2 - e / 100}
        for e in range(num)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def page(sweep):
    for folder in sweep.iterdir():
        epochs(folder)
    return report(sweep)


def test_the_report_has_every_part_and_is_well_formed(page):
    parsed = Page(page)
    assert parsed.open == []
    sections = [attributes["id"] for attributes in parsed.of("section")]
    assert sections == ["results", "plots", "tests", "curves", "layers", "config", "runs"]
    assert [a["href"] for a in parsed.of("a")] == [f"#{name}" for name in sections]
    assert "89.50" in parsed.text["results"]
    assert "TTLinear" in parsed.text["layers"]
    assert "left dense: break-even" in parsed.text["layers"]
    assert "rank16 (3), 4 (3)groups" in parsed.text["config"]
    assert "6 records (6 finished)" in parsed.text["head"]


def test_plots_are_drawn_with_their_front(page):
    plots = [
        ElementTree.fromstring(text) for text in re.findall(r"<svg .*?</svg>", page) if 'class="plot"' in text
    ]
    labels = [plot.get("aria-label") for plot in plots]
    assert labels[0] == "test accuracy (%) against bytes: 2 groups, 2 on the Pareto front"
    assert labels[2] == "test accuracy (%) against latency batch 1 (ms): 2 groups, 2 on the Pareto front"
    assert labels[3:] == [
        "validation accuracy (%) over the epochs of 6 runs",
        "training loss over the epochs of 6 runs",
    ]
    kinds = [element.get("class") for element in plots[0].iter()]
    assert kinds.count("point best") == 2
    assert kinds.count("front") == 1
    assert kinds.count("interval") == 2
    assert [e.get("class") for e in plots[3].iter()].count("curve") == 6


def test_nothing_can_be_asked_from_outside(page):
    parsed = Page(page)
    policy = next(a["content"] for a in parsed.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; base-uri 'none'; form-action 'none';")
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert [
        a for tag, a in parsed.elements if any(key in a for key in ("src", "srcset", "action", "style"))
    ] == []
    assert [a["href"] for a in parsed.of("link")] == ["data:,"]
    assert "http://" not in page
    assert "https://" not in page
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def test_hostile_records_are_harmless(tmp_path, run):
    folder = tmp_path / "runs"
    for number in range(2):
        run(
            folder / f"<script>alert({number})<" / "script>",
            config__rank=number,
            config__note=EVIL + str(number),
            strategy=EVIL,
            status="failed" if number else "finished",
            error={"type": EVIL, "message": EVIL},
            versions={EVIL: EVIL},
            data__name="{{policy}}{{sections}}",
            stages__0__name=EVIL,
            final=EVIL,
            stages__0__layers={EVIL: {"kind": EVIL, "ranks": [1, EVIL]}},
            stages__0__skipped={EVIL: EVIL},
        )
    page = report(folder)
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.of("script")) == 1
    assert parsed.of("img") == []
    assert "<script>alert(0)<" in parsed.text["runs"]
    assert "{{policy}}" in parsed.text["head"]
    for text in re.findall(r"<svg .*?</svg>", page):
        ElementTree.fromstring(text)


def test_long_tables_are_capped_for_the_reader(tmp_path, run):
    for number in range(150):
        run(tmp_path / "runs" / str(number), config__rank=number)
    parsed = Page(report(tmp_path / "runs"))
    assert (
        sum(a.get("class") == "over" for a in parsed.of("tr")) == 2 * 50
    )  # groups and runs beyond a hundred


def test_flags_and_unread_files_are_in_the_report(sweep, run):
    run(sweep / "bad", status="failed", error={"type": "NonFiniteLoss", "message": "nan"})
    (sweep / "cut").mkdir()
    (sweep / "cut" / "record.json").write_text("{")
    parsed = Page(report(sweep))
    assert "NonFiniteLoss: nan" in parsed.text["flags"]
    assert "cut off or damaged" in parsed.text["unread"]


def test_a_report_of_failures_only(tmp_path, run):
    run(tmp_path / "runs" / "a", status="failed", stages=[], final=None)
    parsed = Page(report(tmp_path / "runs"))
    assert [a["id"] for a in parsed.of("section")] == ["results", "config", "flags", "runs"]


def test_curves_survive_damage_and_resumes(tmp_path):
    assert read_epochs(tmp_path) == []
    lines = [
        {"stage": "a", "epoch": 0, "train_loss": 3.0},
        {"stage": "a", "epoch": 1, "train_loss": 2.0},
        {"stage": "a", "epoch": 1, "train_loss": 1.5},
        {"stage": "b", "epoch": 0, "train_loss": float("nan")},
        {"stage": "b", "epoch": 1, "train_loss": 1.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\nnull\n{"stage": "b", "ep'
    (tmp_path / "metrics.jsonl").write_text(text)
    found = curve(read_epochs(tmp_path), "train_loss")
    assert found.points == ((0, 3.0), (1, 1.5), (3, 1.0))
    assert found.starts == ((0, "a"), (2, "b"))
    assert curve(read_epochs(tmp_path), "absent").points == ()


def test_thinning_keeps_both_ends():
    points = [(i, float(i)) for i in range(1000)]
    found = thin(points, 200)
    assert len(found) == 200
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert thin(points[:5], 200) == points[:5]


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [5, 5.0001], [-3, 1e6], [0.895, 0.795], [1e-9, 2e-9]])
def test_linear_axis_has_round_ticks_inside(values):
    axis = linear_axis(values, 100, 0)
    assert 2 <= len(axis.ticks) <= 9
    assert all(0 <= axis(tick) <= 100 for tick, _ in axis.ticks)
    assert all(0 < axis(value) < 100 for value in values)


@pytest.mark.parametrize("values", [[1], [4000, 16000], [1e3, 1e9], [0.037, 0.038], [7, 7.001], [1e-5, 1e5]])
def test_log_axis_has_ticks_inside(values):
    axis = log_axis(values, 0, 100)
    assert 2 <= len(axis.ticks) <= 12
    assert all(-0.1 <= axis(tick) <= 100.1 for tick, _ in axis.ticks)
    assert all(0 < axis(value) < 100 for value in values)
    assert short(1500) == "1.5k"
