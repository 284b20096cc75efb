"""`command-help`: what `compresskd VERB --help` says, asked of the program as the page is built."""

import os
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """The help of a subcommand, or without an argument that of the program, as a terminal of 80 columns shows it."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Ask the program; its failure is the page's."""
        self.env.note_reread()  # the program may have changed without this page
        words = self.arguments[0].split() if self.arguments else []
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "compresskd", *words, "--help"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        )
        if ended.returncode:
            raise self.error(
                f"compresskd {' '.join(words)} --help: exit code {ended.returncode}\n{ended.stderr}"
            )
        text = ended.stdout
        block = nodes.literal_block(text.strip(), text.strip())
        block["language"] = "text"
        return [block]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
