"""Command lines at random: overrides of every key that there is, of values that fit and of values that do not.

Nothing that they name is outside the working directory, and no data set that would be fetched.
"""

import random

from compresskd.config.compose import compose_jobs
from compresskd.config.origin import as_written, leaves

SMALL = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=48", "data.num_test=16", "epochs=1", "teacher_fit.epochs=1", "rank=2",
    "student.hidden=[16,16]", "teacher.hidden=[16,16]", "train.batch_size=16",
)  # fmt: skip
# Choices whose keys are overridden; each is composed once.
CHOICES = (
    (), ("strategy=train",), ("strategy=distill", "kd=dkd"), ("strategy=distill_then_compress", "kd=fitnets"),
    ("strategy=compress", "compress=svd"), ("strategy=multi_stage", "rank_schedule=linear"),
    ("strategy=admm_then_compress",), ("strategy=compress_then_distill", "optimizer=sgd", "scheduler=multistep"),
    ("strategy=compress_then_distill_layerwise",), ("strategy=compress_blockwise",),
    ("strategy=distill_then_compress_blockwise",),
    ("strategy=distill_matched", "kd=logit_mse"),
    ("strategy=distill_qat", "scheduler=one_cycle"), ("strategy=train_then_compress", "compress=cp"),
    ("strategy=distill_to_compressed", "compress=tucker", "optimizer=adam"), ("kd=rkd", "bits=4"),
    ("kd=dist", "scheduler=constant"), ("kd=nkd", "rank_schedule=until_drop", "strategy=multi_stage"),
    ("data/augmentation=crop_flip", "kd=none", "strategy=distill"), ("kd=similarity_preserving",),
    ("strategy=train", "bits=8", "quant.mode=ptq"), ("rank_schedule=explicit", "strategy=multi_stage"),
)  # fmt: skip
# These stand for nothing that a key could mean; a few of them are right for some keys.
ODD = (
    "nan", "inf", "-inf", "1e300", "-1e300", "1e-300", "1e30", "-1", "0", "1", "2", "0.5", "3.7", "1e3",
    "null", "true", "false", "abc", "''", "größe", "'größe'", "[]", "{}", "[1,2]", "[0.9]",
    "[[1,2],[3,4]]", "{a: 1}", "{a: {b: [1]}}", "[null]", "[a,1]", "${rank}", "${nowhere}",
    "${kd.alpha}", "${oc.env:NO_SUCH_VARIABLE}", "???", "9" * 30, "1" * 5000, "99999999999999999999",
    "-9223372036854775809", "a b", "a=b", "a:b", "me@host#1", "=", "[", "{", "'", "\"x\"", "\\",
    "{_target_: os.system}", "{_target_: torch.nn.Linear}", "1,2", "range(1,3)", "choice(1,2)",
    "glob(*)", "interval(0,1)", "range(1,1000000)", "tag(a,1)", "sort(2,1)", "int(3.5)", "💥", "a/b",
    "../x", "x" * 300, "%s", "!!python/none",
)  # fmt: skip
WORDS = (
    "parameters", "bytes", "round", "fresh", "decomposed", "random", "original", "previous", "both",
    "same_name", "last", "middle", "channel", "tensor", "rank_slice", "affine", "half_integer",
    "ternary", "best", "absmax", "fold", "keep", "nearest", "gauge", "straight_through", "bf16", "fp16",
    "cpu", "cuda:7", "svd", "cp", "tucker", "relu", "gelu", "ptq", "[fc1]", "['*']", "{fc1: 2}",
    "{fc*: 4}", "{fc1: [[4,4],[4,4]]}", "{fc1: [2]}", "{fc1: fc1}",
)  # fmt: skip
GROUPS = (
    "kd", "strategy", "optimizer", "scheduler", "compress", "rank_schedule", "quant", "train", "student", "teacher",
)  # fmt: skip
# Left alone: what takes long, or is no fault however large it is.
SPARED = ("train.compile", "teacher_fit.train.compile", "data.path", "data.id")
TOO_MANY = ("epochs", "steps", "hidden", "num_train", "num_test", "total_epochs", "num_stages", "first_rank")


def keys_of(choices):
    """(key, value) of everything in the composition of some choices that an override could set."""
    (job,) = compose_jobs([*SMALL, *choices]).jobs
    found = [pair for pair in leaves(as_written(job.config)) if pair[0] not in SPARED]
    lists = {key.partition("[")[0] for key, _ in found if "[" in key}
    return sorted(((key, value) for key, value in found if "[" not in key), key=lambda pair: pair[0]) + [
        (key, []) for key in sorted(lists) if "." in key
    ]


def command(seed, keys=keys_of):
    """The overrides of one command line, the same for the same seed."""
    rng = random.Random(seed)
    choices = rng.choice(CHOICES)
    known = keys(choices)
    lines = [_line(rng, known) for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))]
    multirun = ["-m"] if rng.random() < 0.15 else []
    return [*multirun, *SMALL, *choices, *lines]


def _line(rng, known):
    kind = rng.random()
    if kind < 0.03:
        return f"{rng.choice(GROUPS)}={rng.choice((*WORDS, 'none', 'default', 'mlp', *ODD))}"
    if kind < 0.06:
        return f"{rng.choice(('', '+', '++'))}{_misspelt(rng, known)}={rng.choice(ODD)}"
    key, value = rng.choice(known)
    if (
        key.endswith("_") and rng.random() < 0.9
    ):  # _target_ and _partial_: most of what they could be is wrong
        key, value = rng.choice(known)
    if kind < 0.1:
        return f"~{key}"
    if kind < 0.12:
        return f"~{key.rpartition('.')[0] or key}"
    sign = rng.choices(("", "+", "++"), (16, 1, 3))[0]
    return f"{sign}{key}={_value(rng, key, value)}"


def _misspelt(rng, known):
    key, _ = rng.choice(known)
    cut = rng.randrange(len(key) + 1)
    return key[:cut] + rng.choice("xq._") + key[cut:]


def _value(rng, key, value):
    kind = rng.random()
    fitting = (*WORDS, "${rank}", "[8]", "[0.5]", "[0.9,0.99]")
    if kind < 0.25:
        fitting = ODD if kind < 0.15 else WORDS
    elif isinstance(value, str) and "${" not in value:
        fitting = (f"'{value}'",) if kind < 0.6 else WORDS
    elif isinstance(value, bool):
        fitting = ("true", "false")
    elif value is None:
        fitting = (0.3, 1, 2, 0.99, 5, "{fc1: 2}", "[fc1]", "null", "0.7")
    elif isinstance(value, int):
        fitting = (value, value + 1, value - 1, 0, 1, 3, *([] if key.endswith(TOO_MANY) else [2 * value]))
    elif isinstance(value, float):
        fitting = (value, value / 2, value * 2, 0.0, 1.0, value * 1e-6, value * 1e6, 0.25)
    return rng.choice(fitting)
