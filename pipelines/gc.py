"""When Python looks for cyclic garbage: hardly ever while modules are imported, as usual while a network is trained.

torch, Ray and MLflow make a million objects as they are imported, none of them garbage, and Python would look through them again and
again: a third of the time that importing takes (Python 3.11).
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
_SELDOM = 500_000


def seldom() -> None:
    """From now on, only after so many new objects."""
    gc.set_threshold(_SELDOM, *_USUAL[1:])


def as_usual() -> None:
    """From now on as Python does, for a network's own cycles may hold memory of its device; what is there now is taken to stay."""
    if not gc.get_freeze_count():  # once: a network that is frozen with the rest would never be freed
        gc.freeze()
    gc.set_threshold(*_USUAL)
