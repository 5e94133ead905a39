"""Addresses that the kernel turns away from a port before it makes a connection (Linux).

A classic BPF filter on the listening socket drops their packets
(https://www.kernel.org/doc/html/latest/networking/filter.html): a new connection from there costs the service nothing.
Connections that exist stay.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import structlog

log = structlog.get_logger("computemesh.service")

MOST = 256
"""Addresses that are turned away at a time; the oldest gives way. Each packet is compared with all of them."""

_ESTABLISHED, _LISTEN = 1, 10  # states of TCP_INFO
_BYTES_RECEIVED = 128  # offset in struct tcp_info of linux/tcp.h
_SO_ATTACH_FILTER = 26
_PIDFD_GETFD = 438  # its number on every architecture
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF
_LOAD_BYTE, _LOAD_WORD, _SHIFT, _IF_EQUAL, _GO, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x05, 0x06

Instruction = tuple[int, int, int, int]
_DROP: Instruction = (_RETURN, 0, 0, 0)
_PASS: Instruction = (_RETURN, 0, 0, 0xFFFFFFFF)


def plain(host: str) -> IPv4Address | IPv6Address:
    """An address as it is compared: of IPv4 where IPv6 only carries it."""
    address = ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


@contextmanager
def borrowed(number: int) -> Iterator[socket.socket]:
    """A file descriptor of this process as a TCP socket, for as long as the body runs: it stays whose it was."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=number)
    try:
        yield found
    finally:
        found.detach()


def received(number: int) -> int | None:
    """Bytes that a connection of this process has received; None: it is none."""
    try:
        with borrowed(number) as one:
            info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    except OSError:
        return None
    known = len(info) == _BYTES_RECEIVED + 8 and info[0] == _ESTABLISHED
    return int(struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]) if known else None


def descriptors(process: int | None = None) -> list[int]:
    """Those that are open in a process, this one unless said otherwise."""
    return [int(one) for one in os.listdir(f"/proc/{process or 'self'}/fd")]


def program(addresses: Iterable[IPv4Address | IPv6Address]) -> list[Instruction]:
    """A filter that drops packets from `addresses` (of IPv6: from their /64) and passes all others."""
    addresses = list(addresses)
    fours = [_word_at(12)]
    for four in {one for one in addresses if one.version == 4}:
        fours += [(_IF_EQUAL, 0, 1, int(four)), _DROP]
    sixes = []
    for prefix in {int(one) >> 64 for one in addresses if one.version == 6}:
        sixes += [_word_at(8), (_IF_EQUAL, 0, 3, prefix >> 32),
                  _word_at(12), (_IF_EQUAL, 0, 1, prefix & 0xFFFFFFFF), _DROP]  # fmt: skip
    version = [(_LOAD_BYTE, 0, 0, _NETWORK_HEADER), (_SHIFT, 0, 0, 4), (_IF_EQUAL, 0, 1, 6)]
    return [*version, (_GO, 0, 0, len(fours) + 1), *fours, _PASS, *sixes, _PASS]


def _word_at(offset: int) -> Instruction:
    return (_LOAD_WORD, 0, 0, _NETWORK_HEADER + offset)


class Doors:
    """The listening sockets of one port of a process, this one or a child, and who is turned away there for `for_s`
    seconds; 0: nobody is.

    An address of this machine's own (127.0.0.1, ::1) is never turned away: services reach each other by it.
    """

    def __init__(self, port: int, for_s: float, process: int | None = None) -> None:
        self._port, self._for_s, self._process = port, for_s, process
        self._away: OrderedDict[IPv4Address | IPv6Address, float] = OrderedDict()  # until when
        self._lock = threading.Lock()

    def turn_away(self, host: str) -> bool:
        """Whether new connections from there are dropped from now on."""
        address = plain(host)
        if not self._for_s or str(address) in ("127.0.0.1", "::1"):
            return False
        with self._lock:
            if not self._away:
                self._wait(self._for_s)
            self._away.pop(address, None)
            self._away[address] = time.monotonic() + self._for_s
            while len(self._away) > MOST:
                self._away.popitem(last=False)
            return self._apply()

    def _wait(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._let_in)
        timer.daemon = True
        timer.start()

    def _let_in(self) -> None:
        """Those whose time is over may connect again."""
        with self._lock:
            while self._away and (first := next(iter(self._away.values()))) <= time.monotonic():
                self._away.popitem(last=False)
            self._apply()
            if self._away:
                self._wait(first - time.monotonic())

    def _apply(self) -> bool:
        code = b"".join(struct.pack("HBBI", *one) for one in program(self._away))
        held = ctypes.create_string_buffer(code, len(code))
        told = struct.pack("HL", len(code) // 8, ctypes.addressof(held))
        try:
            found = self._listening()
        except OSError as error:
            log.warning("doors.closed_to_us", port=self._port, error=str(error))
            return False
        for one in found:
            with one:
                one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, told)
        return bool(found)

    def _listening(self) -> list[socket.socket]:
        """Copies of them. Raises OSError where another process does not let us have its own."""
        found = []
        for number in descriptors(self._process):
            with suppress(FileNotFoundError):  # closed meanwhile
                if not str(Path(f"/proc/{self._process or 'self'}/fd/{number}").readlink()).startswith("socket:"):
                    continue
                one = socket.socket(fileno=self._copy(number))
                with suppress(OSError):  # not of TCP
                    if one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _LISTEN \
                            and one.getsockname()[1] == self._port:  # fmt: skip
                        found.append(one)
                        continue
                one.close()
        return found

    def _copy(self, number: int) -> int:
        if self._process is None:
            return os.dup(number)
        process = os.pidfd_open(self._process)
        try:
            copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
        finally:
            os.close(process)
        if copy < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(copy)
