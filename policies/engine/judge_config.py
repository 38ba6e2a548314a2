"""Everything that can be set about the judge model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.clients.chat import ChatServer

JudgeFormat = Literal["openai_json", "llama_guard"]
JudgeRole = Literal["lower", "lower_or_raise"]

LLAMA_GUARD_CATEGORIES: Mapping[str, str] = {
    "S1": "harm",
    "S2": "illegal_acts",
    "S3": "illegal_acts",
    "S4": "child_safety",
    "S5": "deception",
    "S6": "professional_advice",
    "S7": "privacy",
    "S8": "illegal_acts",
    "S9": "weapons",
    "S10": "hate_and_bias",
    "S11": "self_harm",
    "S13": "deception",
    "S14": "illegal_acts",
}
"""The principle of the default constitution that stands for each hazard category of Llama Guard 3 (the MLCommons
taxonomy, and S14 for abuse of a code interpreter). S12, sexual content among adults, is forbidden by none."""


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """A chat model that judges what the local evaluators would let pass.

    url: the base of an OpenAI-compatible API, such as `http://vllm:8000/v1`. token: its bearer token.
    format: `openai_json` asks any chat model for a JSON verdict; `llama_guard` speaks with Llama Guard.
    role: `lower` lets the judge only take confidence away; `lower_or_raise` lets it also lift a text that the local
    evaluators are unsure of (between deny_below and threshold), never one that they deny.
    weight: share of the judge's finding in the confidence, 0 (none) to 1 (the judge's alone).
    certainty: probability that the judge's plain word is taken for.
    least_harm: texts whose request_harm is below it are not sent to the judge.
    timeout_s: of one attempt. deadline_s: of all judgements of a single evaluation, retries and waiting included;
    batch_deadline_s: of a batch. Keep both below the client's own.
    retries: further attempts after a failure that may pass. concurrency: judgements under way at a time.
    requests_per_minute: attempts in any minute; 0 is no limit.
    calls_per_day, tokens_per_day: budget of a day (UTC); 0 is no limit.
    max_chars: a longer text is not sent. max_reply_tokens: of the judge's answer.
    json_mode: ask for `response_format: json_object`; turn it off for a server that refuses it.
    categories: Llama Guard's categories, each with the id of a principle; one that is not named breaches none.
    """

    url: str
    model: str
    token: str | None = field(default=None, repr=False)
    format: JudgeFormat = "openai_json"
    role: JudgeRole = "lower"
    weight: float = 1.0
    certainty: float = 0.98
    least_harm: float = 0.0
    timeout_s: float = 5.0
    deadline_s: float = 8.0
    batch_deadline_s: float = 45.0
    retries: int = 2
    concurrency: int = 8
    requests_per_minute: int = 600
    calls_per_day: int = 0
    tokens_per_day: int = 0
    max_chars: int = 20_000
    max_reply_tokens: int = 200
    json_mode: bool = True
    categories: Mapping[str, str] = field(default_factory=lambda: dict(LLAMA_GUARD_CATEGORIES))

    def __post_init__(self) -> None:
        try:
            _ = self.server
        except ValueError as error:
            raise ValueError(f"judge {error}") from None
        if not self.model.strip():
            raise ValueError("judge model is empty; name the model that the endpoint serves")
        if self.token is not None and not self.token.strip():
            raise ValueError("judge token is empty; set a secret, or None for an endpoint without")
        _hold(self, ("weight", "least_harm"), lambda value: 0.0 <= value <= 1.0, "set it between 0 and 1")
        _hold(self, ("certainty",), lambda value: 0.5 < value < 1.0, "set it above 0.5 and below 1")
        _hold(self, ("timeout_s", "deadline_s", "batch_deadline_s"), lambda value: value > 0, "set seconds above 0")
        _hold(self, ("concurrency", "max_chars", "max_reply_tokens"), lambda value: value >= 1, "set 1 or more")
        limits = ("retries", "requests_per_minute", "calls_per_day", "tokens_per_day")
        _hold(self, limits, lambda value: value >= 0, "set 0 or more")

    @property
    def server(self) -> ChatServer:
        """The endpoint, as its client takes it."""
        return ChatServer(self.url, self.token, self.timeout_s, self.retries, self.concurrency)


def _hold(config: JudgeConfig, names: tuple[str, ...], holds: Callable[[float], bool], remedy: str) -> None:
    for name in names:
        if not holds(getattr(config, name)):
            raise ValueError(f"judge {name}={getattr(config, name)}: {remedy}")
