"""Every task through every strategy, with and without bits: python benchmarks/tasks_matrix.py [--only NAMES] [--kd].

Tiny models on tiny data (tests/small_tasks.py), a few updates each: what is shown is that it works, not how well. A
cell is the test metric by which the task selects and the bytes of the model file, or the error. With --kd the rows are
the distillation objectives, by strategy=distill. What does not fit the task or its models has to be refused before
anything is trained, and a cell says so. --only takes names of tasks, strategies and objectives, by comma.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from programs import Program
from small_tasks import BITS, OBJECTIVES, STRATEGIES, arguments, typed_for, typed_of

REFUSED, FAILED = "refused", "FAILED"


def run(typed: list[str], folder: Path) -> str:
    """One cell."""
    folder.mkdir()
    program = Program([*typed, f"hydra.run.dir={folder / 'run'}"], folder, folder.parent)
    code = program.finish(600)
    if code == 0:
        record = json.loads((folder / "run" / "record.json").read_text())
        final = next(stage for stage in record["stages"] if stage["name"] == record["final"])
        monitor = record["task"]["monitor"]
        return f"{final['metrics'][f'test_{monitor}']:.3g} {monitor}, {final['size']['file_bytes']:,} B"
    program.kill()
    said = [line for line in program.text.splitlines() if line.startswith(("compresskd", "  ", "Error"))]
    if code == 2 and not (folder / "run").exists():
        return f"{REFUSED}: {' '.join(said)[:400]}"
    return f"{FAILED}, exit {code}: {' '.join(said)[-400:]}"


def cell(folder: Path, typed: tuple[str, ...], chosen: tuple[str, ...] | None, name: str) -> str:
    """What a cell says; `chosen` is None where it has to be refused, the plain name being typed."""
    said = run([*typed, *((name,) if chosen is None else chosen)], folder)
    refused = said.startswith(REFUSED)
    if chosen is None:
        return "refused" if refused else f"{FAILED} to refuse: {said}"
    return f"{FAILED}, {said}" if refused else said


def main() -> int:
    """Print the table; the exit code is 1 where a cell is not what it has to be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="tasks, strategies and objectives, by comma")
    parser.add_argument("--kd", action="store_true", help="the objectives in place of the strategies")
    options = parser.parse_args()
    only = {name for name in options.only.split(",") if name}
    names = OBJECTIVES if options.kd else STRATEGIES
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        of_task = arguments(Path(folder))
        tasks = [task for task in of_task if not only & {*of_task} or task in only]
        rows = [name for name in names if not only & {*names} or name in only]
        print(f"| {'kd' if options.kd else 'strategy'} | bits | " + " | ".join(tasks) + " |")
        print("|---|---|" + "---|" * len(tasks))
        for name, bits in itertools.product(rows, ["null"] if options.kd else BITS):
            cells = []
            for task in tasks:
                folder_of_cell = Path(folder) / f"{name}_{bits}_{task}"
                typed = (*of_task[task], f"bits={bits}", *(["strategy=distill"] if options.kd else []))
                chosen = typed_for(name, task) if options.kd else typed_of(name)
                plain = f"{'kd' if options.kd else 'strategy'}={name}"
                cells.append(cell(folder_of_cell, typed, chosen, plain))
            failed += sum(each.startswith(FAILED) for each in cells)
            print(f"| {name} | {bits} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{failed} cells failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
