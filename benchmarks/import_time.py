"""`import ltcore` beside the packages that it cannot do without: numpy, pluggy.

Fresh interpreters in turn; CPU time of the import statement alone, without the interpreter's
start. ltcore loads its names when they are first used, so that case is timed beside it. Also
printed: the modules that ltcore adds then, and that no framework is among them.
Run: python benchmarks/import_time.py [--quick]
"""

import argparse
import subprocess
import sys

from measure import Times, compare, machine, ratio, verdict

CASES = {
    "numpy, pluggy": "import numpy, pluggy",
    "ltcore": "import ltcore",
    "ltcore, every name used": "import ltcore; [getattr(ltcore, n) for n in ltcore.__all__]",
    "ltcore, plugins found": "import ltcore; from ltcore.discovery import registry; registry()",
    "numpy, pluggy (A/A)": "import numpy, pluggy",
}
TIMED = """
import sys, time
start = time.process_time()
{}
print(time.process_time() - start, *sys.modules)
"""
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "scipy", "pandas", "matplotlib"}


def run(statement: str) -> tuple[float, set[str]]:
    """Return the seconds that ``statement`` takes in a fresh interpreter, and its modules."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, *modules = done.stdout.split()
    return float(seconds), set(modules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds

    times: Times = {name: [] for name in CASES}
    modules: dict[str, set[str]] = {}
    for round_index in range(rounds):
        for name in list(CASES)[:: -1 if round_index % 2 else 1]:
            seconds, modules[name] = run(CASES[name])
            times[name].append(seconds)
    base = "numpy, pluggy"
    print(machine())
    print(f"\nImport, {rounds} fresh interpreters each")
    compare([times], base)
    verdict("import ltcore / its dependencies", ratio(times, "ltcore", base), 1.2)
    used = modules["ltcore, every name used"]
    added = {name for name in used - modules[base] if not name.startswith("ltcore")}
    print(f"  modules that ltcore adds besides its own: {len(added)}")
    print(f"  frameworks among them: {sorted(FRAMEWORKS & used) or 'none'}")


if __name__ == "__main__":
    main()
