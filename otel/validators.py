"""Checks that a pattern cannot make: checksums, number plans, address syntax.

A validator gets the text a pattern matched and returns how many of its characters, from the first, hold the
value: 0 when it is no such value, less than all when the pattern took too much.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

Validator = Callable[[str], int]

# Lengths by country, ISO 13616 registry (SWIFT IBAN Registry).
_IBAN_LENGTHS: Final = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FO", "FI", "GL", "NL", "SD", "FK"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "XK", "LT", "LU", "MN"), 20),
    **dict.fromkeys(("CR", "HR", "LV", "LI", "CH"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "OM", "SO", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "MD", "PK", "RO", "SA", "SE", "SK", "ES", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HN", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
    **dict.fromkeys(("RU",), 33),
}  # fmt: skip

# Country calling codes of one or two digits; every other assigned code has three (ITU-T E.164, annex).
_CODES_1: Final = frozenset("17")
_CODES_2: Final = re.compile(r"2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]")
_CODES_3: Final = re.compile(r"2[1-689]\d|3[578]\d|42[013]|50\d|59\d|6[789]\d|80[08]|85[02356]|8[78]\d|9[679]\d")

_EXTENSION: Final = re.compile(r"\s?(?:x|ext\.?)\s?\d{1,5}$", re.IGNORECASE)
_LAST_GROUP: Final = re.compile(r"[ .\-/()]+\d+\)?$")
_DATE: Final = re.compile(
    r"(?:19|20)\d\d[ ./-](?:0?[1-9]|1[0-2])[ ./-](?:0?[1-9]|[12]\d|3[01])(?!\d).*"
    r"|(?:0?[1-9]|[12]\d|3[01])[ ./-](?:0?[1-9]|[12]\d|3[01])[ ./-](?:19|20)\d\d(?!\d).*"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"|(?:19|20)\d\d[ -]+(?:19|20)\d\d"
)
_NO_DIGITS: Final = bytes(char for char in range(256) if not 48 <= char <= 57)
# Of each digit its double's cross sum, and the numbers that stand for letters in an IBAN.
_DOUBLED: Final = bytes.maketrans(b"0123456789", b"0246813579")
_IBAN_NUMBERS: Final = {ord("A") + at: str(10 + at) for at in range(26)}
_MAPPED_IPV4: Final = bytes(10) + b"\xff\xff"
_OCTETS: Final = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}", re.ASCII)
_DECIMAL: Final = re.compile(r"\d+\.\d+")


def _digits(text: str) -> str:
    return text.encode().translate(None, _NO_DIGITS).decode()


def luhn_valid(digits: str) -> bool:
    """The mod 10 check of ISO/IEC 7812-1, annex B."""
    rest, doubled = digits[::-2].encode(), digits[-2::-2].encode().translate(_DOUBLED)
    return (sum(rest) + sum(doubled)) % 10 == 48 * len(digits) % 10


def _card_lengths(digits: str) -> range | tuple[int, ...]:
    """The lengths that a card number with this issuer prefix can have."""
    two, three, four = int(digits[:2]), int(digits[:3]), int(digits[:4])
    if two in (34, 37):
        return (15,)
    if digits[0] == "4":
        return (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return (16,)
    if 300 <= three <= 305 or two in (36, 38, 39) or three == 309:
        return range(14, 20)
    if 3528 <= four <= 3589:
        return range(16, 20)
    if four in (1800, 2131):
        return (15,)
    if two in (60, 62, 64, 65, 81):
        return range(16, 20)
    if two in (50, 56, 57, 58, 59, 61, 63, 66, 67, 68, 69):
        return range(12, 20)
    return ()


def _in_use(digits: str) -> bool:
    return len(digits) in _card_lengths(digits)


def _any_issuer(digits: str) -> bool:
    return digits[0] in "23456" or digits[:4] == "1800"


def card(text: str) -> int:
    """A payment card number: issuer prefix in use (ISO/IEC 7812-1), length for that prefix, check digit."""
    return _card(text, _in_use)


def card_in_context(text: str) -> int:
    """A card number beside a word that says so: any issuer (ranges are added, test data invents them)."""
    return _card(text, _any_issuer)


def _card(text: str, accept: Callable[[str], bool]) -> int:
    end = len(text)
    while end >= 12:
        digits = _digits(text[:end])
        if accept(digits) and len(set(digits)) > 1 and luhn_valid(digits):
            return end
        cut = max(text.rfind(" ", 0, end), text.rfind("-", 0, end))
        if cut < 0:
            return 0
        end = cut
    return 0


def ipv4(text: str) -> int:
    """An IPv4 address in dotted form (RFC 791), octets without leading zeros."""
    return len(text) if _OCTETS.fullmatch(text) else 0


def ipv6(text: str) -> int:
    """An IPv6 address (RFC 4291).

    Shortened forms count only in ranges that are in use (global unicast, unique local, link local,
    multicast, loopback, mapped IPv4): `1::2` and `a::b` are slices and scope operators more often.
    """
    try:
        address = socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return 0
    if "::" not in text:
        return len(text)
    first = int.from_bytes(address[:2], "big")
    in_use = (
        0x2000 <= first <= 0x3FFF or 0xFC00 <= first <= 0xFDFF or 0xFE80 <= first <= 0xFEBF or first >= 0xFF00
    ) and any(map(str.isdigit, text))
    mapped = address.startswith(_MAPPED_IPV4) or first == 0x64
    return len(text) if in_use or mapped or text == "::1" else 0


def iban(text: str) -> int:
    """An IBAN: the country's length and the ISO 7064 mod 97-10 check."""
    length = _IBAN_LENGTHS.get(text[:2])
    if length is None:
        return 0
    taken = count = 0
    for char in text:
        taken += 1
        count += char != " "
        if count == length:
            break
    compact = text[:taken].replace(" ", "")
    if len(compact) != length:
        return 0
    number = (compact[4:] + compact[:4]).translate(_IBAN_NUMBERS)
    return taken if int(number) % 97 == 1 else 0


