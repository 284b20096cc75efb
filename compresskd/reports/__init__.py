"""Verbs that look at finished runs and at layers: evaluate, repeat, bench."""
