"""Pictures and their URLs, odd, damaged or meant to harm; and servers that fail."""

import contextlib
import http.server
import os
import socket
import struct
import sys
import threading
import time
import zlib
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sda_features.catalog.fetch import ATTEMPTS, Fetcher, _is_public
from sda_features.catalog.images import LARGE, decode_image, open_image, read_image_bytes
from sda_features.catalog.rows import Catalog
from sda_features.config import CatalogSettings
from sda_features.errors import CatalogError, ImageProblem, SettingsError
from tests.hostile.bombs import bomb, encode

LIMITS = CatalogSettings.parse(path="items.csv")


PNG = encode(Image.new("RGB", (8, 6), "red"))
PAGES = {  # of an error, answered as a picture with status 200
    "/page": b"<!DOCTYPE html><html><body>Service is down for maintenance</body></html>",
    "/page-after-blanks": b"\xef\xbb\xbf\r\n <HTML><head></head></HTML>",
    "/page-of-json": b'{"error": "backend time-out"}',
    "/nothing": b"",
}


HEADS = {  # of answers whose body is none, or not what they say
    "/dribble": {"Content-Length": "1000"},
    "/dribble-endless": {"Connection": "close"},
    "/short": {"Content-Length": str(len(PNG) + 10)},
    "/long": {"Content-Length": "999999999999"},
    "/endless": {"Connection": "close"},
    "/chunked": {"Transfer-Encoding": "chunked"},
}


def decode(encoded, limits=LIMITS):
    return decode_image(open_image(encoded, limits), limits)


