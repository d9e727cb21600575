"""Pictures over https: the certificate is checked against the name in the URL, not the address."""

import http.server
import shutil
import ssl
import subprocess
import threading

import pytest

from sda_features.catalog.fetch import Fetcher
from sda_features.errors import ImageProblem

NAME = "img.shop.test"
PICTURE = b"a picture"

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl"),
]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        assert self.headers["Host"].startswith(NAME)
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments):
        """A client that refuses the certificate hangs up."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Port of a server whose certificate names `NAME` alone, and that certificate."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    files = ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running.server_address[1], certificate
        running.shutdown()
        thread.join()


def fetch(host, port):
    fetcher = Fetcher([f"{host}:{port}", "127.0.0.1"], 1000, 20.0, resolve=lambda name: ["127.0.0.1"])
    try:
        return fetcher.fetch(f"https://{host}:{port}/1.png")
    finally:
        fetcher.close()


def test_a_trusted_certificate_of_the_name_is_accepted(server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(server[1]))
    assert fetch(NAME, server[0]) == PICTURE


def test_a_trusted_certificate_of_another_name_is_refused(server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(server[1]))
    with pytest.raises(ImageProblem) as caught:
        fetch("other.shop.test", server[0])
    assert caught.value.reason == "image_unreachable"


def test_a_certificate_that_nobody_vouches_for_is_refused(server):
    with pytest.raises(ImageProblem) as caught:
        fetch(NAME, server[0])
    assert caught.value.reason == "image_unreachable"
