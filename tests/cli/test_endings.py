"""A run is not lost to the terminal that shows it."""

import pytest


@pytest.mark.slow
def test_a_terminal_of_ascii_characters_is_no_error(run_program, work):
    typed = [
        "data=synthetic",
        "measure.latency=false",
        "data.num_train=64",
        "data.num_test=16",
        "strategy=train",
        "epochs=1",
    ]
    outcome = run_program(*typed, "outputs_dir='größe'", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (outcome.status, outcome.err) == (0, "")
    assert "everything is in" in outcome.out
    assert "gr\\xf6\\xdfe" in outcome.out
    compared = run_program("compare", "größe", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (compared.status, compared.err) == (0, "")
    assert "\\u2605: on the Pareto front" in compared.out
