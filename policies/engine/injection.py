"""Sentences that speak to whoever judges a text: orders, verdicts ready made, forged turns of the conversation.

Such a sentence tells nothing about the text's compliance, so it is left out of what is judged; and a text that
holds one is not believed when it looks like a refusal. Finding them is a help, never the only guard: whatever is
missed here is met by judging each sentence of a request by itself (`windows`).
"""

from __future__ import annotations

import re2

from policies.engine.windows import sentences

_RULES_WORD = r"(?:instructions?|rules?|prompts?|guidelines?|guardrails|constitution|directives?|polic(?:y|ies)|orders)"
_JUDGE = (
    r"(?:judges?|evaluators?|graders?|classifiers?|moderators?|raters?|assessors?|guards?|policy engine|"
    r"safety (?:filter|system|model|check)s?|llama ?guard|scorers?)"
)
_FINE = (
    r"(?:safe|compliant|harmless|benign|acceptable|allow(?:ed)?|approved?|permitted|pass(?:ed|es)?|true|refusal|"
    r"refused|refuses|non-?violating|ok(?:ay)?|clean)"
)
_MARKS = (
    # Orders to forget.
    rf"\b(?:ignore|disregard|forget|override|bypass|discard|drop|suspend)\b.{{0,60}}\b{_RULES_WORD}\b",
    rf"\b(?:new|updated|real|actual|following) {_RULES_WORD}\b\W{{0,3}}[:=]",
    rf"\b(?:{_RULES_WORD}) (?:above|below|before this)\b.{{0,40}}\b(?:void|obsolete|cancel|no longer|test)",
    # Verdicts ready made.
    (
        rf"\b(?:mark|rate|score|classify|label|judge|grade|flag|treat|report|record|count|consider|rule)\b.{{0,60}}"
        rf"\b(?:as|is|with|to be)\b.{{0,20}}\b(?:{_FINE}|1(?:\.0+)?|0?\.9\d*|100 ?%)"
    ),
    (
        rf"\b(?:verdict|compliance[ _]score|confidence[ _]score|allow|is_safe|compliant)"
        rf"[\"'`*_ ]{{0,4}}(?::|=|->|\bis\b)[\"'`*_ ]{{0,4}}\b(?:{_FINE}|1\.0|0?\.9\d*)\b"
    ),
    rf"[\"'](?:decision|request|answer|result|verdict|label|rating)[\"']\s*:\s*[\"']?{_FINE}\b",
    rf"\b(?:reply|respond|answer|output|return|print|say|emit|write|give)\b.{{0,40}}[\"'`{{]\s*\b{_FINE}\b",
    rf"\b(?:reply|respond|output|return|emit)\b.{{0,40}}\b(?:only|just|simply|exactly|verbatim)\b.{{0,40}}\b{_FINE}\b",
    # Somebody who judges is spoken to.
    (
        rf"\b(?:note|message|memo|attention|attn|dear|hello|hey|hi|instructions?|request|reminder|to)\b"
        rf"(?: (?:to|for|from))?(?: (?:the|all|any|our))?(?: \w+)? {_JUDGE}\b"
    ),
    rf"\b(?:you|thou) (?:are|must act as|will act as|act as) .{{0,40}}\b{_JUDGE}\b",
    rf"^\W{{0,6}}{_JUDGE}\b\W{{0,3}}[:,>]",
    r"\b(?:you are now|act as|pretend (?:to be|you)|roleplay as|from now on,? you)\b",
    # Forged turns and ends of data.
    r"^\W{0,6}(?:system|developer|assistant|administrator|admin|operator|root|tool)\b[\w ]{0,20}[:>\]|]",
    r"<\|.{0,40}\|>|\[/?INST\]|<</?SYS>>|</?(?:s|system|data|document|input|text|answer|request)\b.{0,20}>",
    r"<(?:start|end)_of_turn>|<(?:BEGIN|END) [A-Z ]{3,40}>|\bBEGIN[ _]?(?:SYSTEM|INSTRUCTIONS?|OVERRIDE)\b",
    r"\bend(?:ing)? of (?:the )?(?:data|input|text|document|untrusted|user|conversation|sample)\b",
    r"^\W{0,8}(?:EOF|END (?:DATA|OF DATA|INPUT|TEXT))\b",
    # The same in other tongues.
    r"\bignora\w* .{0,40}\b(?:instrucciones|istruzioni|instruções|reglas|regole|regras)\b",
    r"\b(?:ignore[zs]?|oublie[zs]?) .{0,40}\b(?:consignes|instructions|règles)\b",
    r"\b(?:ignorier\w*|vergiss|missachte\w*) .{0,40}\b(?:anweisung\w*|regeln|vorgaben)\b",
    r"(?:игнорир|забуд|отмен).{0,60}(?:инструкц|указани|правил)",
    r"(?:忽略|无视|忘记|忘掉).{0,20}(?:指令|指示|说明|规则|要求)|(?:指示|命令|ルール).{0,12}(?:無視|忘れ)",
    r"(?:지시|명령|규칙).{0,12}무시|تجاهل.{0,40}(?:التعليمات|القواعد)|(?:निर्देश|नियम).{0,30}अनदेखा",
    r"\b(?:talimat|kural|yönerge)\w*.{0,30}\b(?:yok say|görmezden)",
    r"\babaikan .{0,40}\b(?:instruksi|perintah|aturan)\b",
)
_ANY = re2.compile("(?i)" + "|".join(_MARKS))


def speaks_to_the_judge(sentence: str) -> bool:
    """Whether one sentence is addressed to whoever judges it."""
    return _ANY.search(sentence) is not None


def without_orders(text: str) -> tuple[str, bool]:
    """The text without the sentences that speak to the judge, and whether there were any."""
    parts = sentences(text)
    kept = [part for part in parts if not speaks_to_the_judge(part)]
    if len(kept) == len(parts):
        return text, False
    return " ".join(kept), True
