"""Pictures over HTTP, from the hosts of an allow-list only, each within one total time.

What is checked is what is connected to: a URL is parsed once, its host is looked up, and the connection
goes to an address that was found allowed, so neither a second parser nor a second answer of the name
server can lead elsewhere. Nothing comes from the environment (proxies, netrc), redirects are refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

from sda_features.errors import ImageProblem

ATTEMPTS = 3
BACK_OFF = 0.25  # seconds before the second attempt, then doubled
CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_KEPT = 30.0  # seconds that an answer of the name server is used
CONNECTIONS = 32  # kept open to a host
LONGEST_URL = 8192
PORTS = {"http": 80, "https": 443}
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
# Of an error, said to be fine.
PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<(?!svg|\?xml)|\{)", re.IGNORECASE)
REFUSED = {401, 403, 407}  # of us, which says nothing about the picture


class Fetcher:
    """Downloads pictures; for many threads at once.

    Args:
        hosts: allow-list of "host", "host:port", "address" or "address:port". Without a port it is that
            of the scheme. An address that is not public is connected to only if it is listed as such.
        max_bytes: largest picture.
        timeout: seconds a picture may take in all, retries included.
        resolve: host -> its addresses.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        max_bytes: int,
        timeout: float,
        resolve: Callable[[str], Sequence[str]] | None = None,
    ):
        self._allowed = {_entry(host) for host in hosts}
        self._max_bytes, self._timeout = max_bytes, timeout
        self._resolve = resolve or _addresses
        self._answers: dict[str, tuple[Sequence[str], float]] = {}
        self._pools = PoolManager(num_pools=64, maxsize=CONNECTIONS)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._pools.clear()

    def fetch(self, url: str) -> bytes:
        """The bytes that a URL gives.

        Raises:
            ImageProblem: "bad_url", "host_not_allowed", "oversized_image", "download_failed" (the server
                says that there is no such picture), or "image_unreachable" (nothing is known of it now).
        """
        target, host, port = self._check(url)
        with _Deadline(self._timeout) as deadline:
            for attempt in range(ATTEMPTS):
                pause = BACK_OFF * 2**attempt * random.uniform(0.75, 1.25)
                try:
                    return self._attempt(target, host, port, attempt, deadline)
                except _RetryLater as again:
                    problem = again
                    pause = max(pause, again.after)
                if attempt == ATTEMPTS - 1 or pause >= deadline.left():
                    break
                time.sleep(pause)
            raise ImageProblem("image_unreachable", f"{host}: {deadline.reason(str(problem))}") from None

    def _check(self, url: str) -> tuple[Url, str, int]:
        """The URL, parsed, with the host and port that the connection is for."""
        if len(url) > LONGEST_URL or any(sign in " \\" or not sign.isprintable() for sign in url):
            raise ImageProblem("bad_url", "backslashes, blanks and control characters are refused in a URL")
        try:
            target = parse_url(url)
            host = _plain(target.host or "")
        except Exception:
            raise ImageProblem("bad_url", "not a URL of the form http(s)://host/path") from None
        authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
        if target.scheme not in PORTS or not host or "%" in host or "@" in authority:
            raise ImageProblem("bad_url", "expected http(s)://host/path, without a user name")
        port = PORTS[target.scheme] if target.port is None else target.port
        usual = None if port == PORTS[target.scheme] else port
        if not {(host, port), (host, usual)} & self._allowed:
            names = ", ".join(sorted(_shown(*entry) for entry in self._allowed)) or "none"
            raise ImageProblem(
                "host_not_allowed",
                f"{_shown(host, usual)} is not in the allow-list ({names}); see --image-hosts",
            )
        return target, host, port

    def _attempt(self, target: Url, host: str, port: int, attempt: int, deadline: _Deadline) -> bytes:
        address = self._address(host, attempt)
        secure = {"server_hostname": host, "assert_hostname": host} if target.scheme == "https" else None
        pool = self._pools.connection_from_host(address, port, target.scheme, secure)
        response = None
        try:
            left = max(deadline.left(), 1e-3)
            _thread.deadline = deadline
            response = pool.urlopen(
                "GET",
                target.request_uri,
                headers={"Host": target.netloc or host, "Accept": "image/*", "User-Agent": "sda-features"},
                timeout=Timeout(connect=min(CONNECT_TIMEOUT, left), read=left),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            self._check_status(host, response.status, response.headers)
            content = bytearray()
            for chunk in response.stream(1 << 16):
                content += chunk
                if len(content) > self._max_bytes:
                    raise self._too_large()
            if not content.strip() or PAGE.match(content):
                raise ImageProblem(
                    "image_unreachable", f"{host} answered 200 with a page or nothing, not a picture"
                )
            if deadline.expired:  # a body without a length ends where the connection was cut
                raise _RetryLater("cut")
            return bytes(content)
        except (ImageProblem, _RetryLater):
            raise
        except Exception as error:
            raise _RetryLater(type(error).__name__) from None
        finally:
            deadline.watch(None)
            if response is not None:
                response.close()  # what was read to its end has given its connection back

    def _check_status(self, host: str, status: int, headers: Any) -> None:
        if status in TRY_AGAIN:
            after = headers.get("Retry-After", "")
            raise _RetryLater(
                f"answered {status}", float(after) if after.isascii() and after.isdigit() else 0.0
            )
        if status in REFUSED or status >= 500 or (status < 300 and status != 200):
            raise ImageProblem("image_unreachable", f"{host} answered {status}, expected 200")
        if status != 200:
            raise ImageProblem("download_failed", f"{host} answered {status}, expected 200")
        length = headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _address(self, host: str, attempt: int) -> str:
        """An allowed address of the host; another one in each attempt, if there are several."""
        answer, until = self._answers.get(host, ((), 0.0))
        if time.monotonic() >= until:
            try:
                answer = [host] if _parsed(host) else self._resolve(host)
            except (OSError, UnicodeError):
                raise _RetryLater("has no address") from None
            self._answers[host] = answer, time.monotonic() + ANSWER_KEPT
        listed = {name for name, _ in self._allowed}
        usable = [address for address in answer if _plain(address) in listed or _is_public(address)]
        if not usable:
            raise ImageProblem(
                "image_unreachable",
                f"{host} has no public address but {', '.join(answer)}; to allow it, list the address itself "
                "in --image-hosts, too",
            )
        return usable[attempt % len(usable)]

    def _too_large(self) -> ImageProblem:
        return ImageProblem("oversized_image", f"more than {self._max_bytes:,} bytes; see --max-image-bytes")


class _RetryLater(Exception):
    """An attempt failed in a way that may pass, at the earliest `after` seconds from now."""

    def __init__(self, what: str, after: float = 0.0):
        super().__init__(what)
        self.after = after


class _Deadline:
    """Cuts the connection of a picture when its time is over: time-outs of sockets are for one read each."""

    def __init__(self, seconds: float):
        self._seconds, self._ends = seconds, time.monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self.expired = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self._ends - time.monotonic())

    def reason(self, what: str) -> str:
        """What is to be told of a failed picture."""
        late = f"not there after {self._seconds:g} s; see --image-timeout"
        return late if self.expired or not self.left() else what

    def watch(self, connected: socket.socket | None) -> None:
        """From now on this socket is the one that is cut."""
        with self._lock:
            if connected is not None and self.expired:
                raise TimeoutError
            self._socket = connected

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it may be closed by now
                    # Not the method of SSLSocket, which would go on in plain text.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_thread = threading.local()  # .deadline: of the picture that this thread downloads


class _Connection(HTTPConnection):
    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)
        _thread.deadline.watch(self.sock)


class _SecureConnection(HTTPSConnection):
    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)
        _thread.deadline.watch(self.sock)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _entry(listed: str) -> tuple[str, int | None]:
    """Host and port of an entry of the allow-list."""
    if _parsed(listed):
        return _plain(listed), None
    entry = parse_url(f"http://{listed}")
    return _plain(entry.host or ""), entry.port


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _plain(host: str) -> str:
    """One spelling of a host: an address in short form, or a name in lower case without its last dot."""
    address = _parsed(host)
    return str(address) if address else host.lower().removesuffix(".")


def _shown(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _is_public(host: str) -> bool:
    """Whether an address lies in the public internet, those that IPv6 packs up included."""
    address = _parsed(host)
    if isinstance(address, ipaddress.IPv6Address):
        packed = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in ipaddress.ip_network("64:ff9b::/96"):
            packed = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if packed:
            return _is_public(str(packed))
    return address is not None and address.is_global and not address.is_multicast
