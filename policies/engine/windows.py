"""The pieces of a text that are looked at one by one.

The encoder sees some hundred tokens at a time, and one sentence of harm hardly moves the mean over many of talk. So
a text is judged by its worst piece: stretches that together cover every word of it, and by themselves its sentences.
Adding text to a request can then only add pieces; it cannot hide one.
"""

from __future__ import annotations

import re2

STRETCH_WORDS = 60
SENTENCE_WORDS = 24
# A fragment such as "Kill it." means nothing without what stands before it.
LEAST_WORDS = 4
MAX_STRETCHES = 96
MAX_SENTENCES = 32

_SENTENCE = re2.compile(r"(?s)[^.!?。\n]+(?:[.!?。]+[\"')\]}»”]*|\n|$)|[.!?。]+")
# Told things mean little alone ("My friend is sick."); what is asked for is asked for, whatever stands around it.
_ASKS = re2.compile(
    r"(?i)\?|^\W*(?:(?:and|but|so|then|now|ok(?:ay)?|please|also|well|just|kindly|hey|hi|hello)\b\W*)*"
    r"(?:how|what|which|where|when|who|why|can|could|would|will|should|is|are|do|does|tell|give|write|explain|"
    r"describe|show|teach|help|list|make|create|provide|draft|generate|compose|design|build|suggest|plan|instruct|"
    r"outline|name|find|recommend|walk me|i (?:want|need|would like|wish|am going)|i'd like|i'm going|let's)\b|"
    r"\b(?:how (?:to|do|can|could|would|should)|(?:tell|show|teach|help|give|instruct|walk) (?:me|us|him|her|them)|"
    r"i (?:want|need|would like|wish) to|i'd like to|ways? to|steps? to|instructions? (?:for|to|on)|recipe for)\b"
)


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, stripped, in order; none of them empty."""
    return [part for match in _SENTENCE.finditer(text) if (part := match.group().strip())]


def windows(text: str, every: bool = False) -> list[str]:
    """The pieces of a text, without repetition: its stretches, and by themselves its sentences that ask for something.

    `every` takes the other sentences too. At most MAX_SENTENCES are taken, the last and the first before the others.
    """
    alone = [part for part in _alone(text) if every or _ASKS.search(part)]
    chosen = [*alone[-1:], *alone[:1], *alone]
    return list(dict.fromkeys(stretches(text) + list(dict.fromkeys(chosen))[:MAX_SENTENCES]))


def stretches(text: str) -> list[str]:
    """The text on one line if it is short, else stretches of STRETCH_WORDS words from head to tail.

    Together they hold every word, up to MAX_STRETCHES x STRETCH_WORDS of them.
    """
    words = text.split()
    return [" ".join(words)] if len(words) <= STRETCH_WORDS else list(dict.fromkeys(_evenly(words, STRETCH_WORDS)))


def _evenly(words: list[str], size: int) -> list[str]:
    """Stretches of `size` words from head to tail; they overlap by at least a quarter where there is room."""
    last = len(words) - size
    wanted = 1 + -(-last // (size * 3 // 4))
    count = min(wanted, MAX_STRETCHES)
    starts = [round(last * number / (count - 1)) for number in range(count)]
    return [" ".join(words[start : start + size]) for start in dict.fromkeys(starts)]


def _alone(text: str) -> list[str]:
    """Sentences to be judged by themselves: short ones with what stands before them, long ones in halves."""
    found: list[str] = []
    for sentence in sentences(text):
        words = sentence.split()
        if found and len(words) < LEAST_WORDS:
            # What stands before is kept as it is, too: else a short line could water it down.
            found.append(f"{found[-1]} {' '.join(words)}")
        elif len(words) > SENTENCE_WORDS:
            step = SENTENCE_WORDS // 2
            starts = range(0, len(words) - step, step)
            found += [" ".join(words[start : start + SENTENCE_WORDS]) for start in starts]
        else:
            found.append(" ".join(words))
    return found