class Server(http.server.ThreadingHTTPServer):
    """Answers by path; keeps the path of each request, and the name that the last one was for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.asked_for, self.connections = [], "", 0

    @property
    def port(self):
        return self.server_address[1]

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def get_request(self):
        self.connections += 1
        return super().get_request()

    def handle_error(self, *arguments):
        """A client that hangs up is what is tested."""

    @contextlib.contextmanager
    def running(self):
        with self:
            thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            yield self
            self.shutdown()
            thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked_for = self.headers["Host"]
        self.server.seen.append(path)
        times = self.server.seen.count(path)
        if path in HEADS:
            self.answer(200, None, HEADS[path])
        if path.startswith("/dribble"):
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif path == "/short":
            self.wfile.write(PNG)
            self.close_connection = True
        elif path == "/reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif path == "/no-http":
            self.wfile.write(b"\0\1\2 what is this\r\n\r\n")
            self.close_connection = True
        elif path == "/large":
            self.answer(200, b"x" * 5000)
        elif path == "/endless":
            while True:
                self.wfile.write(b"x" * 4096)
        elif path == "/chunked":
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG))
        elif path in PAGES:
            self.answer(200, PAGES[path], {"Content-Type": "image/png"})
        elif path == "/moved":
            self.answer(302, b"", {"Location": "/ok"})
        elif path.startswith("/once-"):
            self.answer(int(path[6:]) if times == 1 else 200, PNG)
        elif path.startswith("/status-"):
            self.answer(int(path[8:]), b"")
        elif path not in HEADS:
            self.answer(200, PNG)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running():
    with Server().running() as server:
        yield server


@pytest.fixture
def server(running):
    running.seen.clear()
    return running


def get(url, *hosts, timeout=20.0, **options):
    with contextlib.closing(Fetcher(hosts, 1000, timeout, **options)) as fetcher:
        return fetcher.fetch(url)


def problem_of(call):
    with pytest.raises(ImageProblem) as caught:
        call()
    return caught.value


# An address in the list, and what does not lead to it. {P}: the server's port.
REFUSED_URLS = {
    "backslash before @": "http://127.0.0.1:{P}\\@good.example/x",
    "backslash after host": "http://good.example\\.127.0.0.1:{P}/x",
    "other host": "http://127.0.0.2:{P}/x",
    "name of an address": "http://localhost:{P}/x",
    "user": "http://good.example@127.0.0.1:{P}/x",
    "user and password": "http://a:b@127.0.0.1:{P}/x",
    "two @": "http://a@good.example@127.0.0.1:{P}/x",
    "empty user": "http://@127.0.0.1:{P}/x",
    "tab": "http://127.0.0.1:{P}/\tx",
    "line feed in the host": "http://good.exa\nmple/x",
    "header": "http://127.0.0.1:{P}/x\r\nHost: other",
    "NUL": "http://127.0.0.1:{P}/\0x",
    "blank": "http://127.0.0.1:{P}/a b",
    "no-break space": "http://127.0.0.1:{P}/a\u00a0b",
    "zero width": "http://127.0.0.1\u200b:{P}/x",
    "right to left": "http://127.0.0.1:{P}/\u202ex",
    "surrogate": "http://127.0.0.1:{P}/\ud800",
    "open bracket": "http://[",
    "half an address": "http://[::1/x",
    "zone": "http://[fe80::1%25eth0]:{P}/x",
    "no host": "http:///x",
    "only a port": "http://:{P}/x",
    "port 0": "http://127.0.0.1:0/x",
    "port too large": "http://127.0.0.1:65536/x",
    "port not a number": "http://127.0.0.1:{P}x/x",
    "other port": "http://127.0.0.1:1/x",
    "default port": "http://127.0.0.1/x",
    "secure default port": "https://127.0.0.1/x",
    "decimal address": "http://2130706433:{P}/x",
    "hexadecimal address": "http://0x7f000001:{P}/x",
    "octal address": "http://0177.0.0.1:{P}/x",
    "short address": "http://127.1:{P}/x",
    "zero": "http://0:{P}/x",
    "any": "http://0.0.0.0:{P}/x",
    "v6 loopback": "http://[::1]:{P}/x",
    "v4 in v6": "http://[::ffff:127.0.0.1]:{P}/x",
    "v4 in v6, hexadecimal": "http://[::ffff:7f00:1]:{P}/x",
    "percent in host": "http://127.0.0.1%2eexample:{P}/x",
    "metadata service": "http://169.254.169.254/latest/meta-data",
    "subdomain": "http://a.good.example/x",
    "longer name": "http://good.example.evil.example/x",
    "other scheme": "ftp://good.example/x",
    "file": "file:///etc/passwd",
    "long": "http://127.0.0.1:{P}/" + "x" * 9000,
    "only a scheme": "http://",
    "empty": "",
    "homograph": "http://g\u043eod.example/x",
    "circled digits": "http://\u2460\u2461\u2466.0.0.1:{P}/x",
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", REFUSED_URLS)
def test_urls_that_lead_elsewhere_are_refused_without_a_connection(server, name):
    before = server.connections
    url = REFUSED_URLS[name].replace("{P}", str(server.port))
    problem = problem_of(lambda: get(url, server.host, "good.example"))
    assert problem.reason in ("bad_url", "host_not_allowed")
    assert server.connections == before


ALLOWED = {
    "as listed": ("http://127.0.0.1:{P}/ok", "127.0.0.1:{P}"),
    "upper-case scheme": ("HTTP://127.0.0.1:{P}/ok", "127.0.0.1:{P}"),
    "upper-case name": ("http://Shop.Test:{P}/ok", "shop.test:{P}"),
    "upper-case entry": ("http://shop.test:{P}/ok", "SHOP.test:{P}"),
    "last dot": ("http://shop.test.:{P}/ok", "shop.test:{P}"),
    "@ in the path": ("http://127.0.0.1:{P}/a@b.png", "127.0.0.1:{P}"),
    "not ASCII in the path": ("http://127.0.0.1:{P}/ü.png", "127.0.0.1:{P}"),
    "query": ("http://127.0.0.1:{P}/ok?a=b&c=//d", "127.0.0.1:{P}"),
    "two slashes": ("http://127.0.0.1:{P}//evil.example/ok", "127.0.0.1:{P}"),
    "name in the fragment": ("http://127.0.0.1:{P}/ok#@evil.example/", "127.0.0.1:{P}"),
    "chunked": ("http://127.0.0.1:{P}/chunked", "127.0.0.1:{P}"),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", ALLOWED)
def test_other_spellings_of_an_allowed_host_are_the_same_host(server, name):
    url, host = (text.replace("{P}", str(server.port)) for text in ALLOWED[name])
    assert get(url, host, "127.0.0.1", resolve=lambda name: ["127.0.0.1"]) == PNG


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("answer", "reached"),
    [
        (["127.0.0.2"], False),
        (["10.0.0.5"], False),
        (["::1"], False),
        (["::ffff:10.0.0.5"], False),
        (["127.0.0.2", "127.0.0.1"], True),
        (["127.0.0.1"], True),
    ],
)
def test_a_private_answer_of_the_name_server_is_used_only_if_the_address_is_listed(server, answer, reached):
    before = server.connections
    url, hosts = f"http://shop.test:{server.port}/ok", (f"shop.test:{server.port}", "127.0.0.1")
    if reached:
        assert get(url, *hosts, resolve=lambda name: answer) == PNG
    else:
        problem = problem_of(lambda: get(url, *hosts, resolve=lambda name: answer))
        assert problem.reason == "image_unreachable"
        assert "list the address itself" in problem.detail
        assert server.connections == before


@pytest.mark.hostile
def test_the_address_that_was_checked_is_connected_to_whatever_the_name_server_says_next(
    server,
):
    """Rebinding: the second answer, were it asked for, would lead to an address that is not listed."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    url = f"http://shop.test:{server.port}/ok"
    assert get(url, f"shop.test:{server.port}", "127.0.0.1", resolve=lambda name: next(answers)) == PNG
    assert next(answers) == ["127.0.0.2"], "the name was looked up twice for one connection"


