"""Which site of a ticket is which site of a model, as a TOML file that people write and keep.

::

    [sites]
    "encoder.0.self_attn.q" = "attention.query"
"""

import json
import tomllib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from ltcore.errors import InvalidValueError
from ltcore.files import replacing


def save_mapping(mapping: Mapping[str, str], path: str | PathLike[str]) -> None:
    """Write ``{ticket site: model site}`` to ``path``, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    lines = [f"{_quoted(ours)} = {_quoted(theirs)}" for ours, theirs in mapping.items()]
    header = "# Sites of a ticket, and the sites of a model that they are.\n[sites]\n"
    with replacing(path) as temporary:
        temporary.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def _quoted(name: str) -> str:
    """Return a TOML string: as JSON has it, but for one character."""
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")


def load_mapping(path: str | PathLike[str]) -> dict[str, str]:
    """Return ``{ticket site: model site}`` from a TOML file.

    Raises:
        InvalidValueError: the file is no TOML, or has something else than one table ``sites`` of
            names; says what was found.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValueError(f"cannot read the mapping {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is no TOML file: {error}") from None
    sites = found.get("sites")
    if set(found) != {"sites"} or not isinstance(sites, dict):
        raise InvalidValueError(f"{path} has {list(found)}; expected one table [sites]")
    for ours, theirs in sites.items():
        if not isinstance(theirs, str):
            raise InvalidValueError(
                f"{path}: {ours!r} is {theirs!r}; expected the name of a site in quotes (and "
                f"{ours!r} in quotes too, for a name may have dots)"
            )
    return sites


def resolve_mapping(given: Mapping[str, str] | str | PathLike[str] | None) -> Mapping[str, str]:
    """Return a mapping that was given as one, as a file, or not at all."""
    if given is None:
        return {}
    return load_mapping(given) if isinstance(given, str | PathLike) else given
