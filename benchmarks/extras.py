"""Every extra by itself: a fresh environment with the wheel and that extra alone, and what it brings imported.

    python benchmarks/extras.py                        # all of them, newest versions
    python benchmarks/extras.py trackers all           # some
    python benchmarks/extras.py --with torch==2.13.0+cpu
    python benchmarks/extras.py --lowest test          # every requirement at its lower bound

A small run is made in each. Of each environment the seconds, the megabytes and the versions of what was imported are
printed; it is removed afterwards. With --keep it stays, for further checks.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {
    "": "compresskd compresskd.cli torch hydra omegaconf",
    "huggingface": "transformers compresskd.models.huggingface",
    "timm": "timm compresskd.models.timm",
    "launchers": "hydra_plugins.hydra_joblib_launcher hydra_plugins.hydra_submitit_launcher",
    "export": "onnx onnx_ir onnxruntime onnxscript ml_dtypes compresskd.export",
    "search": "optuna",
    "trackers": "tensorboard wandb mlflow",
    "docs": "sphinx myst_parser furo grimp networkx",
    "test": "pytest xdist hypothesis torchao transformers build importlinter",
    "all": "transformers timm optuna onnxruntime mlflow wandb tensorboard",
}
RUN = (
    "data=synthetic", "data.num_train=64", "data.num_test=32", "student.hidden=[8]", "teacher.hidden=[64]", "rank=2",
    "bits=4", "epochs=1",
)  # fmt: skip
SHOW = (
    "import importlib, sys\n"
    "for name in sys.argv[1:]:\n"
    "    print(name, getattr(importlib.import_module(name), '__version__', ''), flush=True)\n"
)


def main() -> int:
    """Try the extras; the exit code is 1 where one of them cannot be installed or imported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "extras", nargs="*", default=list(IMPORTS), metavar="EXTRA", help="default: all of them"
    )
    parser.add_argument("--lowest", action="store_true", help="install every requirement at its lower bound")
    parser.add_argument(
        "--with", dest="pins", action="append", default=[], metavar="NAME==VERSION", help="also pinned"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the environments are made, and stay")
    arguments = parser.parse_args()
    place = arguments.keep or Path(tempfile.mkdtemp(prefix="extras-"))
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", place, ROOT],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (wheel,) = place.glob("*.whl")
    failed = [extra for extra in arguments.extras if not tried(extra, wheel, place, arguments)]
    if not arguments.keep:
        shutil.rmtree(place)
    print(f"failed: {', '.join(failed) or 'none'}")
    return bool(failed)


def tried(extra: str, wheel: Path, place: Path, arguments: argparse.Namespace) -> bool:
    """Install one extra into an environment of its own, and import what it brings."""
    started, environment = time.perf_counter(), place / (extra or "core")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    bounds = ["-c", constraints(place, arguments.pins)] if arguments.lowest else []
    bounds += arguments.pins
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    steps = [
        [python, "-m", "pip", "install", "--quiet", *bounds, wanted],
        [python, "-P", "-W", "ignore", "-c", SHOW, *IMPORTS[extra].split()],
        [python, "-P", "-m", "compresskd", *RUN, f"hydra.run.dir={environment.name}-run"],
    ]
    print(f"== {extra or 'core'}{' (lowest)' if arguments.lowest else ''}", flush=True)
    for step in steps:
        ended = subprocess.run(step, cwd=place, capture_output=True, text=True, check=False)
        if ended.returncode:
            print(ended.stdout[-1500:], ended.stderr[-3000:])
            break
        if step is steps[1]:
            print(" ".join(ended.stdout.split()))
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file()) / 1e6
    verdict = "FAILED" if ended.returncode else "ok"
    print(f"{verdict}: {time.perf_counter() - started:.0f} s, {size:,.0f} MB", flush=True)
    if not arguments.keep:
        shutil.rmtree(environment)
    return not ended.returncode


def constraints(place: Path, pins: list[str]) -> Path:
    """A file that holds every requirement of the project at its lower bound, but those that are pinned otherwise."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lowest = {
        found[1]: found[2]
        for found in (re.match(r"([\w.-]+)>=([\d.]+)", line) for line in lines)
        if found is not None and not any(pin.startswith(f"{found[1]}==") for pin in pins)
    }
    path = place / "lowest.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in lowest.items()), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
