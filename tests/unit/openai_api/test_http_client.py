"""What `EndpointClient` takes from a server over HTTP."""

import zlib
from typing import Any

import pytest

from deltarank.errors import JobError
from deltarank.openai_api import EndpointClient, Reply, parse_endpoint
from fake_endpoint import FakeEndpoint, Handler, serving

TOO_LARGE = b" " * 36_000_000
"""Compresses to 160 kB."""


def packed(data: bytes, encodings: str, *, trailer: bytes = b"") -> bytes:
    """Compressed by these encodings, one after the other, with another end of the innermost one."""
    for name in encodings.split(", "):
        packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16 if name == "gzip" else zlib.MAX_WBITS)
        data = packer.compress(data) + packer.flush()
        data, trailer = data[: len(data) - len(trailer)] + trailer, b""
    return data


def ask(content: bytes, encoding: str) -> Reply:
    """The reply of a server that answers everything with this content."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        handler.send(200, content, headers={"Content-Encoding": encoding})
        return True

    with serving(FakeEndpoint(fault=fault)) as (server,):
        client = EndpointClient("A", parse_endpoint(server.reference, None, {}), timeout=60)
        try:
            return client.post("/completions", {}, tries=1)
        finally:
            client.close()


ENCODINGS = ["gzip", "deflate", "deflate, gzip"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_compressed_answer_is_unpacked(encoding: str) -> None:
    assert ask(packed(b'{"choices": []}', encoding), encoding).payload == {"choices": []}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_compressed_answer_is_unpacked_only_as_far_as_the_bound(encoding: str) -> None:
    """What exceeds it is refused before the end, which is damaged, is reached."""
    with pytest.raises(JobError) as refused:
        ask(packed(TOO_LARGE, encoding, trailer=b"!!!!"), encoding)

    assert "more than 32 MB" in refused.value.message
    assert refused.value.slug == "endpoint-too-slow"
