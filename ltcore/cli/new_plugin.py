"""``ltcore new-plugin``: a package that works, to be changed into one's own."""

import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ltcore._version import __version__
from ltcore.cli._output import AsJson, print_json, printable
from ltcore.closest import did_you_mean
from ltcore.discovery import KINDS, entry_points, offers
from ltcore.errors import InvalidValueError, PluginError
from ltcore.hookspecs import PROJECT


@dataclass(frozen=True, slots=True)
class _Form:
    """What differs between kinds, besides their templates.

    Attributes:
        is_class: the target is a class; else a function.
        usage: Python for the README.
        argument: of ``ltcore prune``, where it takes such a thing.
        summary: of the example that the template has.
    """

    is_class: bool
    usage: str
    argument: str
    summary: str


_FORMS: Mapping[str, _Form] = {
    "criterion": _Form(
        False,
        'lt.prune(model, 0.9, criterion="$name")',
        "criterion",
        "|w| times the root of the number of inputs",
    ),
    "rewind-policy": _Form(
        True,
        'lt.find_ticket(model, train, rounds=5, rate=0.2, rewind_to="$name")',
        "",
        "between initial and trained values",
    ),
    "schedule": _Form(
        True,
        'lt.find_ticket(model, train, schedule="$name", sparsity=0.9, rounds=5)',
        "",
        "equal steps of all weights",
    ),
    "allocation": _Form(
        False,
        'lt.prune(model, 0.9, scope="$name")',
        "scope",
        "layers of one kind compete",
    ),
    "pattern": _Form(
        True,
        'lt.prune(model, 0.5, pattern="$name")',
        "pattern",
        "pairs of neighbours",
    ),
}


def new_plugin(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(_FORMS)}.")],
    name: Annotated[
        str, typer.Argument(help="What users will type, such as my-rule: a-z, 0-9 and hyphens.")
    ],
    into: Annotated[
        Path, typer.Option(help="The folder in which the package's folder is made.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a package with a criterion (or the like) of your own, and its tests.

    It works as it is; change the rule. Nothing that exists is touched.
    """
    _check_usage(kind, name)
    words = _words(kind, name)
    _check_free(kind, name, words["package"])
    folder = into / words["distribution"]
    contents = _contents(kind, words)
    _write(folder, contents)
    if as_json:
        print_json({"folder": str(folder), "files": sorted(contents), **words})
        return
    typer.echo(f"wrote {printable(folder)}:")
    for path in sorted(contents):
        typer.echo(f"  {path}")
    typer.echo(f"next: cd {printable(folder)} && pip install -e '.[test]' && pytest")


def _check_usage(kind: str, name: str) -> None:
    if kind == "backend":
        raise typer.BadParameter(
            "a backend is too much for a template; docs/writing-a-backend.md takes one apart",
            param_hint="KIND",
        )
    if kind not in _FORMS:
        hint = did_you_mean(kind, _FORMS) or "."
        raise typer.BadParameter(
            f"there is no template for {kind!r}{hint} There are {', '.join(_FORMS)}",
            param_hint="KIND",
        )
    if name in KINDS or _function(name) in KINDS.values():
        raise typer.BadParameter(
            f"{name!r} is the word for a kind; a name says what is special, such as my-{name}",
            param_hint="NAME",
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f"; {plain!r} would do" if plain else ""
        raise typer.BadParameter(
            f"{name!r}; expected a letter, then letters a-z and digits, in words with single "
            f"hyphens between{hint}",
            param_hint="NAME",
        )
    taken = [word for word in (_function(name), _class(name)) if iskeyword(word)]
    if taken:
        raise typer.BadParameter(f"{taken[0]!r} is a word of Python's", param_hint="NAME")


def _check_free(kind: str, name: str, package: str) -> None:
    """Raise if the package could not be used beside what is installed.

    Raises:
        PluginError: the name is another one's; says whose.
    """
    for each in KINDS:
        if each == kind and name in offers(each):
            raise PluginError(
                f"the {kind} {name!r} exists already, from {offers(each)[name].origin}"
            )
    if name in {entry.name for entry in entry_points(group=PROJECT)} or find_spec(package):
        raise PluginError(f"a plugin {name!r}, or a package {package!r}, is installed already")


def _function(name: str) -> str:
    return name.replace("-", "_")


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _words(kind: str, name: str) -> dict[str, str]:
    """Return what the templates are filled with."""
    form = _FORMS[kind]
    usage = f"import ltcore as lt\n\n{Template(form.usage).substitute(name=name)}"
    major, minor, *_ = __version__.split(".")
    shell = (
        f"\nor on the command line:\n\n```\nltcore prune dense.pt --model nets:lenet --sparsity "
        f"0.5 --{form.argument} {name} -o sparse.safetensors\n```\n"
    )
    return {
        "kind": kind,
        "what": kind.replace("-", " "),
        "name": name,
        "distribution": f"ltcore-{name}",
        "package": f"ltcore_{_function(name)}",
        "module": _function(kind),
        "function": _function(name),
        "class_name": _class(name),
        "target": _class(name) if form.is_class else _function(name),
        "hook": f"ltcore_register_{KINDS[kind]}",
        "summary": form.summary,
        "usage": usage,
        "more": shell if form.argument else "",
        "requirement": f"ltcore>={major}.{minor},<{int(major) + 1}",
    }


def _contents(kind: str, words: dict[str, str]) -> dict[str, str]:
    """Return ``{path in the package's folder: text}``."""
    source = f"src/{words['package']}"

    def filled(template: str) -> str:
        text = files("ltcore.cli").joinpath(f"templates/{template}.template").read_text("utf-8")
        return Template(text).substitute(words).rstrip() + "\n"

    return {
        "pyproject.toml": filled("pyproject.toml"),
        "README.md": filled("README.md"),
        f"{source}/__init__.py": filled("__init__.py"),
        f"{source}/{words['module']}.py": filled(f"{kind}.py"),
        f"{source}/py.typed": "",
        f"tests/test_{words['function']}.py": filled(f"test_{kind}.py"),
    }


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    """Write a folder: all of it or nothing.

    Raises:
        InvalidValueError: it exists.
        OSError: the disk refuses, or the folder around it does not exist.
    """
    if folder.exists() or folder.is_symlink():
        raise InvalidValueError(f"{folder} exists; it is left as it is")
    temporary = folder.with_name(f".ltcore-{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        for path, text in contents.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
