"""Configuration: settings from TOML and from the environment, through the real loader."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr

from app.settings import Settings, SettingsError, load_settings
from app.settings.export import to_environment
from app.settings.load import PREFIX, SPECIFICATION_NAMES, known_settings
from app.settings.masking import masked
from fuzz.frame import Case, Target, check
from fuzz.values import Changer

PLANTED = "planted-secret-of-the-settings-0123456789"
URLS = (
    "http://host:8001",
    f"redis://u:{PLANTED}@host:6379/0",
    f"postgresql://u:{PLANTED}@host/db",
    "sqlite:///x.db",
    f"rediss://:{PLANTED}@[::1]:6379",
    "http://[",
    "://",
    "http://h:99999",
    f"https://u:{PLANTED}@host/#f",
)
MOST_TOLD = 20_000


def is_secret(kind: Any) -> bool:
    """Whether a setting's type holds a secret."""
    return kind is SecretStr or any(is_secret(inner) for inner in get_args(kind))


KNOWN = dict(known_settings())
SECRETS = frozenset(name for name, kind in KNOWN.items() if is_secret(kind))


class SettingsTarget(Target):
    """Settings are taken and read back equal, or refused in words that name them and hold no secret."""

    name = "settings"
    short_cases = 3000
    secrets = (PLANTED,)

    def start(self) -> None:
        """Make the file that a secret may be read from."""
        (self.folder / "secret").write_text(PLANTED)
        (self.folder / "bytes").write_bytes(b"\xff\xfe\x00")
        self.toml = self.folder / "flywheel.toml"

    def case(self, draw: random.Random) -> Case:
        """A file and an environment, each of some settings, mostly right."""
        changer = Changer(draw)
        case: Case = {"env": self._environment(draw, changer), "toml": None}
        if draw.random() < 0.6:
            case["toml"] = self._toml(draw, changer)
        return case

    def _value(self, draw: random.Random, changer: Changer, name: str) -> Any:
        default = _default(name)
        if name in SECRETS:
            return draw.choice((PLANTED, PLANTED, [PLANTED], "", 5))
        if name.endswith("url") or "url" in name:
            return draw.choice(URLS)
        if draw.random() < 0.45 and default is not None:
            return default
        return changer.value(1)

    def _environment(self, draw: random.Random, changer: Changer) -> dict[str, str]:
        env: dict[str, str] = {}
        for _ in range(draw.choice((0, 1, 1, 2, 4))):
            name = draw.choice(list(KNOWN))
            variable = PREFIX + name.upper().replace(".", "__")
            value = self._value(draw, changer, name)
            text = value if isinstance(value, str) else json.dumps(value)
            kind = draw.random()
            if kind < 0.1:
                variable, text = (
                    f"{variable}_FILE",
                    draw.choice(("{folder}/secret", "{folder}/bytes", "{folder}", "/nowhere")),
                )
            elif kind < 0.14:
                variable, text = draw.choice(list(SPECIFICATION_NAMES)), changer.word()
            elif kind < 0.18:
                variable = draw.choice(
                    (
                        variable[:-1],
                        variable + "_",
                        variable.replace("__", "_"),
                        f"{PREFIX}__",
                        PREFIX,
                        variable + "__X",
                        f"{PREFIX}KAFKA",
                        variable.lower(),
                    )
                )
            # An environment holds bytes but NUL; those that are no UTF-8 reach us as halves of surrogate pairs.
            raw = text.replace("\x00", "").encode("utf-8", "replace") + (b"\xff" if kind > 0.97 else b"")
            env[variable] = raw.decode("utf-8", "surrogateescape")
        return env

    def _toml(self, draw: random.Random, changer: Changer) -> str:
        tree: dict[str, Any] = {}
        for _ in range(draw.choice((1, 2, 3, 8))):
            name = draw.choice(list(KNOWN))
            section, _, leaf = name.rpartition(".")
            part = tree
            for step in section.split(".") if section else []:
                inner = part.setdefault(step, {})
                part = inner if isinstance(inner, dict) else {}
            part[leaf] = self._value(draw, changer, name)
        tree = changer.change(tree, draw.choice((0, 0, 0, 1, 2)))
        _out_of_place(tree)
        text = toml_of(tree)
        if draw.random() < 0.15:
            broken = changer.broken(text)
            # A piece that came twice may have made the secret the name of a setting, and names are told.
            text = broken if broken.count(PLANTED) <= text.count(PLANTED) else text
        if draw.random() < 0.02:
            many = draw.choice((1_000, 20_000))
            text = draw.choice(("a=" + "[" * many + "]" * many, "a.b" * many, "[a]\n" * many, "x=1\n" * many,
                                "[kafka]\n" + "".join(f"k{n} = 1\n" for n in range(many))))  # fmt: skip
        return text

    def run(self, case: Case) -> str:
        """Load it."""
        toml = None
        if case["toml"] is not None:
            self.toml.write_bytes(case["toml"].encode("latin-1", "replace"))
            toml = self.toml
        env = {name: value.replace("{folder}", str(self.folder)) for name, value in case["env"].items()}
        given = dict(env)
        try:
            settings = load_settings(env, toml)
        except SettingsError as error:
            self._refusal(str(error), given)
            return "refused"
        if not any(name.endswith("_FILE") for name in env):  # one that is none may be read from a secret's file
            self.unsaid(repr(settings), "the settings as they are shown")
            self.unsaid(json.dumps(masked(settings), default=str), "the masked settings")
        again = load_settings(to_environment(settings), None)
        check(_plain(again) == _plain(settings), "the settings are others when they are read back")
        return "taken with a file" if toml else "taken"

    def _refusal(self, told: str, given: dict[str, str]) -> None:
        self.unsaid(told, "the refusal")
        check(len(told) > 12, f"the refusal says too little: {told!r}")
        check(len(told) < MOST_TOLD, f"the refusal has {len(told)} characters")
        sections = {name.partition(".")[0] for name in KNOWN}
        named = any(name in told for name in (*sections, *given, "flywheel.toml", "setting"))
        check(named, f"the refusal names no setting: {told[:300]}")

    def settle(self) -> None:
        """A configuration with every setting at its default is taken."""
        self.toml.write_text(toml_of({"kafka": {"partitions": 8}, "web": {"token": PLANTED, "access": "tokens"}}))
        settings = load_settings({"FLYWHEEL_LOG__LEVEL": "DEBUG"}, self.toml)
        check((settings.kafka.partitions, settings.log.level) == (8, "DEBUG"), "a valid configuration is not taken")

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Taken and refused, with and without a file."""
        return {"refused", "taken", "taken with a file"} - set(outcomes)


def _out_of_place(tree: Any) -> None:
    """Take the secret from where no secret is kept: nobody could know there that it is one."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(tree, ())]
    while waiting:
        part, path = waiting.pop()
        kept = any(path[: len(name)] == name for name in (tuple(secret.split(".")) for secret in SECRETS))
        for key in list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            inner = (*path, str(key)) if isinstance(part, dict) else path
            secret_here = kept or any(inner[: len(name)] == name for name in (tuple(one.split(".")) for one in SECRETS))
            if isinstance(part[key], str) and part[key].count(PLANTED) > part[key].count(f":{PLANTED}@"):
                part[key] = part[key] if secret_here else "out of place"
            waiting.append((part[key], inner))


