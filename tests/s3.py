"""An S3 server on loopback, for tests of what lies in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-but-hidden",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A boto3 client of a fresh server, to which pyarrow and fsspec connect as well: for them it is in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    from pipelines.data import files

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    files._of_scheme.cache_clear()  # a filesystem keeps the address of its server
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": address, "AWS_ENDPOINT_URL_S3": address}.items():
                environment.setenv(name, value)
            assert os.environ["AWS_ENDPOINT_URL"] == address
            yield boto3.client("s3", endpoint_url=address)
    finally:
        files._of_scheme.cache_clear()
        server.stop()
