"""What the tests of texts share besides fixtures."""

CUTS = {"test_fraction": 0.2, "validation_fraction": 0.2, "split_seed": 0}
SENTENCES = {  # but for path and tokenizer, the options of sentences with a class
    "name": "text", "text_column": "sentence", "pair_column": None, "label_column": "label", "weight_column": None,
    "max_length": None, "asks": None, "class_weights": None, "group_by_length": True, "skip_bad": False, **CUTS,
}  # fmt: skip
WORDS = ["the", "a", "film", "was", "good", "bad", "dull", "bright", "never", "ever", "saw", "I", "it"]


def sentences(count, start=0):
    """Sentences of one to seven words, no two alike, and their label: whether the number is odd."""
    rows = range(start, start + count)
    texts = [
        " ".join([WORDS[(row * 7 + i) % len(WORDS)] for i in range(row % 6)] + [f"x{row}"]) for row in rows
    ]
    return texts, [row % 2 for row in rows]


def kinds(data):
    """Of what is told of the data."""
    return [notice.kind for notice in data.notices]


def samples(split):
    """The tokens of each text, without padding."""
    for batch in split.batches(64):
        for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
            yield tuple(ids[mask == 1].tolist())
