"""`layers-picture`: the rooms of the package on their floors, drawn from the imports that are in the code."""

from collections import defaultdict
from dataclasses import dataclass
from html import escape
from importlib import import_module
from inspect import getdoc

import grimp
import networkx as nx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PACKAGE = "compresskd"
BOX, GAP, HEIGHT, FLOOR = (
    112,
    14,
    34,
    84,
)  # pixels: width of a box, space beside it, its height, from floor to floor


@dataclass(frozen=True)
class Place:
    """Where a room's box stands: its centre and its upper edge."""

    x: float
    y: float


def room_imports() -> nx.DiGraph:
    """An edge from each room to each other room that any of its modules imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = {room for room in graph.find_children(PACKAGE) if not room.rpartition(".")[2].startswith("_")}
    for room in rooms:
        if graph.find_children(room):
            graph.squash_module(room)
    found = nx.DiGraph()
    found.add_nodes_from(sorted(rooms))
    for room in sorted(rooms):
        found.add_edges_from(
            (room, other) for other in sorted(graph.find_modules_directly_imported_by(room) & rooms)
        )
    return found


def floors(imports: nx.DiGraph) -> dict[str, int]:
    """0 for a room that imports no other; else one above the highest that it imports. A circle shares a floor."""
    circles = nx.condensation(imports)
    level: dict[int, int] = {}
    for circle in reversed(list(nx.topological_sort(circles))):
        level[circle] = 1 + max((level[below] for below in circles.successors(circle)), default=-1)
    return {room: level[circles.graph["mapping"][room]] for room in imports}


def places(imports: nx.DiGraph, level: dict[str, int]) -> dict[str, Place]:
    """Every floor centred, its rooms in the order of the mean place of those above that import them."""
    rows: dict[int, list[str]] = defaultdict(list)
    for room in sorted(level):
        rows[level[room]].append(room)
    top, width = max(rows), max(map(len, rows.values())) * (BOX + GAP)
    placed: dict[str, Place] = {}
    for floor in sorted(rows, reverse=True):

        def wanted(room: str) -> float:
            above = [placed[user].x for user in imports.predecessors(room) if user in placed]
            return sum(above) / len(above) if above else width / 2

        row = sorted(rows[floor], key=wanted)
        left = (width - len(row) * (BOX + GAP)) / 2
        for at, room in enumerate(row):
            placed[room] = Place(left + (at + 0.5) * (BOX + GAP), 10 + (top - floor) * FLOOR)
    return placed


def svg(imports: nx.DiGraph, links: dict[str, str]) -> str:
    """The picture; an arrow that follows from others is left out."""
    level = floors(imports)
    placed = places(imports, level)
    width = max(place.x for place in placed.values()) + (BOX + GAP) / 2
    height = max(place.y for place in placed.values()) + HEIGHT + 10
    label = f"{len(placed)} rooms of {PACKAGE} on {max(level.values()) + 1} floors; imports go downward"
    parts = [f'<svg class="layers" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">']
    downward = nx.DiGraph((a, b) for a, b in imports.edges if level[a] > level[b])
    for user, used in nx.transitive_reduction(downward).edges:
        a, b = placed[user], placed[used]
        start, end = a.y + HEIGHT, b.y
        parts.append(
            f'<path d="M{a.x:g} {start:g}C{a.x:g} {start + 30:g} {b.x:g} {end - 30:g} {b.x:g} {end:g}"/>'
        )
    for room, place in placed.items():
        name = room.removeprefix(f"{PACKAGE}.")
        parts.append(
            f'<a href="{links[room]}"><title>{escape(summary(room))}</title>'
            f'<rect x="{place.x - BOX / 2:g}" y="{place.y:g}" width="{BOX}" height="{HEIGHT}" rx="5"/>'
            f'<text x="{place.x:g}" y="{place.y + HEIGHT / 2 + 4.5:g}">{name}</text></a>'
        )
    return "".join([*parts, "</svg>"])


def summary(room: str) -> str:
    """The first paragraph of a room's docstring, on one line."""
    return " ".join((getdoc(import_module(room)) or "").partition("\n\n")[0].split())


class LayersPicture(SphinxDirective):
    """The picture, and below it the floors as a list with the first words of each room's docstring."""

    def run(self) -> list[nodes.Node]:
        """Read the imports, and draw them."""
        self.env.note_reread()  # the code may have changed without this page
        imports = room_imports()
        builder = self.env.app.builder
        links = {
            room: builder.get_relative_uri(
                self.env.docname, f"reference/api/{room.removeprefix(PACKAGE + '.')}"
            )
            for room in imports
        }
        picture = nodes.raw("", svg(imports, links), format="html")
        level = floors(imports)
        rows: dict[int, list[str]] = defaultdict(list)
        for room in sorted(level):
            rows[level[room]].append(f"  - {{py:mod}}`{room}`: {summary(room)}")
        text = "\n".join(
            f"- **Floor {floor}**\n" + "\n".join(rows[floor]) for floor in sorted(rows, reverse=True)
        )
        return [picture, *self.parse_text_to_nodes(text)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("layers-picture", LayersPicture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
