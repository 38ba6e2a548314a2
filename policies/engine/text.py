"""Reading a text as a person would: without hidden characters, look-alike letters and what is packed in codes.

The texts come from outside, and some are written so that a machine reads something else than a person.
"""
# ruff: noqa: RUF001  look-alike letters are what this is about

from __future__ import annotations

import base64
import binascii
import string
import unicodedata
from urllib.parse import unquote

import re2

# Letters that look like Latin ones, each before what it looks like; NFKC leaves them alone.
_PAIRS = (
    "аaвbеeкkмmнhоoрpсcтtуyхxіiјjѕsԁdԛqԝwһhӏlпnгrиu"  # Cyrillic
    "АAВBЕEКKМMНHОOРPСCТTУYХXІIЈJЅS"
    "αaβbγyεeηnιiκkνvοoρpτtυuχxωw"  # Greek
    "ΑAΒBΕEΖZΗHΙIΚKΜMΝNΟOΡPΤTΥYΧX"
    "ᴀaʙbᴄcᴅdᴇeꜰfɢgʜhɪiᴊjᴋkʟlᴍmɴnᴏoᴘpʀrꜱsᴛtᴜuᴠvᴡwʏyᴢz"  # small capitals
    "ɑaɡgıi"
)
_LOOKALIKES = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))
_KEPT_CONTROLS = frozenset("\n\t")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})

# Long enough that ordinary words, hashes and ids are not taken for a message.
_BASE64 = re2.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re2.compile(r"(?:[0-9a-fA-F]{2}[ :]?){16,}")
_PERCENT = re2.compile(r"(?:%[0-9a-fA-F]{2}|[A-Za-z0-9._~+-]){12,}")
_MAX_CODED = 8
_READABLE = frozenset(string.printable)


def plain(text: str) -> str:
    """The text in compatibility form (NFKC), without hidden characters and stacked accents, look-alikes folded.

    Letters of other scripts stay where a text is written in that script; within a Latin word, or in a text that is
    mostly Latin, they are read as the Latin letters they stand in for.
    """
    if text.isascii():
        return text if text.isprintable() else "".join(c for c in text if c.isprintable() or c in _KEPT_CONTROLS)
    shown = [c for c in unicodedata.normalize("NFKC", text) if c in _KEPT_CONTROLS or not _is_hidden(c)]
    bare = _without_stacked_accents(shown)
    if bare.isascii():
        return bare
    mostly_latin = 2 * sum(c.isascii() and c.isalpha() for c in bare) > sum(c.isalpha() for c in bare)
    return "".join(_folded(word, mostly_latin) for word in _words(bare))


def decoded(text: str) -> list[str]:
    """What the text carries in base64, in hexadecimal or percent-encoded, as far as it reads as words; at most 8."""
    found: list[str] = []
    for pattern, read in ((_BASE64, _from_base64), (_HEX, _from_hex), (_PERCENT, _from_percent)):
        for match in pattern.finditer(text):
            message = read(match.group())
            if _reads_as_words(message):
                found.append(message)
            if len(found) == _MAX_CODED:
                return found
    return found


def _is_hidden(character: str) -> bool:
    # Variation selectors are marks, but show nothing.
    return unicodedata.category(character) in _HIDDEN or "\ufe00" <= character <= "\ufe0f"


def _without_stacked_accents(characters: list[str]) -> str:
    """After NFKC an accent that is still apart from its Latin letter belongs to no alphabet."""
    kept: list[str] = []
    for character in characters:
        if unicodedata.category(character) == "Mn" and kept and kept[-1].isascii():
            continue
        kept.append(character)
    return "".join(kept)


def _words(text: str) -> list[str]:
    """The text in runs of letters and of everything else; joined, they are the text."""
    runs: list[str] = []
    for character in text:
        if runs and runs[-1][-1].isalpha() == character.isalpha():
            runs[-1] += character
        else:
            runs.append(character)
    return runs


def _folded(word: str, mostly_latin: bool) -> str:
    if word.isascii():
        return word
    mixed = any(c.isascii() for c in word)
    all_alike = all(c.isascii() or c in _LOOKALIKES for c in word)
    if mixed or (mostly_latin and all_alike):
        return "".join(_LOOKALIKES.get(c, c) for c in word)
    return word


def _from_base64(run: str) -> str:
    body = run.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _from_hex(run: str) -> str:
    try:
        return bytes.fromhex(run.replace(":", " ")).decode()
    except (ValueError, UnicodeDecodeError):
        return ""


def _from_percent(run: str) -> str:
    return unquote(run.replace("+", " ")) if run.count("%") >= 2 else ""


def _reads_as_words(message: str) -> bool:
    if len(message) < 12 or " " not in message:
        return False
    return sum(c in _READABLE or c.isalpha() for c in message) >= 0.95 * len(message)
