"""A conversation as the tokens of a model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2.exceptions import TemplateError

# SmolLM2's template puts a 22-token system message before a conversation that has none; this one costs 10.
SHORT_SYSTEM: Final = "You are a helpful assistant."


class ChatTemplateError(ValueError):
    """A conversation cannot be rendered: no template, a role it refuses, or too long even when cut."""


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    prefill: str = "",
    *,
    system: str | None = SHORT_SYSTEM,
    max_tokens: int | None = 2048,
) -> list[int]:
    """The tokens of ``messages`` up to where the assistant speaks, then those of ``prefill``.

    ``messages`` are ``{"role", "content"}`` maps. ``system`` goes before a conversation without system
    message (``None``: whatever the template puts there itself). The model continues ``prefill``, whose tokens
    are those ``encode_text`` gives, so a prefilled prompt is the plain prompt with tokens appended. Control
    tokens written inside a message are broken up: a message cannot end itself or open another role's turn.

    A conversation above ``max_tokens`` loses the end of its longest message. Raises ``ChatTemplateError``.
    """
    turns = [{"role": turn["role"], "content": _defused(tokenizer, turn["content"])} for turn in messages]
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    opening = encode_text(tokenizer, prefill) if prefill else []
    ids = _render(tokenizer, turns)
    while max_tokens is not None and len(ids) + len(opening) > max_tokens:
        _shorten(tokenizer, turns, len(ids) + len(opening) - max_tokens, max_tokens)
        ids = _render(tokenizer, turns)
    return ids + opening


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The tokens of plain text: nothing added, control tokens broken up."""
    return list(tokenizer(_defused(tokenizer, text), add_special_tokens=False)["input_ids"])


def encode_target(tokenizer: Any, text: str) -> list[int]:
    """The tokens a model should answer with: the text, then the token that ends the turn."""
    return [*encode_text(tokenizer, text), int(tokenizer.eos_token_id)]


def _render(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError) as error:
        raise ChatTemplateError(f"the model's chat template refused the conversation: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shorten(tokenizer: Any, turns: list[dict[str, str]], excess: int, max_tokens: int) -> None:
    """Cut ``excess`` tokens off the end of the longest message, in place."""
    lengths = [len(encode_text(tokenizer, turn["content"])) for turn in turns]
    longest = max(range(len(turns)), key=lengths.__getitem__)
    keep = lengths[longest] - excess
    if keep < 1:
        raise ChatTemplateError(
            f"a conversation does not fit {max_tokens} tokens even with its longest message removed: "
            "send fewer turns or raise the limit"
        )
    tokens = encode_text(tokenizer, turns[longest]["content"])
    turns[longest]["content"] = tokenizer.decode(tokens[:keep], skip_special_tokens=True)


def _defused(tokenizer: Any, text: str) -> str:
    """``text`` with a space inside everything the tokenizer would read as one of its control tokens."""
    for token in _control_tokens(tokenizer):
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _control_tokens(tokenizer: Any) -> list[str]:
    named = set(tokenizer.all_special_tokens)
    named.update(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [token for token in named if len(token) > 1]
