"""Provenance of a result: commit and diff of the code, versions of the packages; and the redaction of secrets."""

from __future__ import annotations

import ast
import functools
import getpass
import hashlib
import importlib.metadata
import platform
import re
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_ROOMS = ("pipelines", "workloads", "cluster")
_PARSING = threading.Lock()  # two threads that parse at once may end in "AST constructor recursion depth mismatch" (Python 3.11)
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


def user() -> str:
    """The name of the person whose process this is; `unknown` where the system has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def redact(text: str) -> str:
    """`text` without passwords in URLs, values of names that sound secret, and tokens and keys of well-known shapes."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def git_commit() -> str | None:
    return _git("rev-parse", "HEAD") or None


def git_diff() -> str:
    """The diff to the commit, redacted, at most a megabyte."""
    return redact(_git("diff", "HEAD")[:_DIFF_BYTES])


@functools.cache
def code() -> str:
    """A short hash of all Python files of the program: what it is where there is no commit, or files that no commit has."""
    files = {path for room in _ROOMS for path in (_ROOT / room).rglob("*.py")}
    return code_sha256(files)[:12]


def code_sha256(files: Iterable[Path]) -> str:
    """One hash over several source files, whatever the order they are given in."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()


def imported(file: Path, *, nested: bool) -> set[Path]:
    """A Python file and the files that it imports relatively, and these in turn; `nested`: also those imported inside functions."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        stat = path.stat()
        waiting += _imports(path, nested, stat.st_mtime_ns, stat.st_size)
    return found


@functools.lru_cache(maxsize=1000)  # a sweep asks for each trial, and parsing a network's files takes 0.1 s
def _imports(path: Path, nested: bool, modified: int, size: int) -> tuple[Path, ...]:
    """Files that a file, last `modified` then, imports relatively."""
    with _PARSING:
        tree = ast.parse(path.read_bytes())
    named: list[Path] = []
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            named += [folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)]
    return tuple(named)


@functools.cache
def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
