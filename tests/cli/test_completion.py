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


SCRIPTS = {
    "bash": 'eval "$(compresskd completion bash)"; COMP_LINE="$LINE" COMP_POINT=${#COMP_LINE}\n'
    "_compresskd 2>/dev/null\n"
    "printf '%s\\n' \"${COMPREPLY[@]}\"; complete -p compresskd | grep -q _compresskd",
    # as its editor has it: the line up to the cursor, and the command that takes the words
    "zsh": 'autoload -U compinit; compinit -u -d ./dump; eval "$(compresskd completion zsh)"; LBUFFER=$LINE\n'
    'compadd() { print -l -- "${@:4}" }; _compresskd; [[ $_comps[compresskd] == _compresskd ]]',
    "fish": "compresskd completion fish | source; complete -C $LINE",
}


def completed(shell, line, tmp_path):
    """What a shell's function puts in the place of the word at the cursor."""
    program = tmp_path / "bin" / "compresskd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m compresskd "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    environment["LINE"] = line
    environment["PYTHONPATH"] = str(Path(compresskd.__file__).parents[1])
    ended = subprocess.run(
        [shell, *({"bash": ["--norc"], "zsh": ["-f"]}.get(shell, [])), "-c", SCRIPTS[shell]],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    return ended.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [("strategy=multi", "strategy=multi_stage"), ("measure.la", "measure.latency="), ("wat", "watch")],
)
def test_the_function_of_a_shell(shell, line, expected, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    found = completed(shell, f"compresskd {line}", tmp_path)
    assert found == [expected.rpartition("=")[2] or expected if shell == "bash" else expected]


def test_each_shell_has_its_script(run_cli):
    for shell in SHELLS:
        outcome = run_cli("completion", shell)
        assert outcome.status == 0
        assert "compresskd completion words" in outcome.out
    assert run_cli("completion", "tcsh").status == 2
