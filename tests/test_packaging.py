"""The package as others get it: an archive of sources, the wheel made of it, and its extras."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from small_sweeps import SMALL

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"huggingface", "timm", "search", "trackers", "export", "launchers", "docs", "test", "all"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both archives; the wheel is made of the sources in the other."""
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(ROOT)]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return place


@pytest.mark.slow
def test_the_wheel_runs_from_another_directory(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    installed, work = tmp_path / "installed", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(installed)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    code = "import compresskd; print(compresskd.__file__)"
    where = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed))
    for arguments in ([*SMALL, "hydra.run.dir=run"], ["compare", "run", "--html", "report.html"]):
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "compresskd", *arguments],
            cwd=work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert (work / "run" / "model" / "model.ckd").exists()
    (metadata,) = (Parser().parsestr(path.read_text()) for path in installed.glob("*.dist-info/METADATA"))
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS


@pytest.mark.slow
def test_the_sources_hold_tests_documentation_and_no_outputs(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    assert {
        "pyproject.toml",
        "conf/config.yaml",
        "tests/test_packaging.py",
        "docs/index.md",
        "LICENSE",
    } <= names
    assert not [name for name in names if name.startswith(("outputs/", ".venv/"))]


def test_all_is_every_extra_but_those_of_developers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) == EXTRAS
    (line,) = extras["all"]
    assert set(line.partition("[")[2].rstrip("]").split(",")) == EXTRAS - {"docs", "test", "all"}
