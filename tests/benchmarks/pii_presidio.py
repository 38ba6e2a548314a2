"""Presidio's pattern recognizers as they come, behind its analyzer, without a language model.

They are not part of the project's environment: `pip install '.[presidio]'`. A blank spaCy pipeline takes the place of
the model, so its recognizers of names and places find nothing, which is not what is compared here.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

from benchmarks.pii_quality import TYPES

INSTALL = "Presidio is not installed. To have it: pip install -c constraints.txt '.[presidio]'"


def is_installed() -> bool:
    """Whether presidio-analyzer can be imported."""
    return importlib.util.find_spec("presidio_analyzer") is not None


def finder() -> Callable[[str], list[tuple[str, int, int]]]:
    """From a text to what its default English recognizers find of the types compared; raises ImportError."""
    import spacy  # type: ignore[import-not-found]
    import tldextract  # type: ignore[import-not-found]
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry  # type: ignore[import-not-found]
    from presidio_analyzer.nlp_engine import SpacyNlpEngine  # type: ignore[import-not-found]

    class NoModel(SpacyNlpEngine):  # type: ignore[misc]
        """Splits words and knows nothing else."""

        def load(self) -> None:
            self.nlp = {"en": spacy.blank("en")}

    # Its e-mail recognizer would fetch the list of public suffixes; the list that comes with the package will do.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    model = NoModel(models=[{"lang_code": "en", "model_name": "blank"}])
    model.load()
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"])
    engine = AnalyzerEngine(nlp_engine=model, registry=registry, supported_languages=["en"])
    entities = list(TYPES)

    def find(text: str) -> list[tuple[str, int, int]]:
        results = engine.analyze(text, language="en", entities=entities)
        return [(result.entity_type, result.start, result.end) for result in results]

    return find
