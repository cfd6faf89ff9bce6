"""Why a repetition gave other numbers: what is known to differ between then and now, the likeliest first."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.tracking.facts import Facts

_SMALL = 1e-3
_MACHINE = ("threads", "workers", "hardware")


@dataclass(frozen=True)
class Cause:
    """One kind of thing that differs: code, data, packages, threads, workers or hardware."""

    kind: str
    recorded: str
    now: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.recorded} then, {self.now} now"


def causes(recorded: Facts, now: Facts, size: float | None = None) -> list[Cause]:
    """What differs of what both wrote down; `size` is how far the first differing number is off, as a share of it.

    A sum taken in another order is off by little at first; other rows or other code by much. Code is the same if its files are, whatever
    the commit says.
    """
    code, data = _code(recorded, now), _one("data", "data", "fingerprint", recorded, now)
    machine = [*_packages(recorded, now), *(one for name in _MACHINE for one in _one(name, "environment", name, recorded, now))]
    return [*machine, *code, *data] if size is not None and size < _SMALL else [*data, *code, *machine]


def _one(kind: str, group: str, name: str, recorded: Facts, now: Facts) -> list[Cause]:
    was, is_now = recorded.get(group, {}).get(name), now.get(group, {}).get(name)
    return [Cause(kind, was, is_now)] if was and is_now and was != is_now else []


def _code(recorded: Facts, now: Facts) -> list[Cause]:
    was, is_now = recorded.get("code", {}), now.get("code", {})
    decides = ("program",) if "program" in was else ("commit", "diff")
    if not was.keys() & set(decides) or all(was.get(name) == is_now.get(name) for name in decides):
        return []
    shown = [name for name in ("commit", "diff", "program", "network") if was.get(name) != is_now.get(name)]
    return [Cause("code", *(", ".join(f"{name} {code.get(name, 'unknown')}" for name in shown) for code in (was, is_now)))]


def _packages(recorded: Facts, now: Facts) -> list[Cause]:
    was, is_now = recorded.get("packages", {}), now.get("packages", {})
    names = [name for name in was if name in is_now and was[name] != is_now[name]]
    return [Cause("packages", *(", ".join(f"{name} {each[name]}" for name in names) for each in (was, is_now)))] if names else []
