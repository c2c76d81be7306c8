"""What honest people and others send in `mixed`: requests, and what the answer to an honest one says."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

from stockade.attacks import Attack, attacks

__all__ = ["Honest", "honest_requests", "hostile_bodies"]

_FACTS: Final = "{}"


@dataclass(frozen=True, kw_only=True)
class Honest:
    """A program and what it prints."""

    body: bytes
    stdout: str


def honest_requests() -> Iterator[Honest]:
    """Small programs of many kinds without end, none like another, whose output is known without running them."""
    for number in count(1):
        for language, code, stdin, stdout in _programs(number):
            body = json.dumps({"language": language, "code": code, "stdin": stdin}).encode()
            yield Honest(body=body, stdout=stdout)


def hostile_bodies() -> Iterator[bytes]:
    """The corpus over and over, every group in turn; of what has several steps, all."""
    groups: dict[str, list[Attack]] = {}
    for attack in attacks():
        groups.setdefault(attack.group, []).append(attack)
    for number in count():
        for members in groups.values():
            attack = members[number % len(members)]
            for step in attack.steps:
                stdin = "x" * min(attack.stdin_bytes, 1 << 20) or _FACTS
                yield json.dumps({"language": attack.language, "code": step, "stdin": stdin}).encode()


def _programs(n: int) -> Iterator[tuple[str, str, str, str]]:
    """Language, code, input, output."""
    words = [f"word{(n * 7919 + i * 104729) % 1000}" for i in range(20)]
    yield "python", f"print({n} * 6)", "", f"{n * 6}\n"
    yield "python", "print(sum(map(int, input().split())))", f"{n} {n + 1} {n + 2}", f"{3 * n + 3}\n"
    yield (
        "python",
        "import sys\nprint(*sorted(sys.stdin.read().split()))",
        " ".join(words),
        f"{' '.join(sorted(words))}\n",
    )
    yield (
        "python",
        "import json\nd = json.loads(input())\nprint(json.dumps({'twice': d['n'] * 2}))",
        json.dumps({"n": n}),
        f'{{"twice": {2 * n}}}\n',
    )
    yield (
        "python",
        f"a, b = 0, 1\nfor _ in range({n % 90}):\n    a, b = b, a + b\nprint(a)",
        "",
        f"{_fibonacci(n % 90)}\n",
    )
    yield "python", f"open('f', 'w').write('{n}' * 3)\nprint(open('f').read())", "", f"{str(n) * 3}\n"
    yield "bash", f"echo $(({n} + 1))", "", f"{n + 1}\n"
    yield "python", f"import sys\nprint({n}, file=sys.stderr)\nprint('done {n}')", "", f"done {n}\n"


def _fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