def ssn(text: str) -> int:
    """A US social security number: no area 000, 666 or 9xx, no group 00, no serial 0000 (20 CFR 422.103)."""
    digits = _digits(text)
    bad = digits[0] == "9" or digits[:3] in ("000", "666") or digits[3:5] == "00" or digits[5:] == "0000"
    return 0 if bad or len(set(digits)) == 1 else len(text)


def _calling_code(digits: str) -> bool:
    return digits[0] in _CODES_1 or _CODES_2.match(digits) is not None or _CODES_3.match(digits) is not None


def _is_international(text: str) -> bool:
    digits = _digits(_EXTENSION.sub("", text).replace("(0)", ""))
    if text.startswith("00"):
        digits = digits[2:]
    if digits[:1] == "1":
        return len(digits) == 11 and digits[1] in "23456789"
    return 9 <= len(digits) <= 15 and _calling_code(digits)


def phone_international(text: str) -> int:
    """A number with + or 00, an assigned country code and 9 to 15 digits in all (ITU-T E.164)."""
    return _longest(text, _is_international)


def _is_national(text: str) -> bool:
    body = _EXTENSION.sub("", text)
    if _DATE.match(body):
        return False
    digits = _digits(body)
    if digits[0] == "0":
        separators = set(re.findall(r"(?<=\d)[ .\-/](?=\d)", body))
        return 9 <= len(digits) <= 11 and len(separators) <= 1
    return len(digits) == 10 or (len(digits) == 11 and digits[0] == "1")


def phone_national(text: str) -> int:
    """A North American number in groups, or a number with trunk prefix 0 in groups of one separator."""
    return _longest(text, _is_national)


def _is_phone_in_context(text: str) -> bool:
    body = _EXTENSION.sub("", text)
    if _DATE.match(body) or _DECIMAL.fullmatch(body):
        return False
    if body.startswith(("+", "00")):
        return _is_international(body)
    digits = _digits(body.replace("(0)", ""))
    looks_like_seconds = len(digits) == 10 and digits[0] == "1" and body.isdigit()
    return 7 <= len(digits) <= 12 and not looks_like_seconds and len(set(digits)) > 1


def phone_context(text: str) -> int:
    """7 to 12 digits in any grouping, beside a word such as "phone"; not a date, a decimal or Unix seconds."""
    return _longest(text, _is_phone_in_context)


def _longest(text: str, accept: Callable[[str], bool]) -> int:
    """The length of the longest front part, cut between groups of digits, that `accept` takes."""
    while len(text) >= 7:
        if accept(text):
            return len(text)
        shorter = _LAST_GROUP.sub("", _EXTENSION.sub("", text))
        if shorter == text:
            return 0
        text = shorter
    return 0


def anything(text: str) -> int:
    """Takes what the pattern took."""
    return len(text)


VALIDATORS: Final[Mapping[str, Validator]] = MappingProxyType(
    {
        "none": anything,
        "luhn": card,
        "luhn_any_issuer": card_in_context,
        "ipv4": ipv4,
        "ipv6": ipv6,
        "iban": iban,
        "ssn": ssn,
        "phone_international": phone_international,
        "phone_national": phone_national,
        "phone_context": phone_context,
    }
)
