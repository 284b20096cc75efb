"""`compresskd compare`: any set of run directories -> tables, statistics and a report. Imports no torch.

discovery, records    find and read every record.json, tolerantly
study, keys           reduce them to entries and to the configuration keys that differ
flags, comparison     what must not be compared; groups over seeds, intervals, Pareto fronts
pairing, statistics   paired tests against a reference group
tables                the result as plain tables, drawn by terminal, markdown and report (HTML)
command               the command line, and the summary at the end of a sweep
"""

from compresskd.compare.command import main, report_search, summarize_sweep

__all__ = ["main", "report_search", "summarize_sweep"]
