"""What a message must hold: the key that it is about and what is said of it, never its whole sentence."""

import re


def says(field, *words):
    """A pattern of messages about `field`, by that name or below any prefix, in whose line each word stands.

    Words may stand in any order and in any case; a number is never a part of a longer one.
    """
    return _compiled(r"(?:^|[\s.('\"])", field, words)


def fault(key, *words):
    """A pattern of what the command line says of the option `key`, written in full; words as in `says`."""
    return _compiled(r"^(?:  |compresskd: )?", key, words)


def _compiled(before, key, words):
    name = " ".join([key, *words]).replace(")", "")
    every = "".join(rf"(?=.*{_word(word)})" for word in words)
    return re.compile(rf"(?#{name}){before}{re.escape(key)}: {every}", re.IGNORECASE | re.MULTILINE)


def name_of(pattern):
    """The key and the words of a pattern of this module: the name of a test."""
    return pattern.pattern.partition("(?#")[2].partition(")")[0]


def _word(word):
    if re.fullmatch(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", word):
        return rf"(?<!\d)(?<!\d\.){re.escape(word)}(?!\d|[.,]\d)"
    return re.escape(word)


def refused(outcome, *needles):
    """The command line was refused before anything ran, left nothing, and said all of the texts and patterns."""
    assert outcome.left == []
    told(outcome, *needles)


def told(outcome, *needles):
    """The command line ended with 2 and said all of the texts and patterns, in words and not by a traceback."""
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for needle in needles:
        found = needle in outcome.err if isinstance(needle, str) else needle.search(outcome.err)
        assert found, f"{needle!r} is not in: {outcome.err}"
