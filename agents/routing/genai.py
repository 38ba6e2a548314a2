"""OpenTelemetry's GenAI semantic conventions, so that an application instrumented for them needs no change.

Source: OpenTelemetry semantic conventions, "Gen AI" (attributes `gen_ai.*`), the current names and the older ones
that instrumentations still send. What a convention says only fills fields that the event itself leaves open, and the
attributes themselves travel on.
"""

from __future__ import annotations

from typing import Any

import orjson

from agents.routing.message import Event

_REQUEST_MODEL = "gen_ai.request.model"
_RESPONSE_MODEL = "gen_ai.response.model"
_INPUT_MESSAGES = "gen_ai.input.messages"
_OUTPUT_MESSAGES = "gen_ai.output.messages"
_PROMPT = "gen_ai.prompt"
_COMPLETION = "gen_ai.completion"
_TOKEN_COUNTS = (
    ("input_tokens", "gen_ai.usage.input_tokens"),
    ("input_tokens", "gen_ai.usage.prompt_tokens"),
    ("output_tokens", "gen_ai.usage.output_tokens"),
    ("output_tokens", "gen_ai.usage.completion_tokens"),
)
_MARKERS = frozenset(
    (
        _REQUEST_MODEL,
        _RESPONSE_MODEL,
        _INPUT_MESSAGES,
        _OUTPUT_MESSAGES,
        _PROMPT,
        _COMPLETION,
        *(attribute for _, attribute in _TOKEN_COUNTS),
    )
)


def fill(event: Event) -> None:
    """Fill model, prompt, response, messages and token counts of `event`, in place, from its `gen_ai.*` attributes.

    The model that was asked for names `model_id` (it is what a team deploys and improves); the one that answered
    becomes `model_version` where it differs. `prompt` is the last user message, `response` the first choice.
    """
    if _MARKERS.isdisjoint(event):
        return
    _fill_model(event)
    asked = _messages(event.get(_INPUT_MESSAGES)) or _messages(event.get(_PROMPT), role="user")
    answered = _messages(event.get(_OUTPUT_MESSAGES)) or _messages(event.get(_COMPLETION), role="assistant")
    if asked:
        event.setdefault("messages", asked)
        if prompt := _last_user(asked):
            event.setdefault("prompt", prompt)
    if answered and answered[0]["content"]:
        event.setdefault("response", answered[0]["content"])
    for name, attribute in _TOKEN_COUNTS:
        count = event.get(attribute)
        if type(count) is int and name not in event:
            event[name] = count


def _fill_model(event: Event) -> None:
    requested, responded = event.get(_REQUEST_MODEL), event.get(_RESPONSE_MODEL)
    model = requested if isinstance(requested, str) and requested else responded
    if isinstance(model, str) and model:
        event.setdefault("model_id", model)
        if isinstance(responded, str) and responded and responded != model:
            event.setdefault("model_version", responded)


def _last_user(messages: list[dict[str, str]]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            return message["content"]
    return messages[-1]["content"]


def _messages(value: Any, role: str = "unknown") -> list[dict[str, str]]:
    """Normalise a message list (structured, or as JSON text), or a plain text, to `{role, content}` entries."""
    if isinstance(value, str):
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, list | dict):
            return [{"role": role, "content": value}] if value else []
        value = parsed
    entries = value if isinstance(value, list) else [value]
    return [
        {"role": _text(entry.get("role")) or role, "content": _content(entry)}
        for entry in entries
        if isinstance(entry, dict)
    ]


def _content(entry: dict[str, Any]) -> str:
    parts = entry.get("parts", entry.get("content"))
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return ""
    texts = (part if isinstance(part, str) else _part_text(part) for part in parts)
    return "\n".join(text for text in texts if text)


def _part_text(part: Any) -> str:
    if not isinstance(part, dict):
        return ""
    return _text(part.get("content")) or _text(part.get("text"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
