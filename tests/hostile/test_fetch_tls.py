"""Pictures over https: the certificate is checked against the name in the URL, not the address."""

import shutil
import ssl

import pytest

from tests.hostile.test_pictures import PNG, Server, get, problem_of
from tests.serving.servers import make_certificate

NAME = "img.shop.test"

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """One for `NAME` alone, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), f"DNS:{NAME}")


@pytest.fixture(scope="module")
def server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with server.running():
        yield server


@pytest.fixture
def trusted(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))


def fetch(server, name):
    host = f"{name}:{server.port}"
    return get(f"https://{host}/1.png", host, "127.0.0.1", resolve=lambda name: ["127.0.0.1"])


def test_a_trusted_certificate_of_the_name_is_accepted(server, trusted):
    assert fetch(server, NAME) == PNG
    assert server.asked_for.startswith(NAME)


def test_a_trusted_certificate_of_another_name_is_refused(server, trusted):
    assert problem_of(lambda: fetch(server, "other.shop.test")).reason == "image_unreachable"


def test_a_certificate_that_nobody_vouches_for_is_refused(server):
    assert problem_of(lambda: fetch(server, NAME)).reason == "image_unreachable"
