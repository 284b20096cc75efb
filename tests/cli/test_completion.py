"""What TAB puts in: asked directly, and by bash's own function."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compresskd
from compresskd.cli.completion import SHELLS, words
from compresskd.cli.parser import VERBS

PROJECT = Path(__file__).parent / "my_project"


LINES = [
    ("compresskd ", {"run", "watch", "strategy=", "rank=", "kd."}, {"distill"}),
    ("compresskd stra", {"strategy=", "strategy."}, {"student="}),
    ("compresskd strategy=", {"strategy=distill", "strategy=train"}, {"distill"}),
    ("compresskd -m strategy=distill,tr", {"strategy=distill,train"}, {"strategy=distill"}),
    ("compresskd teacher=re", {"teacher=resnet20"}, {"teacher=mlp"}),
    ("compresskd kd=fitnets kd.", {"kd.alpha=", "kd.match=", "kd.objective."}, {"kd._target_="}),
    ("compresskd kd.", {"kd.alpha=", "kd.temperature="}, {"kd.match="}),
    ("compresskd +kd.al", {"+kd.alpha="}, {"kd.alpha="}),
    ("compresskd measure.latency=", {"measure.latency=true", "measure.latency=false"}, set()),
    ("compresskd tracker=[mlflow,wa", {"tracker=[mlflow,wandb"}, {"wandb"}),
    ("compresskd track x --to mlflow tracker=mlflow tracker.mlflow.", {"tracker.mlflow.uri="}, {"rank="}),
    ("compresskd export x --to ", {"onnx", "dense"}, {"--to"}),
    ("compresskd export --ov", {"--overwrite"}, {"--to"}),
    ("compresskd compare --h", {"--html", "--help"}, set()),
    ("compresskd completion ", set(SHELLS), {"words"}),
    ("compresskd hydra/launcher=", {"hydra/launcher=joblib"}, set()),
    (f"compresskd --config-dir {PROJECT / 'my_conf'} kd=c", {"kd=cosine"}, set()),
]


@pytest.mark.parametrize(
    ("line", "among", "not_among"), LINES, ids=[line.partition(str(PROJECT))[0] for line, _, _ in LINES]
)
def test_words_that_fit(line, among, not_among):
    found = set(words(line))
    assert among <= found
    assert not found & not_among
    assert all(word.startswith(line.split(" ")[-1]) for word in found)


def test_every_verb_is_offered_and_no_mistake_ends_in_an_error():
    assert set(VERBS) <= set(words("compresskd "))
    for line in (
        "compresskd nothing=",
        "compresskd kd.x.y.z",
        "compresskd 'a z",
        "compresskd kd=nosuch kd.",
        "",
        "x",
    ):
        assert words(line) == [] or line in ("", "x")


def completed(line, tmp_path):
    """What bash's function puts in the place of the word at the cursor."""
    program = tmp_path / "bin" / "compresskd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m compresskd "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(compresskd completion bash)"\n'
        f"COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}\n_compresskd 2>/dev/null\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p compresskd >&2\n"
    )
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(compresskd.__file__).parents[1])
    ended = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    assert "-F _compresskd" in ended.stderr
    return ended.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("compresskd strategy=multi", ["multi_stage"]),
        ("compresskd measure.la", ["measure.latency="]),
        ("compresskd wat", ["watch"]),
    ],
    ids=str,
)
def test_the_function_of_bash(line, expected, tmp_path):
    assert completed(line, tmp_path) == expected


def test_each_shell_has_its_script(run_cli):
    for shell in SHELLS:
        outcome = run_cli("completion", shell)
        assert outcome.status == 0
        assert "compresskd completion words" in outcome.out
    assert run_cli("completion", "tcsh").status == 2
