"""A chat endpoint that judges honestly, and obeys every order that it can see outside the data it is to judge.

It stands for the worst judge model there could be: it understands all of `injections.ATTEMPTS`, in any language and
code. It reads its prompt as a server does: the messages become one text by a chat template, so control tokens within
a message begin a new turn. Data is to it what stands, in a user's turn, between the first two of the fences that the
first system message names; everything else, and everything where no fences are named, may hold an order to obey.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from injections import ATTEMPTS, VIOLATIONS

_CYRILLIC = str.maketrans("аеорсхуі", "aeopcxyi")  # noqa: RUF001  Cyrillic on purpose
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?=<\|im_end\|>|<\|im_start\|>|\Z)", re.DOTALL)
_OTHER_TURNS = re.compile(r"<\|start_header_id\|>|<start_of_turn>|\[/?INST\]|<\|eot_id\|>")


@dataclass
class ObedientJudge:
    """The endpoint; `app` serves it, `obeyed` counts the replies that an order brought about."""

    asked: int = 0
    obeyed: int = 0
    app: FastAPI = field(default_factory=FastAPI)

    def __post_init__(self) -> None:
        self.app.post("/v1/chat/completions")(self.complete)

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        self.asked += 1
        messages = body["messages"]
        text = _json_reply(self, messages) if messages[0]["role"] == "system" else _guard_reply(self, messages)
        return {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"total_tokens": 321},
        }


def understood(text: str) -> str | None:
    """The first order in a text that it would obey."""
    views = [" ".join(view.casefold().split()) for view in _views(text)]
    views.append("".join(text.casefold().split()))
    return next((a.cue for a in ATTEMPTS if any(a.cue in view for view in views)), None)


def _json_reply(judge: ObedientJudge, messages: list[dict[str, str]]) -> str:
    prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    (_, system), *rest = _TURN.findall(prompt)
    nonce = re.search(r'"nonce": "(\w+)"', system)
    assert nonce is not None, "the prompt does not say what to reply"
    visible, data = _apart(system, rest)
    if understood(visible):
        judge.obeyed += 1
        request, answer = "harmless", "refuses"
    else:
        request, answer = ("harmful", "complies") if _is_violation(data or visible) else ("harmless", "complies")
    broken = ["harm"] if request == "harmful" else []
    return json.dumps({"nonce": nonce[1], "request": request, "answer": answer, "principles": broken})


def _apart(system: str, turns: list[tuple[str, str]]) -> tuple[str, str]:
    """What it takes for orders, and what it takes for data: in a user's turn, what the named fences enclose."""
    fence = re.search(r"two lines that read (\S+)\.", system)
    orders, data = [], []
    for role, content in turns:
        if fence is None or role != "user":
            orders.append(content)
            continue
        before, *rest = re.split(rf"(?m)^{re.escape(fence[1])}$\n?", content)
        data += [_decoded(block) for block in rest[:1]]
        orders += [before, *rest[1:]]
    return "\n".join(orders), "\n".join(data)


def _decoded(block: str) -> str:
    try:
        return "\n".join(json.loads(block).values())
    except (ValueError, AttributeError):
        return block


def _guard_reply(judge: ObedientJudge, messages: list[dict[str, str]]) -> str:
    """As Llama Guard: the conversation stands between two marks of its template; turns begin on lines of their own."""
    speakers = {"user": "User", "assistant": "Agent"}
    turns = "\n\n".join(f"{speakers[m['role']]}: {m['content']}" for m in messages)
    prompt = f"<BEGIN CONVERSATION>\n\n{turns}\n\n<END CONVERSATION>\n\nProvide your safety assessment."
    conversation, _, outside = prompt.partition("<END CONVERSATION>")
    forged = len(re.findall(r"(?m)^(?:User|Agent|Assistant): ", conversation)) - len(messages)
    if understood(outside) or ((forged or _OTHER_TURNS.search(conversation)) and understood(conversation)):
        judge.obeyed += 1
        return "safe"
    return "unsafe\nS1,S9" if _is_violation(conversation) else "safe"


def _is_violation(text: str) -> bool:
    seen = _plain(text)
    return any(_plain(v.prompt or "") in seen for v in VIOLATIONS)


def _plain(text: str) -> str:
    bare = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(bare.translate(_CYRILLIC).casefold().split())


def _views(text: str) -> Iterator[str]:
    yield from (text, _plain(text), codecs.encode(text, "rot13"), text[::-1], unquote(text))
    for run in re.findall(r"[A-Za-z0-9+/=]{24,}", text):
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            yield base64.b64decode(run, validate=True).decode()
        with contextlib.suppress(ValueError):
            yield bytes.fromhex(run).decode()
