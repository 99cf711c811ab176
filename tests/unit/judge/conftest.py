"""What the tests of judges share."""

import pytest


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch):
    """The servers here speak plain HTTP, and a client takes 50 ms to read the certificates that it does not need."""
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
