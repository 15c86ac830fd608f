"""Renders what is registered, and what the agreement tests measured, as the table of a page.

LTCORE_CRITERIA_TABLE=rows.json python -m pytest tests/test_criteria_agreement.py
python tests/lib/criteria_table.py rows.json docs/criteria.md
"""

import ast
import json
import re
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from ltcore.discovery import registry
from ltcore.options import criterion_from

MARK = "<!-- table -->"
SOURCE = re.compile(
    r"[A-Z]\w+(?: and [A-Z]\w+| et al\.) \d{4}"
    r"(?: \(arXiv [\d.]+\))?"
    r"(?:, (?:section|appendix) [\w.]*\w(?: and algorithm \d)?|, the ablation \"[^\"]+\")?"
)


def sources(target: str) -> str:
    """Return the papers that the docstring of ``"module:attribute"`` names."""
    module, _, attribute = target.partition(":")
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    body = ast.parse(Path(found.origin).read_text()).body
    texts = [
        _docstring(node, following)
        for node, following in pairwise([*body, None])
        if node and attribute in _names(node)
    ]
    return "; ".join(SOURCE.findall(" ".join(" ".join(texts).split())))


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []


def _docstring(node: ast.stmt, following: ast.stmt | None) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return ast.get_docstring(node) or ""
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return str(following.value.value)
    return ""


def rendered(gaps: dict[str, dict[str, float]]) -> str:
    """Return a markdown table: one row a criterion, one column an engine."""
    lines = [
        "| criterion | score | needs | source | "
        + " | ".join(f"Keras on {e}" for e in gaps)
        + " |",
        "|---|---|---|---|" + "---|" * len(gaps),
    ]
    for name, offer in registry().offers["criterion"].items():
        around = name in AROUND
        needs = criterion_from({"name": name, "criterion": "magnitude"} if around else name).needs
        score = offer.spec.summary.partition(";")[0].replace("|", "\\|")
        told = ", ".join(f"`{need}`" for need in sorted(needs)) or "weights"
        if around:
            told = ", ".join(["what the other needs", *(f"`{need}`" for need in sorted(needs))])
        shown = [_shown(found.get(name)) for found in gaps.values()]
        cells = [f"`{name}`", score, told, sources(offer.spec.target), *shown]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(gap: float | None) -> str:
    if gap is None:
        return "not run"
    return f"{gap:.0e}" if gap else "0"


AROUND = ("same_sign", "different_sign", "inverted", "shuffled")
"""Criteria that take another one."""


def main() -> None:
    """Put the table of the rows in the first file where the second has its mark."""
    source, page = map(Path, sys.argv[1:])
    text = page.read_text().partition(MARK)[0]
    page.write_text(f"{text}{MARK}\n\n{rendered(json.loads(source.read_text()))}")


if __name__ == "__main__":
    main()
