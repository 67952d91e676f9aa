# PYTHON_ARGCOMPLETE_OK
"""The `asymcir` command, and `python -m asymcir_edge`: what it runs is imported where an interruption is answered."""

import sys

_EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command; see `asymcir_edge.cli.main`."""
    try:
        from asymcir_edge.cli import main as run  # takes most of the time until the command begins

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("asymcir: error: interrupted\n")
        return _EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
