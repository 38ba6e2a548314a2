"""Live settings: what of the routing can be changed while it runs, within which bounds. Pure.

The catalogue is the one place that knows their names. A value comes as an operator's text (`parse`) or out of a
document (`apply`), and is held to the same bounds either way.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, get_args

from agents.routing.classify import RoutingRules
from agents.routing.limits import DeadLetterLimits
from agents.routing.pipeline import OnOutage
from models.event import Classification

LEAST_RATE = 2.0**-53
"""Below it, `1 - rate` is 1 in floating point and sampling keeps nothing."""

MOST = 2**31 - 1
"""The largest whole number: every store and format on the way holds it exactly."""

MOST_REMEMBERED = 1_000_000
"""The largest window of dead letters: a worker remembers what became of each message in it."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")


class LiveSettingError(ValueError):
    """An unknown live setting, or a value that it cannot have. The message names the remedy."""


@dataclass(frozen=True, slots=True)
class LiveValues:
    """All that can be changed while a router runs.

    Args:
        rules: what decides about events.
        on_outage: what becomes of records while claims cannot be had.
        dead_letter_limits: when the worker stops because of its dead letters.
    """

    rules: RoutingRules
    on_outage: OnOutage = "wait"
    dead_letter_limits: DeadLetterLimits = field(default_factory=DeadLetterLimits)


@dataclass(frozen=True, slots=True)
class Number:
    """Numbers from `low` to `high`, both included; only whole ones where `whole`."""

    low: float
    high: float
    remedy: str
    whole: bool = False

    def parse(self, text: str) -> Any:
        """The number in a text, unchecked; None where there is none."""
        if self.whole:
            return int(text) if _WHOLE.fullmatch(text) else None
        try:
            return float(text)
        except ValueError:
            return None

    def check(self, value: Any) -> float | int:
        """The value; raises ValueError with what is wrong with it."""
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or value != value:  # NaN
            raise ValueError(f"it must be a {'whole ' if self.whole else ''}number: {self.remedy}")
        if not self.low <= value <= self.high:
            within = "be" if self.low == self.high else "lie in"
            raise ValueError(f"it must {within} {self.bounds}: {self.remedy}")
        return int(value) if self.whole else float(value)

    @property
    def bounds(self) -> str:
        """The bounds as they are shown."""
        return f"{self.high:.10g}" if self.low == self.high else f"{self.low:.3g}..{self.high:.10g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    options: tuple[str, ...]
    remedy: str

    def parse(self, text: str) -> Any:
        """The word, unchecked."""
        return text

    def check(self, value: Any) -> str:
        """The value; raises ValueError with what is wrong with it."""
        if value not in self.options:
            raise ValueError(f"it must be {self.bounds}: {self.remedy}")
        return str(value)

    @property
    def bounds(self) -> str:
        """The options as they are shown."""
        return " or ".join(self.options)


@dataclass(frozen=True, slots=True)
class LiveSetting:
    """One live setting: its kind with the bounds, and its place in `LiveValues`."""

    name: str
    kind: Number | Choice
    meaning: str
    read: Callable[[LiveValues], Any]
    write: Callable[[LiveValues, Any], LiveValues]

    def check(self, value: Any) -> Any:
        """The value as it is kept; raises LiveSettingError."""
        try:
            return self.kind.check(value)
        except ValueError as error:
            raise LiveSettingError(f"{self.name} is {_shown(value)}; {error}") from None


def find(name: str) -> LiveSetting:
    """The setting of that name; raises LiveSettingError with the nearest known one."""
    setting = CATALOGUE.get(name)
    if setting is None:
        nearest = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else "`flywheel routing ls` shows them all"
        raise LiveSettingError(f"unknown live setting {_shown(name)}; {hint}")
    return setting


def parse(name: str, text: str) -> Any:
    """The value that an operator's text gives a setting; raises LiveSettingError."""
    setting = find(name)
    value = setting.kind.parse(text.strip())
    return setting.check(text if value is None else value)


def apply(configured: LiveValues, values: Mapping[str, Any]) -> LiveValues:
    """What is in force where `values` are set over what is configured; raises LiveSettingError."""
    in_force = configured
    for name, value in values.items():
        setting = find(name)
        in_force = setting.write(in_force, setting.check(value))
    return in_force


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rule(name: str, attribute: str, kind: Number, meaning: str) -> LiveSetting:
    def write(values: LiveValues, value: Any) -> LiveValues:
        return replace(values, rules=replace(values.rules, **{attribute: value}))

    return LiveSetting(name, kind, meaning, lambda values: getattr(values.rules, attribute), write)


def _rate(classification: Classification) -> LiveSetting:
    def write(values: LiveValues, value: Any) -> LiveValues:
        rates = {**values.rules.sample_rates, classification: value}
        return replace(values, rules=replace(values.rules, sample_rates=rates))

    if classification in _ALWAYS_KEPT:
        why = "the specification keeps every one of these; lower the rate of another classification instead"
        kind = Number(1.0, 1.0, why)
    else:
        kind = Number(
            LEAST_RATE, 1.0, "give the share to keep, such as 0.2; a rate of 0 would drop all of them, unseen"
        )
    meaning = f"share of {classification.value} events that is kept"
    return LiveSetting(
        f"{classification.value}.sample_rate",
        kind,
        meaning,
        lambda values: values.rules.sample_rate(classification),
        write,
    )


def _limit(attribute: str, kind: Number, meaning: str) -> LiveSetting:
    def write(values: LiveValues, value: Any) -> LiveValues:
        return replace(values, dead_letter_limits=replace(values.dead_letter_limits, **{attribute: value}))

    return LiveSetting(
        f"dead_letters.{attribute}", kind, meaning, lambda values: getattr(values.dead_letter_limits, attribute), write
    )


_ALWAYS_KEPT = frozenset({Classification.CONSTITUTIONAL_VIOLATION, Classification.MODEL_OPTIMIZATION_TRIGGER})
_SCORE = "give a compliance score, such as"

CATALOGUE: Mapping[str, LiveSetting] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            _rule(
                "trigger.threshold",
                "trigger_threshold",
                Number(0.0, 1.0, f"{_SCORE} 0.8"),
                "a compliance score below it triggers an optimization",
            ),
            _rule(
                "routine.threshold",
                "routine_threshold",
                Number(0.0, 1.0, f"{_SCORE} 0.95"),
                "a successful audit trail event with a score above it is dropped",
            ),
            *(_rate(classification) for classification in Classification),
            _rule(
                "dedup.window_s",
                "dedup_ttl_s",
                Number(1, MOST, "give seconds, such as 3600", whole=True),
                "how long, in seconds, a second telling of an event is known as one",
            ),
            LiveSetting(
                "dedup.on_outage",
                Choice(get_args(OnOutage), "wait holds records back while Redis is away, pass routes them unchecked"),
                "what becomes of records while Redis is away",
                lambda values: values.on_outage,
                lambda values, value: replace(values, on_outage=value),
            ),
            _limit(
                "max_share",
                Number(0.0, 1.0, "give a share, such as 0.5; 1 sets no bound"),
                "share of dead letters among the last records above which the worker stops",
            ),
            _limit(
                "window",
                Number(1, MOST_REMEMBERED, "give a number of records, such as 10000", whole=True),
                "how many of the last records dead_letters.max_share is of",
            ),
            _limit(
                "max_run",
                Number(0, MOST, "give a number of dead letters, such as 5000; 0 sets no bound", whole=True),
                "dead letters in a row on one partition beyond which the worker stops",
            ),
        )
    }
)
"""Every live setting by its name."""
