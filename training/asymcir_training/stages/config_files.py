"""Configurations of training runs: dataclasses, filled from a TOML file and from `key=value` overrides.

A run is one dataclass whose fields are sections, dataclasses too. `load_config` refuses unknown keys by name (with the
nearest known one) and values of the wrong kind; `render_config` writes a run with all its defaults as a commented TOML
file that `load_config` reads back.
"""

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from asymcir_common import PlaceError
from asymcir_common.files import read_utf8
from pydantic import TypeAdapter, ValidationError

from asymcir_training.errors import ConfigError, TrainingError

T = TypeVar("T")


def load_config(
    kind: type[T],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, str] | None = None,
) -> T:
    """Build a run from a TOML file and overrides, the latter on top.

    Args:
        kind: a dataclass of sections.
        path: TOML; None starts from the defaults.
        overrides: "section.key=value", the value written as in TOML; a bare word is taken as text.
        options: key -> what sets it on the command line, for messages.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a missing one, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(read_utf8(path))
        except PlaceError as exc:
            raise ConfigError(f"cannot read the configuration: {exc}") from exc
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"cannot read the configuration {path}: {exc}") from exc
    for text in overrides:
        _override(values, text)
    where = str(path) if path is not None and not overrides else "the configuration"
    _refuse_unknown(kind, values, where)
    for name, hint in get_type_hints(kind).items():
        if _section_of(hint) is not None:
            values.setdefault(name, {})  # so that what is missing is a key of it, and not the whole section
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as exc:
        raise ConfigError(f"{where}: {_first_problem(exc, options or {})}") from exc
    except TrainingError as exc:  # a section checks its own ranges
        raise ConfigError(f"{where}: {exc}") from exc


def render_config(kind: type) -> str:
    """Write every key of a run as TOML: its default and what it means; a key without a default is commented out."""
    lines: list[str] = []
    _render(kind, "", lines)
    return "\n".join(lines).strip() + "\n"


def to_plain(config: Any) -> dict[str, Any]:
    """Turn a run into plain JSON values, for the record that a checkpoint keeps and a resumed run is compared with."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def _override(values: dict[str, Any], text: str) -> None:
    name, found, written = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not found or not all(parts):
        raise ConfigError(f"expected an override like run.seed=1, got {text!r}")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written.strip()
    for place, part in enumerate(parts[:-1]):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(parts[: place + 1])} is a value, not a section: cannot set {name}")
        values = inner
    values[parts[-1]] = value


def _refuse_unknown(kind: Any, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    hints = get_type_hints(kind)
    for name, value in values.items():
        full = f"{prefix}{name}"
        if name not in hints:
            nearest = [f"{prefix}{key}" for key in difflib.get_close_matches(name, hints, n=1)]
            # A key in the wrong section is as common as a slip of the finger.
            nearest = nearest or [key for key in _all_keys(kind, prefix) if key.rpartition(".")[2] == name][:1]
            hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(hints)}"
            raise ConfigError(f"{where}: unknown key {full}; {hint}")
        section = _section_of(hints[name])
        if section is not None and isinstance(value, dict):
            _refuse_unknown(section, value, where, f"{full}.")


def _all_keys(kind: Any, prefix: str) -> list[str]:
    found = []
    for name, hint in get_type_hints(kind).items():
        section = _section_of(hint)
        found += [f"{prefix}{name}"] if section is None else _all_keys(section, f"{prefix}{name}.")
    return found


def _section_of(hint: Any) -> Any | None:
    """Return the dataclass behind a type hint, None for a plain value."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for part in get_args(hint) if (found := _section_of(part)) is not None), None)
    return hint if dataclasses.is_dataclass(hint) else None


def _first_problem(exc: ValidationError, options: Mapping[str, str]) -> str:
    problem = exc.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "ArgsKwargs")
    if problem["type"].startswith("missing"):
        if key in options:
            return f"{key} is missing: pass {options[key]}, or set it in the file"
        return f"{key} is missing: set it in the file or by {key}=VALUE"
    cause = problem.get("ctx", {}).get("error")
    message = str(cause) if cause is not None else problem["msg"]
    return f"{key}: {message}" + ("" if cause is not None else f", got {problem['input']!r}")


def _render(kind: Any, prefix: str, lines: list[str]) -> None:
    hints = get_type_hints(kind, include_extras=True)
    sections = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if _section_of(hint) is not None:
            sections.append((field.name, _section_of(hint)))
            continue
        meaning = next((part for part in get_args(hint)[1:] if isinstance(part, str)), "")
        if get_origin(hint) is Annotated and meaning:
            lines.append(f"# {meaning}")
        default = field.default_factory() if callable(field.default_factory) else field.default
        if default is dataclasses.MISSING or default is None:
            lines.append(f"# {field.name} =" + (" # must be set" if default is dataclasses.MISSING else ""))
        else:
            lines.append(f"{field.name} = {_toml(default)}")
    for name, section in sections:
        lines += ["", f"[{prefix}{name}]"]
        _render(section, f"{prefix}{name}.", lines)


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)
