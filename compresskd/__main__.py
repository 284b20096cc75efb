"""`python -m compresskd`."""

from compresskd.cli import main

main()
