"""The demo: a ticket found in PyTorch, compared with its controls and trained on in Keras.

``ltcore demo`` runs it. This module is light; frameworks come in with the first run.
"""

from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from ltcore.errors import MissingDependencyError

_NEEDED = ("torch", "keras", "tensorflow", "sklearn", "matplotlib", "rich")


def demo(
    *,
    rounds: int = 8,
    replicates: int = 3,
    out: Path = Path("demo-out"),
    seed: int = 0,
    as_json: bool = False,
) -> None:
    """Run the demo and print what came out.

    Args:
        rounds: prunings.
        replicates: independent runs, with seeds ``seed``, ``seed + 1``, ...
        out: folder for the ticket and the plot.
        seed: of the first replicate.
        as_json: print JSON in place of the table.

    Raises:
        MissingDependencyError: names what is not installed and the command that installs it.
    """
    started = perf_counter()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the demo needs {', '.join(missing)}, which is not installed; "
            "pip install 'ltcore[demo]'"
        )
    from ltcore_demo._main import main
    from ltcore_demo._result import Settings

    settings = Settings(rounds=rounds, replicates=replicates, out=out, seed=seed)
    main(settings, started=started, as_json=as_json)
