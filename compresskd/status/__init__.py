"""Where runs stand: a live table of those that go on, a list of those that are there. Imports no torch.

progress   one run, read from its files alone
watch      the table of many
listing    `compresskd ls`: runs that fit conditions
"""
