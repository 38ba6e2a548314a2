"""How values look to RE2, beyond what the table's patterns say: what a validator adds, what looks alike and is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from otel.validators import _IBAN_LENGTHS

LEAD: Final = r"(?:^|[^0-9A-Za-z_.\-+]|\\[nrtbf]|\\u00[01][0-9A-Fa-f])"
GUARD_LEAD: Final = r"[^0-9A-Za-z_.\-+]"
ESCAPE: Final = r"(?:\\[nrtbf])?"
GAP: Final = r"\s{0,4}"
JSON_NAME: Final = r'\\*"[^"\\]{1,80}\\*"' + GAP + ":" + GAP
NUMBER: Final = r"-?[0-9][0-9.eE+\-]*"
DATE: Final = (
    r"(?:(?:19|20)[0-9]{2}[ ./\-][0-9]{1,2}[ ./\-][0-9]{1,2}|[0-9]{1,2}[ ./\-][0-9]{1,2}[ ./\-](?:19|20)[0-9]{2}"
    r"|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])|1[0-9]{9})\b"
)
# Not the first two of three groups of digits.
DECIMAL: Final = r"[0-9]+\.[0-9]+(?:[^0-9.]|\.[^0-9]|\.?$)"
SEVEN_DIGITS: Final = r"\+?\(?[0-9](?:[ .\-/()]{0,2}[0-9]){5}"
EXTENSION: Final = r"(?: ?(?i:x|ext\.?) ?[0-9]{1,5})?"
TO_ID: Final = r'\{(?:[^{}]|\{[^{}]*\})*?\\*"'
# Up to the digits; not into the next field of JSON.
UP_TO: Final = r'(?:[^0-9,]|,[^"]){0,70}?'


def _ibans() -> str:
    """Each country's code with as many characters as it has; in groups of four, any number of them."""
    by_length: dict[int, list[str]] = {}
    for country, length in _IBAN_LENGTHS.items():
        by_length.setdefault(length, []).append(country)
    whole = (rf"(?:{'|'.join(codes)})[0-9]{{2}}[0-9A-Z]{{{length - 4}}}" for length, codes in by_length.items())
    grouped = rf"(?:{'|'.join(_IBAN_LENGTHS)})[0-9]{{2}}(?: [0-9A-Z]{{4}}){{2,7}}(?: [0-9A-Z]{{1,4}})?"
    return "|".join((*whole, grouped))


def trunk_numbers() -> str:
    """National numbers with trunk prefix 0: groups behind one kind of separator, 9 digits at least (but for one)."""
    first = r"\(?0[1-9][0-9]{0,3}\)?"
    found = [rf"{first}(?:{sign}[0-9]{{2,4}}){{3,4}}" for sign in _SEPARATORS]
    found += [rf"\(?0[1-9][0-9]{{0,3}}\)?{sign}[0-9]{{3,4}}{sign}[0-9]{{4}}" for sign in _SEPARATORS]
    return "|".join((*found, r"\(?0[1-9][0-9]{1,3}\)?[ \-/][0-9]{5,8}"))


# What a validator adds to a pattern, as far as an expression can say it.
REFINED: Final = {
    "iban": _ibans(),
    "ipv6": (
        r"(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"
        r"|(?i:[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe[89ab][0-9a-f]|ff[0-9a-f]{2}|64)(?::[0-9A-Fa-f]{1,4}){0,6}::"
        r"(?:[0-9A-Fa-f]{1,4}:){0,6}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4})"
        r"|::(?i:ffff:)(?:0{1,4}:)?(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4})|::1"
    ),
    # 9 to 15 digits, ITU-T E.164.
    "phone_international": (
        r"(?:\+[1-9](?:[ .\-/()]{0,3}[0-9]){8,14}|00[1-9][0-9]{0,2}[ .\-](?:[ .\-/()]{0,3}[0-9]){6,12})" + EXTENSION
    ),
}
# What the guard looks for instead: more than a value, never less, and short. Go matches an expression of up to 500
# instructions several times faster than a longer one.
GUARDED: Final = {
    "luhn": r"[2-6][0-9]{3}(?:[ \-]?[0-9]){10}",
    "iban": r"[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]){11}",
    "ipv4": r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
    "ipv6": r"(?:[0-9A-Fa-f]*::|(?:[0-9A-Fa-f]+:){6})",
    "phone_international": r"(?:\+[1-9](?:[ .\-/()]{0,3}[0-9]){8}|00[1-9][0-9]{0,2}[ .\-])",
}
# A value of fixed length that goes on after a dot or hyphen is another thing (an OID, a part number).
GOES_ON: Final = frozenset({"ipv4", "ssn"})
_SEPARATORS: Final = (" ", r"\.", "-", "/")
PHONES: Final = frozenset({"phone_national", "phone_context"})

# The login of all git remotes, which is nobody's.
GIT_LOGIN: Final = r"(?:^|[^0-9A-Za-z._%+'\-]|\\[nrtbf])git@[0-9A-Za-z.\-]+"
# What stands for a secret in source code: nothing, a call to come, a setting.
CODE: Final = (
    r"(?:None|null|nil|undefined|[Tt]rue|[Ff]alse|await|new)(?:[\s;,)\]}\"'\\]|$)"
    r"|(?:process\.env|os\.environ|self|this|settings|config|args)\.[0-9A-Za-z_.]+"
    r"|[A-Za-z_][0-9A-Za-z_]*(?:(?:\.|::)[A-Za-z_][0-9A-Za-z_]*)+[(\[]"
)
VALUE: Final = r"[^\s\"'\\,;&<>(){}\[\]*$]"
TRUNK: Final = r"\(?0"
BEARER: Final = r"(?i:bearer|basic) +[0-9A-Za-z._~+/=\-]{8,}"


def literals(words: Iterable[str]) -> Iterable[str]:
    """Words of context; a leading alternation is told apart, so that each begins with a literal."""
    for word in words:
        first, closed, rest = word.removeprefix("(?:").partition(")")
        if word.startswith("(?:") and closed:
            yield from (part + rest for part in first.split("|"))
        else:
            yield word
