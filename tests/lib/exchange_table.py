"""Renders what the exchange tests measured as the table of docs/exchange.md.

LTCORE_EXCHANGE_TABLE=rows.json python -m pytest tests/test_kinds.py tests/test_architectures.py
python tests/lib/exchange_table.py rows.json docs/exchange.md
"""

import json
import sys
from pathlib import Path

MARK = "<!-- table -->"


def rendered(rows: list[dict[str, str | float]]) -> str:
    """Return a markdown table: one row a case, one column a direction and engine."""
    columns = list(dict.fromkeys((str(row["engine"]), str(row["direction"])) for row in rows))
    cells = {
        (row["case"], str(row["engine"]), str(row["direction"])): float(row["difference"])
        for row in rows
    }
    lines = [
        "| | " + " | ".join(f"{way} ({engine})" for engine, way in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        found = [cells.get((case, *column)) for column in columns]
        shown = ["not run" if value is None else f"{value:.0e}" for value in found]
        lines.append(f"| {case} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the table of the rows in the first file where the second has its mark."""
    source, page = map(Path, sys.argv[1:])
    text = page.read_text().partition(MARK)[0]
    page.write_text(f"{text}{MARK}\n\n{rendered(json.loads(source.read_text()))}")


if __name__ == "__main__":
    main()
