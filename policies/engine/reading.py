"""How a text is read before it is judged: cleared of disguise, and cut into the pieces that count."""

from __future__ import annotations

from dataclasses import dataclass

from policies.engine import rules
from policies.engine.injection import without_orders
from policies.engine.text import decoded, plain
from policies.engine.windows import stretches, windows


@dataclass(frozen=True, slots=True)
class Judged:
    """One text to judge; `prompt` None means that `content` is itself a request."""

    content: str
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A text in plain letters, and its pieces.

    answer: the content. wording: what the rules find in it. request: the pieces of the prompt, or of the content where
    there is none, and what they carry in codes. opening: the head of the answer. parts: what else of the answer counts:
    its stretches where it is long and does not open with a refusal, its sentences too (but for those that speak to
    the judge) where it is not `believed`. injection: something speaks to the judge.
    """

    answer: str
    prompt: str | None
    wording: rules.RuleFindings
    request: list[str]
    opening: str
    parts: list[str]
    injection: bool
    believed: bool

    @classmethod
    def of(cls, text: Judged) -> Reading:
        """Read one text."""
        answer = plain(text.content)
        prompt = None if text.prompt is None else plain(text.prompt)
        asked = answer if prompt is None else prompt
        told, in_answer = without_orders(answer)
        in_answer = in_answer or any(without_orders(message)[1] for message in decoded(answer))
        wording = rules.inspect(answer)
        believed = not in_answer and not wording.after_all
        injection = in_answer or without_orders(asked)[1]
        return cls(
            answer=answer,
            prompt=prompt,
            wording=wording,
            request=[piece for source in (asked, *decoded(asked)) for piece in windows(plain(source), injection)],
            opening=rules.opening(answer),
            # An answer of nothing but orders still has to be looked at.
            parts=[] if prompt is None else _parts(told if told.strip() else answer, wording, believed),
            injection=injection,
            believed=believed,
        )

    @property
    def whole_answer(self) -> str:
        """The answer on one line."""
        return " ".join(self.answer.split())

    @property
    def whole_prompt(self) -> str:
        """The prompt on one line."""
        return " ".join((self.prompt or "").split())

    def pieces(self) -> list[str]:
        """All that needs a vector."""
        pieces = [self.opening, *self.request, *self.parts]
        return pieces if self.prompt is None else [*pieces, self.whole_prompt, self.whole_answer]


def _parts(answer: str, wording: rules.RuleFindings, believed: bool) -> list[str]:
    if not believed:
        return windows(answer, every=True)
    if wording.refusal or len(answer) <= rules.OPENING_CHARS:
        return []
    return stretches(answer)