@pytest.mark.hostile
@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "2002:7f00:1::", "64:ff9b::7f00:1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "fe80::1%eth0", "name"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not _is_public(address)
    assert all(map(_is_public, ("93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822")))


_connected = None  # a hook on audit events cannot be taken off again


def _note(event, arguments):
    if _connected is not None and event == "socket.connect":
        _connected.append(arguments[1][:2])


sys.addaudithook(_note)
_pieces = st.sampled_from(
    ["http://", "https://", "HTTP://", "good.example", "127.0.0.1", "127.0.0.2", "localhost", "[::1]", "evil.test",
     ":", "@", "/", "\\", "#", "?", "%2f", "%40", ".", "..", "{P}", "80", "x", "\t", "\n", "\0", "。", "①", "[", "]"]
)  # fmt: skip


@pytest.mark.hostile
@settings(max_examples=300)
@given(
    url=st.one_of(
        st.lists(_pieces, max_size=10).map("".join),
        st.lists(_pieces, max_size=8).map(lambda pieces: "http://" + "".join(pieces)),
        st.text(max_size=30).map(lambda text: "http://127.0.0.1:{P}" + text),
        st.text(max_size=30),
    )
)
@example(url="http://127.0.0.1:{P}\\@good.example/x")
@example(url="http://127.0.0.1:{P}/x")
def test_no_url_reaches_an_address_outside_the_list(running, url):
    global _connected
    url = url.replace("{P}", str(running.port))
    looked_up = []

    def resolve(name):
        looked_up.append(name)
        return ["127.0.0.2", "10.0.0.1", "::1"]

    _connected = []
    try:
        with (
            contextlib.closing(Fetcher(["good.example", running.host], 1000, 5.0, resolve)) as fetcher,
            contextlib.suppress(ImageProblem),
        ):
            fetcher.fetch(url)
        assert set(_connected) <= {("127.0.0.1", running.port)}
        assert set(looked_up) <= {"good.example"}
        if url == f"http://{running.host}/x":
            assert _connected, "vacuous: connections are not seen"
    finally:
        _connected = None


PASSING = [f"/status-{status}" for status in (408, 429, 500, 503)]
FAILURES = {  # path: reason, requests
    **dict.fromkeys(("/status-404", "/status-410", "/status-400", "/moved"), ("download_failed", 1)),
    **dict.fromkeys(("/status-401", "/status-403", "/status-204", "/status-501"), ("image_unreachable", 1)),
    **dict.fromkeys((*PASSING, "/short", "/reset", "/no-http"), ("image_unreachable", ATTEMPTS)),
    **dict.fromkeys(PAGES, ("image_unreachable", 1)),
    **dict.fromkeys(("/long", "/large", "/endless"), ("oversized_image", 1)),
}


@pytest.mark.fault
@pytest.mark.parametrize("path", FAILURES)
def test_a_server_that_fails_is_told_from_a_picture_that_is_not_there(server, path):
    reason, requests = FAILURES[path]
    secret = "X-Amz-Signature=0123456789abcdef"
    problem = problem_of(lambda: get(f"http://{server.host}{path}?{secret}", server.host))
    assert problem.reason == reason
    assert "0123456789abcdef" not in problem.detail
    assert len(server.seen) == requests


@pytest.mark.fault
@pytest.mark.parametrize("path", PAGES)
def test_an_item_keeps_its_vectors_while_a_page_is_in_the_place_of_its_picture(server, tmp_path, path):
    known = hashes(catalogue(tmp_path / "c.parquet", server, 0).items())
    failing = catalogue(tmp_path / "c.parquet", server, 2, instead=path[1:])
    assert hashes(failing.items(known)) == known
    assert str(failing.report) == "2 of 40 rows have problems: 2 image_unreachable"


