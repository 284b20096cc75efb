"""Every task on tiny data, as arguments of the command line, and what of the strategies is tried with each.

`arguments(folder)` writes the files that the tasks need and gives, by task, what is typed beside `strategy=`; a model
is trained for four updates.
"""

import itertools
import json
import pkgutil
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

CONF = Path(__file__).parents[1] / "conf"
STRATEGIES = tuple(sorted(path.stem for path in (CONF / "strategy").glob("*.yaml")))
TASKS = (
    "classification", "multi_label", "regression", "text_classification", "token_classification", "causal_lm",
    "masked_lm", "seq2seq_lm",
)  # fmt: skip
OBJECTIVES = tuple(sorted(path.stem for path in (CONF / "kd").glob("*.yaml")))
BITS = ("null", "4")
SMALL = (
    "epochs=1", "train.max_steps=4", "teacher_fit.train.max_steps=4", "rank=4", "measure.latency=false",
    "train.batch_size=16", "teacher_fit.train.batch_size=16",
)  # fmt: skip
PERCEPTRONS = ("classification", "multi_label", "regression")  # tasks whose models are some here
OF_BLOCKS = ("attention_relations", "attention_transfer", "hidden_states")  # which they lack
FEW = {
    "compress_blockwise": ("strategy.stages.fit_blocks.updates=5",),
    "distill_then_compress_blockwise": ("strategy.stages.fit_blocks.updates=5",),
    "compress_then_distill_layerwise": ("strategy.stages.fit_layers.steps=5",),
}
WORDS = ("a", "good", "bad", "film", "play", "was", "very", "dull", "fine", "it")
BERT = (
    "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48}"
)
T5 = "{model_type: t5, d_model: 32, d_kv: 16, d_ff: 48, num_layers: 2, num_heads: 2}"
GPT = "{model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2}"


def arguments(folder: Path) -> dict[str, tuple[str, ...]]:
    """What each task is typed with; its files are written to `folder`."""
    draw = random.Random(0)
    sentences = [draw.choices(WORDS, k=draw.randint(6, 12)) for _ in range(160)]
    with (folder / "texts.jsonl").open("w") as file:
        for words in sentences:
            file.write(json.dumps({"text": " ".join(words), "label": ["no", "yes"]["good" in words]}) + "\n")
    with (folder / "tokens.jsonl").open("w") as file:
        for words in sentences:
            tags = ["X" if word in ("good", "bad", "dull", "fine") else "O" for word in words]
            file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    with (folder / "answers.jsonl").open("w") as file:
        for words in sentences:
            file.write(json.dumps({"text": " ".join(words), "target": " ".join(sorted(words)[:4])}) + "\n")
    (folder / "story.txt").write_text("\n".join(" ".join(words) for words in sentences))
    bert = ("teacher=huggingface", f"teacher.config={BERT}", "student=from_teacher",
            f"data.tokenizer={_tokenizer(folder)}")  # fmt: skip
    of_task = {
        "classification": ("data=synthetic", "data.num_train=160", "data.num_test=64"),
        "multi_label": (),
        "regression": (),
        "text_classification": (*bert, f"data.path={folder / 'texts.jsonl'}"),
        "token_classification": (*bert, f"data.path={folder / 'tokens.jsonl'}", "data.tags_column=tags"),
        "causal_lm": ("data=text_blocks", f"data.path={folder / 'story.txt'}", "data.tokenizer=characters",
                      "data.block_size=16", "teacher=huggingface", f"teacher.config={GPT}"),
        "masked_lm": (*bert, f"data.path={folder / 'story.txt'}", "data.block_size=16"),
        "seq2seq_lm": (f"teacher.config={T5}", bert[-1], f"data.path={folder / 'answers.jsonl'}"),
    }  # fmt: skip
    return {task: (f"task={task}", *SMALL, *typed) for task, typed in of_task.items()}


def typed_of(strategy: str) -> tuple[str, ...]:
    """What is typed for a strategy, with few updates of a layer."""
    return (f"strategy={strategy}", *FEW.get(strategy, ()))


def typed_for(objective: str, task: str) -> tuple[str, ...] | None:
    """What is typed for an objective; None where the task has to be refused.

    Soft targets beside the term that an objective is named for are taken away where they do not fit.
    """
    if objective in OF_BLOCKS and task in PERCEPTRONS:
        return None
    node = yaml.safe_load((CONF / "task" / f"{task}.yaml").read_text())
    asks = pkgutil.resolve_name(node.get("task", node)["_target_"]).asks
    terms = yaml.safe_load((CONF / "kd" / f"{objective}.yaml").read_text())["objective"]["terms"]
    misfits = [name for name, term in terms.items() if not _fits(term, asks)]
    if misfits and misfits[-1] == [*terms][-1]:
        return None
    return (f"kd={objective}", *(f"~kd.objective.terms.{name}" for name in misfits))


def _fits(term: Mapping[str, str], asks: str) -> bool:
    return asks in getattr(pkgutil.resolve_name(term["_target_"]), "fits", (asks,))


def _tokenizer(folder: Path) -> Path:
    """Of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(("[PAD]", *WORDS, "?"))}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def pairwise(tasks: Sequence[str]) -> list[tuple[str, str, str]]:
    """Cells (task, strategy, bits) in which each pair of a task, a kind of stage and bits stands at least once.

    Strategies differ by their stages, so a kind of stage takes the place of the strategy; each strategy is in one cell
    at least. The cell that brings the most new pairs comes next, of equals one whose task and bits are rarest so far.
    """
    cells = list(itertools.product(tasks, STRATEGIES, BITS))
    pairs = {cell: _pairs(*cell) for cell in cells}
    left, chosen = set().union(*pairs.values()), []
    while left:
        seen = Counter(value for cell in chosen for value in cell)
        best = max(cells, key=lambda cell: (len(pairs[cell] & left), -seen[cell[0]], -seen[cell[2]]))
        chosen.append(best)
        left -= pairs[best]
    return chosen


def _pairs(task: str, strategy: str, bits: str) -> set[tuple[str, ...]]:
    kinds = {kind for kind in _kinds(strategy) if bits != "null" or kind != "Quantize"}
    return {(strategy,), (task, bits)} | {(kind, other) for kind in kinds for other in (task, bits)}


def _kinds(strategy: str) -> set[str]:
    """The classes of the stages of a strategy."""
    stages: Mapping[str, Mapping[str, str]] = yaml.safe_load(
        (CONF / "strategy" / f"{strategy}.yaml").read_text()
    )["stages"]
    return {each["_target_"].rpartition(".")[2] for each in stages.values()}
