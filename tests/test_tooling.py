"""The tools that keep the house: each must find nothing. Deselect them with -m "not lint" where they are run anyway."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.lint]
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("lint-imports", "--no-cache"),
        ("pyright", "--pythonpath", sys.executable),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_tool_finds_nothing(command):
    assert (BIN / command[0]).exists(), (
        f"{command[0]} is not here; pip install -c constraints.txt -e '.[test]' brings it"
    )
    result = run(*command)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_no_file_names_a_machine_path():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    needles = ["/" + "root/", "/" + "home/", "/" + "farm/"]
    for name in listed.stdout.split():
        text = (ROOT / name).read_text(errors="ignore")
        assert not [n for n in needles if n in text], name
