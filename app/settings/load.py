"""Where settings come from: environment over `flywheel.toml` over defaults.

`FLYWHEEL_SECTION__NAME` sets one setting, `FLYWHEEL_SECTION__NAME_FILE` reads it from a file (for secrets), and the
specification's own names are understood too; where several name one setting, the first of these three wins.
pydantic-settings reads the sources; what is left to do here is to refuse by name what it would silently pass over.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import orjson
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

from app.settings.masking import hide_password
from app.settings.sections import Settings

PREFIX = "FLYWHEEL_"
SPECIFICATION_NAMES = {
    "CONSTITUTIONAL_HASH": "constitution.hash",
    "POLICY_ENGINE_URL": "policy_engine.url",
    "AUDIT_ENGINE_URL": "audit_engine.url",
    "COMPLIANCE_THRESHOLD": "constitution.compliance_threshold",
}
# Read by the installation and the tests, not settings of a worker.
NOT_SETTINGS = frozenset(
    {"FLYWHEEL_CONFIG", "FLYWHEEL_ROLE", "FLYWHEEL_TEST_DATA", "FLYWHEEL_REQUIRE_ALL", "FLYWHEEL_CACHE"}
)
MOST_FAULTS, MOST_TOLD = 20, 300
"""Of a configuration, that are told; characters of a value or a message."""
NOT_SETTINGS_PREFIXES = ("FLYWHEEL_TEST_", "FLYWHEEL_OPA", "FLYWHEEL_OTELCOL")


class SettingsError(ValueError):
    """A setting is unknown, contradictory or out of its bounds. The message names it, its value and the remedy."""


def known_settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings, such as `kafka.bootstrap_servers`, and their types."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from known_settings(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def load_settings(env: Mapping[str, str] | None = None, toml: Path | None = None) -> Settings:
    """Read the configuration.

    `env` defaults to the process environment; `toml` to `$FLYWHEEL_CONFIG`, else `flywheel.toml` in the working
    directory where there is one. Raises `SettingsError`.
    """
    env = dict(os.environ if env is None else env)
    values = _read_toml(toml or _toml_path(env))
    from_files: set[str] = set()
    for name, value, origin in _from_environment(env):
        _put(values, name, value, origin)
        # A plain variable comes after a file's, and takes its place; some settings' own names end in `_file`.
        (from_files.add if _name_of(origin) == f"{name}_file" else from_files.discard)(name)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error, from_files)) from None


def _toml_path(env: Mapping[str, str]) -> Path | None:
    named = env.get("FLYWHEEL_CONFIG")
    if named:
        return Path(named)
    default = Path("flywheel.toml")
    return default if default.exists() else None


def _read_toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not path.is_file():
        raise SettingsError(f"configuration file {path} does not exist: correct FLYWHEEL_CONFIG, or create it")

    class _Toml(BaseSettings):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        return dict(TomlConfigSettingsSource(_Toml, toml_file=path)())
    except OSError as error:
        raise SettingsError(
            f"configuration file {path} cannot be read ({error.strerror}): see its permissions"
        ) from None
    except RecursionError:
        raise SettingsError(f"{path} is nested too deep: no setting is, so look for brackets too many") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not valid TOML: {_shortened(str(error))}") from None


def _from_environment(env: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    """(name, value, variable), weakest first.

    A worker's children inherit its environment and get every setting as a plain variable beside it (`export`), so a
    plain variable wins over a file's and over the specification's name.
    """
    known = dict(known_settings())
    files, plain = [], []
    for variable, text in sorted(env.items()):
        ours = variable in SPECIFICATION_NAMES or (variable.startswith(PREFIX) and not _is_other(variable))
        if ours and _is_no_text(text):
            raise SettingsError(f"{variable} holds bytes that are no UTF-8 text: write its value as one")
        if variable in SPECIFICATION_NAMES:
            yield SPECIFICATION_NAMES[variable], text, variable
        elif ours:
            name = _name_of(variable)
            if name in known:
                plain.append((name, _parse(text, known[name]), variable))
            elif name.removesuffix("_file") in known:
                name = name.removesuffix("_file")
                files.append((name, _parse(_read_secret(variable, text), known[name]), variable))
            else:
                raise SettingsError(_unknown(variable, name, list(known)))
    yield from files
    yield from plain


def _name_of(variable: str) -> str:
    return variable.removeprefix(PREFIX).lower().replace("__", ".")


def _is_no_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_other(variable: str) -> bool:
    return variable in NOT_SETTINGS or variable.startswith(NOT_SETTINGS_PREFIXES)


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{variable}={path} cannot be read ({error.strerror}): name a readable file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}={path} holds no UTF-8 text: name the file that holds the value") from None


def _parse(text: str, kind: Any) -> Any:
    """Lists and tables come as JSON; everything else stays text, which pydantic turns into the field's type."""
    if get_origin(kind) in {tuple, list, dict}:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    return text


def _put(values: dict[str, Any], name: str, value: Any, origin: str) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{origin} sets {name}, but the configuration file gives {section} one plain value")
    values[leaf] = value


def _unknown(variable: str, name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]} ({PREFIX}{nearest[0].upper().replace('.', '__')})?" if nearest else ""
    return f"unknown setting {variable} ({name}){hint}"


def _explain(error: ValidationError, from_files: Collection[str]) -> str:
    """The faults in one line. What came out of a file is not told: files are where secrets are kept."""
    lines = []
    known = dict(known_settings())
    names = list(known)
    for item in error.errors(include_url=False)[:MOST_FAULTS]:
        place = [str(part) for part in item["loc"]]
        setting = next((one for one in names if place[: one.count(".") + 1] == one.split(".")), None)
        if setting is not None and setting in from_files:
            lines.append(f"{setting}: {_shortened(hide_password(item['msg']))}")
            continue
        name = _shortened(".".join(place))
        if item["type"] == "extra_forbidden":
            lines.append(_unknown(name, name, names))
            continue
        untold = [one for one in from_files if one.split(".")[: len(place)] == place and not _is_secret(known[one])]
        if item["type"] == "value_error" and untold:
            # A contradiction between a section's settings may quote any of them (but secrets, which mask themselves).
            together = f"{', '.join(sorted(untold))} and the rest of {name or 'the settings'} do not go together"
            told = "what a file holds is not told: set it as a plain variable to see why"
            lines.append(f"{name or 'settings'}: {together}; {told}")
            continue
        # A value in a section's place may be a secret's.
        hidden = isinstance(item["input"], dict) or setting is None or _is_secret(known[setting])
        given = "" if hidden else f" (given: {_shortened(hide_password(repr(item['input'])))})"
        lines.append(f"{name or 'settings'}: {_shortened(hide_password(item['msg']))}{given}")
    more = error.error_count() - len(lines)
    return "; ".join([*lines, *([f"and {more} more"] if more else [])])


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}... ({len(text)} characters)"


def _is_secret(kind: Any) -> bool:
    return kind is SecretStr or any(_is_secret(inner) for inner in get_args(kind))
