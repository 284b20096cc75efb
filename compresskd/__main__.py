"""`python -m compresskd`."""

import sys

if not sys.flags.safe_path:
    del sys.path[
        0
    ]  # the working directory, which `-m` puts before everything else, even Python's own modules

from compresskd.cli import main

sys.exit(main())
