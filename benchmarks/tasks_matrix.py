"""Every task through every strategy, with and without bits: python benchmarks/tasks_matrix.py [--only regression].

--only takes names of tasks and strategies, by comma.

Tiny models on tiny data, a few updates each, one process a cell: what is shown is that it works, not how well. A cell
is the test metric by which the task selects and the bytes of the model file, or the error.
"""

import argparse
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

STRATEGIES = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "strategy").glob("*.yaml"))
SMALL = (
    "epochs=1", "train.max_steps=4", "teacher_fit.train.max_steps=4", "rank=4", "measure.latency=false",
    "train.batch_size=16", "teacher_fit.train.batch_size=16",
)  # fmt: skip
WORDS = ("a", "good", "bad", "film", "play", "was", "very", "dull", "fine", "it")
BERT = (
    "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48}"
)
GPT = "{model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2}"


def texts(folder: Path) -> dict[str, tuple[str, ...]]:
    """Files of texts and tags in `folder`, and the arguments of each task."""
    draw = random.Random(0)
    sentences = [draw.choices(WORDS, k=draw.randint(6, 12)) for _ in range(160)]
    with (folder / "texts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([" ".join(words), ["no", "yes"]["good" in words]] for words in sentences)
    with (folder / "tokens.jsonl").open("w") as file:
        for words in sentences:
            tags = ["X" if word in ("good", "bad", "dull", "fine") else "O" for word in words]
            file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(("[PAD]", *WORDS, "?"))}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    bert = ("teacher=huggingface", f"teacher.config={BERT}", "student=from_teacher",
            f"data.tokenizer={folder / 'tokenizer.json'}")  # fmt: skip
    return {
        "classification": ("data=synthetic", "data.num_train=160", "data.num_test=64"),
        "multi_label": (),
        "regression": (),
        "text_classification": (*bert, f"data.path={folder / 'texts.csv'}"),
        "token_classification": (*bert, f"data.path={folder / 'tokens.jsonl'}", "data.tags_column=tags"),
        "causal_lm": ("teacher=huggingface", f"teacher.config={GPT}", "student=from_teacher"),
    }


def run(arguments: list[str], folder: Path) -> str:
    """One cell."""
    command = [sys.executable, "-m", "compresskd", *arguments, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("compresskd", "  "))]
        return f"exit {done.returncode}: {' '.join(said)[:160]}"
    record = json.loads((folder / "record.json").read_text())
    final = next(stage for stage in record["stages"] if stage["name"] == record["final"])
    monitor = record["task"]["monitor"]
    return f"{final['metrics'][f'test_{monitor}']:.3g} {monitor}, {final['size']['file_bytes']:,} B"


def main() -> int:
    """Print the table; the exit code is 1 where a cell is no figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="tasks and strategies, by comma")
    only = {name for name in parser.parse_args().only.split(",") if name}
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        of_task = texts(Path(name))
        tasks = [task for task in of_task if not only & {*of_task} or task in only]
        strategies = [s for s in STRATEGIES if not only & {*STRATEGIES} or s in only]
        print("| strategy | bits | " + " | ".join(tasks) + " |")
        print("|---|---|" + "---|" * len(tasks))
        for number, (strategy, bits) in enumerate(itertools.product(strategies, ("null", "4"))):
            cells = []
            for task in tasks:
                arguments = [f"task={task}", f"strategy={strategy}", f"bits={bits}", *SMALL, *of_task[task]]
                cells.append(run(arguments, Path(name) / f"{number}_{task}"))
                failed += cells[-1].startswith("exit")
            print(f"| {strategy} | {bits} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{failed} cells failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