@pytest.mark.fault
@pytest.mark.parametrize("path", ["/once-503", "/once-429", "/once-500"])
def test_a_failure_that_passes_is_not_noticed(server, path):
    assert get(f"http://{server.host}{path}", server.host) == PNG
    assert len(server.seen) == 2


@pytest.mark.fault
@pytest.mark.parametrize("path", ["/dribble-head", "/dribble", "/dribble-endless"])
def test_a_server_that_dribbles_is_left_when_the_time_is_over(server, path):
    """Each read brings a byte long before its own time-out; the bytes would take ten seconds."""
    started = time.monotonic()
    problem = problem_of(lambda: get(f"http://{server.host}{path}", server.host, timeout=0.5))
    assert problem.reason == "image_unreachable"
    assert "not there after 0.5 s" in problem.detail
    assert time.monotonic() - started < 8


@pytest.mark.fault
def test_nobody_listens_and_nobody_knows_the_name(server):
    def nowhere(name):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    for url, hosts in (("http://127.0.0.1:1/x", ("127.0.0.1:1",)), ("http://shop.test/x", ("shop.test",))):
        assert problem_of(partial(get, url, *hosts, resolve=nowhere)).transient


@pytest.mark.fault
def test_connections_are_kept_and_nothing_is_taken_from_the_environment(server, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    for name, value in {"HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "x"}.items():
        monkeypatch.setenv(name, value)
    before = server.connections
    with contextlib.closing(Fetcher([server.host], 1000, 20.0)) as fetcher:
        for _ in range(20):
            assert fetcher.fetch(f"http://{server.host}/ok") == PNG
    assert server.connections == before + 1


@pytest.mark.hostile
@pytest.mark.parametrize(
    "entry", ["https://shop.example", "shop.example/x", "a@b", "a b", "", "a:x", "[::1", "*.example"]
)
def test_an_entry_of_the_list_that_is_no_host_is_refused(entry):
    with pytest.raises(SettingsError, match="is no host; expected one such as"):
        CatalogSettings.parse(path="items.csv", image_hosts=(entry,))
    for good in ("shop.example", "shop.example:8080", "10.0.0.5", "::1", "[::1]:80", "bücher.example"):
        Fetcher(CatalogSettings.parse(path="items.csv", image_hosts=(good,)).image_hosts, 1, 1.0)


# Unreachable pictures in a catalogue.


def hashes(items):
    """Id -> content hash, in order."""
    return {item.item_id: item.content_hash for item in items}


def catalogue(path, server, broken, rows=40, instead="status-503", **options):
    """Of `rows` pictures the first `broken` answer 503, or something else."""
    urls = [f"http://{server.host}/{instead if n < broken else 'ok'}" for n in range(rows)]
    table = {"item_id": [f"i{n}" for n in range(rows)], "title": ["Oak"] * rows, "image": urls}
    pq.write_table(pa.table(table), path)
    return Catalog(CatalogSettings.parse(path=path, image_hosts=(server.host,), **options))


@pytest.mark.fault
def test_an_item_keeps_what_is_stored_while_its_picture_cannot_be_reached(server, tmp_path):
    known = hashes(catalogue(tmp_path / "items.parquet", server, 0).items())
    failing = catalogue(tmp_path / "items.parquet", server, 2)
    assert hashes(failing.items(known)) == known  # unchanged
    assert str(failing.report) == "2 of 40 rows have problems: 2 image_unreachable"
    # A new item is read without its picture; it stays so while that is away, and is read again afterwards.
    first = hashes(failing.items())
    assert first["i0"] != known["i0"]
    assert hashes(failing.items(first)) == first
    assert hashes(catalogue(tmp_path / "items.parquet", server, 0).items(first)) == known


@pytest.mark.fault
def test_many_unreachable_pictures_stop_the_run(server, tmp_path):
    catalog = catalogue(tmp_path / "items.parquet", server, 3)
    with pytest.raises(
        CatalogError, match=r"3 image_unreachable\. That is above --max-unreachable 0.05; run"
    ):
        list(catalog.items())
    lenient = catalogue(tmp_path / "items.parquet", server, 10, max_unreachable=0.5, max_bad_rows=0)
    assert len(list(lenient.items())) == 40


# Files below the image root.


@pytest.mark.hostile
def test_what_lies_below_the_image_root(tmp_path):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "ok.png").write_bytes(PNG)
    (root / "ü.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop").symlink_to(root / "loop")
    (root / "zero").symlink_to("/dev/zero")
    (root / "large.png").write_bytes(b"x" * 2000)
    os.mkfifo(root / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(root / "socket"))
    limits = CatalogSettings.parse(path="items.csv", image_root=root, max_image_bytes=1000)
    outside = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "zero", "folder/../../secret.png"]
    absent = ["absent.png", "pipe", "socket", "folder", ".", "loop", "loop/x.png", "ok.png/x"]
    absent += ["a\0b.png", "\ud800.png", "x" * 5000, "s3://bucket/x.png?X-Amz-Signature=hush"]
    absent += ["ftp://me:hush@host/x.png", "data:image/png;base64,AAAA"]
    reasons = dict.fromkeys(outside, "path_outside_root") | dict.fromkeys(absent, "image_not_found")
    for value, reason in (reasons | {"large.png": "oversized_image", "": "missing_image"}).items():
        problem = problem_of(partial(read_image_bytes, value, limits, get))
        assert problem.reason == reason, value
        assert "hush" not in problem.detail
        assert len(problem.detail) < 500
    assert read_image_bytes("ok.png", limits, get) == read_image_bytes("ü.png", limits, get) == PNG
    assert read_image_bytes(b" HTTP://a/b", limits, lambda url: url.encode()) == b"HTTP://a/b"


