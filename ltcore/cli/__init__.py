"""The command ``ltcore``. Importing this imports neither typer nor rich, which are an extra."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; without its extra, say in one line how to get it."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(
            f"error: the command line needs {' and '.join(missing)}, which is not installed; "
            "pip install 'ltcore[cli]'"
        )
    from ltcore.cli._app import app

    app()
