"""A real S3 server (moto) in this process, and a new bucket on it for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from heliostat.storage import Location


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """`host:port` of an S3 server; the credentials it accepts are in the environment."""
    from moto.server import ThreadedMotoServer

    credentials = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in credentials}
    os.environ.update(credentials)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> Location:
    """A new, empty bucket."""
    import boto3

    name = f"heliostat-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=f"http://{s3_endpoint}").create_bucket(Bucket=name)
    return Location.of(f"s3://{name}?endpoint_override={s3_endpoint}&scheme=http")
