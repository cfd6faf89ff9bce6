"""Secrets are taken out of what is written down, ordinary text is left as it is; code is named by its content and what it imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.tracking.provenance import code_sha256, imported, redact

SECRET = "hunter2Xy9Qz7Lm"
GITHUB, HUGGING_FACE, OPENAI = "ghp_" + "a1B2" * 9, "hf_" + "aBcD" * 8, "sk-proj-" + "a1B2" * 10
AMAZON = "AKIA" + "IOSFODNN7EXAMPLE"
PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq\nq8fJ\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@example.org/mlflow",
        f"postgresql+psycopg2://me:{SECRET}@db:5432/x and mysql://you:{SECRET}@db/y",
        f"https://:{SECRET}@example.org",
        f"https://{SECRET}@example.org/repository.git",
        f"https://me:an@{SECRET}@example.org",
        f"password={SECRET}",
        f"PGPASSWORD={SECRET} psql",
        f'{{"password": "{SECRET}"}}',
        f"api_key: {SECRET}",
        f"apikey = '{SECRET}'",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"MLFLOW_TRACKING_TOKEN={SECRET}",
        f'+    client_secret = "{SECRET}"',
        f"https://example.org/x?token={SECRET}&page=2",
        f"https://example.org/x?X-Amz-Credential={SECRET}",
        f"s3://bucket/x?secret_key={SECRET}",
        f"credentials: {SECRET}",
        f"AccountKey={SECRET};EndpointSuffix=core",
        f'password = "correct horse {SECRET}"',
        f"password = 'one,{SECRET}'",
        f"Authorization: Bearer {SECRET}",
        f"Authorization: Basic {SECRET}",
        f"curl --password {SECRET}",
    ],
)
def test_a_planted_secret_is_taken_out(text: str) -> None:
    assert SECRET not in redact(text)


@pytest.mark.parametrize("secret", [GITHUB, HUGGING_FACE, OPENAI, AMAZON], ids=["github", "hugging face", "openai", "amazon"])
def test_a_secret_known_by_its_shape_is_taken_out_wherever_it_stands(secret: str) -> None:
    assert secret not in redact(f'login("{secret}")')


def test_a_private_key_is_taken_out_whole() -> None:
    assert "q8fJ" not in redact(f"key:\n{PRIVATE_KEY}\n")


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments",
        "sqlite:///runs/mlflow.db",
        "postgresql://db.example.org:5432/mlflow",
        "optim.lr=0.001 train.batch: 128",
        "def forward(self, x): return self.network(x)",
        "mail me@example.org: at 10:30",
        "tokenizer: wordpiece",
        "max_tokens = 512",
        "token_count: 3",
        "the word password alone",
    ],
)
def test_ordinary_text_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_what_stands_around_a_secret_is_left() -> None:
    assert redact(f"mlflow at postgresql://me:{SECRET}@db:5432/x, batch=3") == "mlflow at postgresql://me:***@db:5432/x, batch=3"


# ---- code

FILES = {
    "network.py": "from .base import A\nfrom .tasks.images import B\ndef f():\n  from .layers import dense\n  from .layers.conv import C\n",
    "base.py": "import json\n",
    "tasks/images.py": "from ..base import A\nfrom . import helper\n\n\ndef figures():\n    from .pictures import D\n",
    "tasks/helper.py": "from .images import B\n",
    "tasks/pictures.py": "",
    "layers/dense.py": "",
    "layers/conv.py": "",
    "layers/other.py": "",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(package: Path, *, nested: bool) -> set[str]:
    return {str(file.relative_to(package)) for file in imported(package / "network.py", nested=nested)}


def test_what_a_file_imports_is_found_through_others_and_round_a_cycle(package: Path) -> None:
    assert names(package, nested=False) == {"network.py", "base.py", "tasks/images.py", "tasks/helper.py"}


def test_imports_inside_functions_count_where_asked(package: Path) -> None:
    found = names(package, nested=True) - names(package, nested=False)
    assert found == {"layers/dense.py", "layers/conv.py", "tasks/pictures.py"}


def test_the_hash_changes_with_any_of_the_files_and_with_no_other(package: Path) -> None:
    before = code_sha256(imported(package / "network.py", nested=True))
    (package / "layers/other.py").write_text("changed = True\n")
    assert code_sha256(imported(package / "network.py", nested=True)) == before
    (package / "layers/conv.py").write_text("changed = True\n")
    assert code_sha256(imported(package / "network.py", nested=True)) != before
