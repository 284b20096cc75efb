"""What the tests of texts share besides fixtures."""

CUTS = {"test_fraction": 0.2, "validation_fraction": 0.2, "split_seed": 0}
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
