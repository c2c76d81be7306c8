"""Passwords: hashed with Argon2id, a few at a time, in threads.

The parameters are those that OWASP's cheat sheet on password storage asks for at least (19 MiB, two passes, one lane):
what they cost is what a stolen hash costs to guess, and what each attempt to log in costs us.
"""

import asyncio
import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from stockade.errors import Unavailable

__all__ = ["LONGEST_BYTES", "SHORTEST_BYTES", "Passwords"]

T = TypeVar("T")

SHORTEST_BYTES = 12
LONGEST_BYTES = 1024
"""Far above what anybody types: what is longer is there to keep us busy."""
MEMORY_KIB = 19 * 1024
PASSES = 2
AT_ONCE = 2
"""Hashes that are computed at the same time: more would take memory, and cores from the sandboxes."""
MOST_WAITING = 64
SALT_BYTES = 16
HASH_BYTES = 32


class Passwords:
    """Makes and checks hashes of passwords. A hash takes some 20 ms, and never any of the event loop's time."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES) -> None:
        self._hasher = PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=1, hash_len=HASH_BYTES, salt_len=SALT_BYTES
        )
        self._nobodys = _unmatchable(memory_kib=memory_kib, passes=passes)
        self._threads = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="passwords")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """What is kept of *password*.

        Raises:
            Unavailable: too many are waiting for theirs.
        """
        return await self._run(self._hash, _bytes(password))

    async def check(self, password: str, kept: str | None) -> bool:
        """Whether *kept* is the hash of *password*. For `None`, somebody without a password or nobody at all, it takes
        as long, and is not.

        Raises:
            Unavailable: as `hash`.
        """
        return await self._run(self._check, _bytes(password), kept)

    def is_outdated(self, kept: str) -> bool:
        """Whether *kept* was made with other parameters than today's."""
        try:
            return self._hasher.check_needs_rehash(kept)
        except InvalidHashError:
            return True

    def close(self) -> None:
        """Let go of the threads; a hash that is being computed is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        if self._waiting >= MOST_WAITING:
            raise Unavailable("too many people are logging in at once; try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1

    def _hash(self, password: bytes) -> str:
        return self._hasher.hash(password)

    def _check(self, password: bytes, kept: str | None) -> bool:
        try:
            return self._hasher.verify(kept or self._nobodys, password) and kept is not None
        except (Argon2Error, InvalidHashError):
            return False


def _bytes(password: str) -> bytes:
    return password.encode(errors="surrogatepass")


def _unmatchable(*, memory_kib: int, passes: int) -> str:
    """A hash that costs as much to check as any other, and is that of no password that anybody could know."""
    salt, hash = (base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (SALT_BYTES, HASH_BYTES))
    return f"$argon2id$v=19$m={memory_kib},t={passes},p=1${salt}${hash}"
