"""Presidio as a second guard on training data: with a language model it also finds names, which have no form.

An optional extra (`pip install '.[presidio]'`) and a spaCy pipeline, which is chosen and installed by the operator.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INSTALL = "pip install -c constraints.txt '.[presidio]'"


class GuardUnavailable(RuntimeError):
    """Presidio or its model is not installed; the message says what to do."""


def check_presidio(model: str) -> None:
    """Raises GuardUnavailable where a `PresidioGuard` with this model could not be made. Loads nothing."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise GuardUnavailable(f"presidio-analyzer is not installed: {INSTALL}")
    if Path(model).is_dir():
        return
    if not model.isidentifier() or importlib.util.find_spec(model) is None:
        # Presidio itself would try to download it.
        raise GuardUnavailable(
            f"the spaCy pipeline {model!r} is neither an installed package nor a folder: install it, or name another"
        )


class PresidioGuard:
    """Tells whether Presidio finds one of `entities` in an English text with at least `least_score`.

    Loading takes seconds and, with a large model, a gigabyte; a text takes milliseconds. Raises GuardUnavailable.
    """

    def __init__(self, model: str, least_score: float, entities: Sequence[str]) -> None:
        check_presidio(model)
        import tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider

        # Its e-mail recognizer would fetch the list of public suffixes; the list that comes with the package will do.
        tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
        pipeline = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
        engine = NlpEngineProvider(nlp_configuration=pipeline).create_engine()
        self._analyzer: Any = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
        self._least_score = least_score
        self._entities = list(entities)
        if unknown := set(entities) - set(self._analyzer.get_supported_entities("en")):
            raise GuardUnavailable(f"Presidio does not know {', '.join(sorted(unknown))}: correct the entities")

    def __call__(self, text: str) -> bool:
        """Whether the text holds personal data."""
        found = self._analyzer.analyze(text, language="en", entities=self._entities, score_threshold=self._least_score)
        return bool(found)