def _default(name: str) -> Any:
    found: Any = Settings()
    for part in name.split("."):
        found = getattr(found, part)
    if isinstance(found, Path):
        return str(found)
    return None if isinstance(found, SecretStr) else list(found) if isinstance(found, tuple) else found


def _plain(settings: Settings) -> Any:
    """The settings with secrets in clear and paths absolute, as a child's are."""
    return to_environment(settings)


def toml_of(tree: Any) -> str:
    """A tree as TOML; what TOML has not (null) is left out. One character a byte."""
    lines: list[str] = []
    try:
        _table(tree, (), lines)
    except RecursionError:
        lines = ["deep = " + "[" * 900 + "]" * 900]
    return "\n".join(lines).encode("utf-8", "surrogatepass").decode("latin-1") + "\n"


def _table(tree: Any, path: tuple[str, ...], lines: list[str]) -> None:
    if not isinstance(tree, dict):
        lines.append(f"value = {_inline(tree)}")
        return
    plain = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    for name, value in plain.items():
        if value is not None:
            lines.append(f"{json.dumps(name)} = {_inline(value)}")
    for name, value in tree.items():
        if isinstance(value, dict):
            lines.append("[" + ".".join(json.dumps(part) for part in (*path, name)) + "]")
            _table(value, (*path, name), lines)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value if item is not None) + "]"
    if isinstance(value, float):
        return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(json.dumps(value), repr(value))
    return json.dumps(value)
