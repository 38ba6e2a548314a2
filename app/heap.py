"""How a worker's heap is collected.

A worker imports some hundred thousand objects that never go away, and a full collection walks them all: at the
interpreter's own thresholds, which every batch of events exceeds many times, that took more processor time than the
routing itself. What is there once the worker has started is therefore put aside, and young objects are looked at by
the ten thousands. Events hold no cycles, so nearly all of them are freed by their reference counts anyway.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 50_000
"""How many more containers are made than freed before the young ones are looked at (the interpreter's own: 700)."""


def settle() -> None:
    """Put everything that is there now aside for the collector, and let it look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
