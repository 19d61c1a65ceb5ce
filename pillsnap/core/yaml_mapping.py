"""Mappings that people write in YAML files: reading them, dotted keys, and what is wrong in them, a line each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pillsnap.core.errors import ConfigError


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises ConfigError that names file and line."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file (a relative path starts at {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{path}: {line}not valid YAML ({getattr(error, 'problem', error)})") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(document).__name__}")
    return document


def describe_validation_error(
    error: ValidationError, source: str | Callable[[str], str], known: Collection[str] = ()
) -> str:
    """One line per mistake: source, dotted key, value, what is allowed.

    Args:
        error: what pydantic says.
        source: the file, or the source of a dotted key where there are several.
        known: the dotted keys that there are, to name the one that was perhaps meant.
    """
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(top)"
        where = source if isinstance(source, str) else source(key)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            lines.append(f"{where}: {key}: unknown key; " + (f"is {near[0]} meant?" if near else "check the spelling"))
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
            lines.append(f"{where}: {key}: {message}{shown}")
    return "\n".join(lines)
