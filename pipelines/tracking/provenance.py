"""Where a result came from: the code's commit and diff, the packages' versions; and what must never be written down."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

from pipelines.integrity import code_sha256

_ROOT = Path(__file__).resolve().parents[2]
_ROOMS = ("pipelines", "workloads", "cluster")
_PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow", "pydantic", "safetensors")
_DIFF_BYTES = 1_000_000
_SECRET_NAME = r"(?:password|passwd|pwd|secret(?:[_-]?key)?|token|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|credentials?)"
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s"',;}\])]+)"""
_SECRETS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "***"),
    (re.compile(r"(://[^/\s:@]*:)[^\s/]*@"), r"\1***@"),  # user:password@host; the last @ before the path ends the password
    (re.compile(r"(://)[^/\s:@]+@"), r"\1***@"),  # token@host
    (re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)?\s*)[^\s\"',]+"), r"\1***"),
    (re.compile(rf"(?i)(--[\w-]*{_SECRET_NAME}[ =]){_VALUE}"), r"\1***"),
    (re.compile(rf"(?i)([\w.-]*{_SECRET_NAME}[\"']?\s*[:=]\s*){_VALUE}"), r"\1***"),
    (
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{12,}|xox[abp]-[\w-]{10,})"),
        "***",
    ),
)


def redact(text: str) -> str:
    """`text` without passwords in URLs, values of names that sound secret, and tokens and keys of well-known shapes."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def git_commit() -> str | None:
    return _git("rev-parse", "HEAD") or None


def git_diff() -> str:
    """What differs from the commit, redacted, at most a megabyte."""
    return redact(_git("diff", "HEAD")[:_DIFF_BYTES])


@functools.cache
def code() -> str:
    """A short hash of all Python files of the program: what it is where there is no commit, or files that no commit has."""
    files = {path for room in _ROOMS for path in (_ROOT / room).rglob("*.py")}
    return code_sha256(files)[:12]


@functools.cache
def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
