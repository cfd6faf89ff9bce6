"""Where a result came from: the code's commit and diff, the packages' versions; and what must never be written down."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow", "pydantic", "safetensors")
_DIFF_BYTES = 1_000_000
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@\s/]+@")
_NAMED_SECRET = re.compile(
    r"(?i)(\b[\w-]*(?:password|passwd|secret|token|api_?key|access_?key|credential)[\w-]*[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+"
)


def redact(text: str) -> str:
    """`text` without passwords in URLs and without values of names that sound secret."""
    return _NAMED_SECRET.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))


def git_commit() -> str | None:
    return _git("rev-parse", "HEAD") or None


def git_diff() -> str:
    """What differs from the commit, redacted, at most a megabyte."""
    return redact(_git("diff", "HEAD")[:_DIFF_BYTES])


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
