"""Two network stacks of this machine's kernel, and between them a link that loses packets.

Each end is a network namespace with a tun device; what the kernel sends into one is read here, and
written into the other later, or never. Linux's own netem does the same, and is not in every kernel.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

#: linux/sched.h, linux/if_tun.h.
_NEW_NETWORK = 0x40000000
_SET_TUN, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
#: Bytes of the largest packet.
_MTU = 1500

Result = TypeVar("Result")


class End:
    """One end: a thread whose sockets, and whose children's, belong to a network of their own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.tun: int = self.call(self._open)

    def call(self, what: Callable[[], Result]) -> Result:
        """Do something at this end; raises what it raises."""
        return self._thread.submit(what).result()

    def retransmitted(self) -> int:
        """Return how many TCP segments this end has sent again."""
        return self.call(self._retransmitted)

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self.tun)

    def _open(self) -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), "no network of its own")
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _SET_TUN, struct.pack("16sH", b"lossy", _TUN | _NO_HEADER))
        for argv in (
            ["ip", "address", "add", f"{self.address}/24", "dev", "lossy"],
            ["ip", "link", "set", "lossy", "mtu", str(_MTU), "up"],
            ["ip", "link", "set", "lo", "up"],
        ):
            subprocess.run(argv, check=True, capture_output=True)
        return tun

    def _retransmitted(self) -> int:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        return int(dict(zip(names, values, strict=True))["RetransSegs"])


@dataclass
class Link:
    """A link that loses a share of the packets, keeps each for a while, and carries so much."""

    ends: tuple[End, End]
    #: Share of packets, seconds one way, bytes per second one way.
    loss: float = 0.0
    delay: float = 0.0
    rate: float = 1e9
    seed: int = 0
    passed: int = 0
    lost: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Link":
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _carry(self) -> None:
        chance = random.Random(self.seed)
        first, second = (each.tun for each in self.ends)
        other = {first: second, second: first}
        free = dict.fromkeys(other, 0.0)
        waiting: list[tuple[float, int, int, bytes]] = []
        while not self._stop.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _due, _number, target, packet = heapq.heappop(waiting)
                os.write(target, packet)
            patience = min(waiting[0][0] - now, 0.1) if waiting else 0.1
            for tun in select.select([*other], [], [], patience)[0]:
                packet = os.read(tun, 65536)
                if chance.random() < self.loss:
                    self.lost += 1
                    continue
                self.passed += 1
                # One after the other, as fast as the link is.
                free[tun] = max(free[tun], time.monotonic()) + len(packet) / self.rate
                due = free[tun] + self.delay
                heapq.heappush(waiting, (due, self.passed, other[tun], packet))