# Pictures.


def tiff(entries):
    """An EXIF block: (tag, type, count, value) each."""
    head, data = b"II*\0" + struct.pack("<IH", 8, len(entries)), b""
    for tag, kind, count, value in entries:
        offset = struct.pack("<I", 14 + 12 * len(entries) + len(data))
        head += struct.pack("<HHI", tag, kind, count) + (value.ljust(4, b"\0") if len(value) <= 4 else offset)
        data += value if len(value) > 4 else b""
    return b"Exif\0\0" + head + struct.pack("<I", 0) + data


TURNED = (0x112, 3, 1, struct.pack("<H", 6))
EXIF = {
    "alone": [TURNED],
    "resolution -1/0": [TURNED, (0x11A, 10, 1, struct.pack("<ii", -1, 0))],
    "resolution a text": [TURNED, (0x11A, 2, 5, b"72dp\0")],
    "resolution cut off": [TURNED, (0x11A, 5, 1000, b"12345678")],
    "unknown type": [TURNED, (0x11A, 99, 1, b"1234")],
    "32 bits": [(0x112, 4, 1, struct.pack("<I", 6))],
    "twice": [(0x112, 3, 2, struct.pack("<HH", 6, 6))],
    "after another": [(0x10F, 2, 2, b"x\0"), TURNED],
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on metadata
@pytest.mark.hostile
@pytest.mark.parametrize("name", EXIF)
def test_a_turned_picture_is_upright_whatever_its_other_tags_are(name):
    assert decode(encode(Image.new("RGB", (8, 4)), "JPEG", exif=tiff(EXIF[name]))).size == (4, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on metadata
@pytest.mark.hostile
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II", b"Exif\0\0II*\0\xff\xff\xff\xff", tiff([(0x112, 2, 2, b"6\0")]), b"\0" * 50]
)  # fmt: skip
def test_a_picture_whose_exif_says_nothing_stays_as_it_is(exif):
    assert decode(encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (8, 4)


def grey16(value, **options):
    return encode(Image.fromarray(np.full((4, 4), value, np.uint16)), **options)


COLOURS = {
    "16 bits, black": (grey16(0), (0, 0, 0)),
    "16 bits, mid grey": (grey16(32768), (128, 128, 128)),
    "16 bits, dark": (grey16(300), (1, 1, 1)),
    "16 bits, white": (grey16(65535), (255, 255, 255)),
    "16 bits, transparent": (grey16(300, transparency=300), (255, 255, 255)),
    "16 bits, transparent elsewhere": (grey16(32768, transparency=300), (128, 128, 128)),
    "1 bit, black": (encode(Image.new("1", (4, 4))), (0, 0, 0)),
    "1 bit, white": (encode(Image.new("1", (4, 4), 1)), (255, 255, 255)),
    "8 bits": (encode(Image.new("L", (4, 4), 128)), (128, 128, 128)),
    "8 bits, transparent": (encode(Image.new("L", (4, 4), 9), transparency=9), (255, 255, 255)),
    "grey and alpha": (encode(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255)),
    "colour and alpha": (encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), (255, 255, 255)),
    "colour, transparent": (encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), (255,) * 3),
    "palette": (encode(Image.new("P", (4, 4)), "GIF"), (0, 0, 0)),
    "CMYK": (encode(Image.new("CMYK", (16, 16)), "JPEG"), (255, 255, 255)),
    "WebP": (encode(Image.new("RGB", (4, 4), (0, 0, 255)), "WEBP", lossless=True), (0, 0, 255)),
    "BMP": (encode(Image.new("RGB", (4, 4), (0, 0, 255)), "BMP"), (0, 0, 255)),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", COLOURS)
def test_every_mode_becomes_the_colours_that_it_means(name):
    encoded, expected = COLOURS[name]
    image = decode(encoded)
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BROKEN = {
    "no bytes of a picture": b"hello",
    "HTML": b"<html><body>404</body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "TIFF, not in the list": encode(Image.new("RGB", (4, 4)), "TIFF"),
    "EPS, which runs a program": encode(Image.new("RGB", (4, 4)), "EPS"),
    "cut off": PNG[:40],
    "only a head": PNG[:8],
    "wrong checksum": PNG[:20] + b"\xff" + PNG[21:],
    "less data than pixels": png_of(100, 100),
    "no width": png_of(0, 5),
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "JPEG's first bytes": b"\xff\xd8\xff\xe0",
    "GIF's first bytes": b"GIF89a",
    "WebP's first bytes": b"RIFF\0\0\0\0WEBPVP8 ",
    "BMP's first bytes": b"BM" + b"\xff" * 60,
}
OVERSIZED = {"65000 x 65000": png_of(65000, 65000), "2 billion wide": png_of(2**31 - 1, 1)}


@pytest.mark.hostile
@pytest.mark.parametrize("name", BROKEN | OVERSIZED)
def test_a_broken_picture_is_one_problem(name):
    reason = "broken_image" if name in BROKEN else "oversized_image"
    assert problem_of(lambda: decode((BROKEN | OVERSIZED)[name])).reason == reason


SEEDS = [
    PNG,
    grey16(700),
    encode(Image.effect_noise((32, 32), 50), "JPEG", exif=tiff([TURNED])),
    encode(Image.effect_noise((32, 32), 50), "GIF"),
    encode(Image.effect_noise((32, 32), 50).convert("RGB"), "WEBP"),
    encode(Image.new("RGBA", (9, 9)), "PNG"),
    encode(Image.new("P", (9, 9)), "BMP"),
]


_changes = st.tuples(st.floats(0, 0.999), st.integers(0, 255))


def _with_bytes(encoded, changes):
    changed = bytearray(encoded)
    for place, value in changes:
        changed[int(place * len(changed))] = value
    return bytes(changed)


def _beginning(encoded, share):
    return encoded[: int(len(encoded) * share)]


@pytest.mark.hostile
@settings(max_examples=300)
@given(
    encoded=st.one_of(
        st.binary(max_size=100),
        st.builds(_with_bytes, st.sampled_from(SEEDS), st.lists(_changes, max_size=8)),
        st.builds(_beginning, st.sampled_from(SEEDS), st.floats(0, 1)),
    )
)
def test_picture_bytes_raise_nothing_but_an_image_problem(encoded):
    limits = CatalogSettings.parse(path="items.csv", max_image_pixels=1_000_000)
    with contextlib.suppress(ImageProblem):
        assert decode(encoded, limits).mode == "RGB"


def test_a_large_picture_is_averaged_strip_by_strip():
    """The same as averaging the whole, and every edge is there."""
    side = int(LARGE**0.5) + 9
    whole = Image.linear_gradient("L").resize((side, side))
    whole.paste(255, (side - 2, side - 2, side, side))
    got, expected = decode(encode(whole, compress_level=1)), whole.reduce(2).convert("RGB")
    assert got.size == expected.size
    assert np.array_equal(np.asarray(got), np.asarray(expected))


@pytest.mark.hostile
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rows", "most_mb"), [("one-bit", 12, 500), ("clear", 4, 1000)])
def test_pictures_of_49_megapixels_fit_in_memory(kind, rows, most_mb, tmp_path, script):
    (tmp_path / "bomb").write_bytes(bomb(kind))
    result = script("tests.hostile.bombs", "--rows", rows, "--file", tmp_path / "bomb")
    assert result["pictures"] == rows
    assert result["peak_mb"] < most_mb
