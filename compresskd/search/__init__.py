"""Searches over a configuration's keys: what is asked for, which point is tried next, and what came of it.

space, quantities     what a search may choose from, and what it is judged by, as users write them
trials                the trials of a search and their file, search.json
sampler, pruning      Optuna's part: which point is tried next, and which trial is given up
narrowing             the points that a goal is looked for at
front, report         the best points, and what is said of them

It knows configurations as lines of text alone, and run directories by their records; it imports no torch.
"""
