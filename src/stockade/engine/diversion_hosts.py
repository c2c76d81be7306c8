"""For which hosts secrets are meant, and what is put in for each."""

import re
from collections.abc import Mapping, Sequence

from stockade.engine.diversion_texts import Replacement
from stockade.errors import Invalid
from stockade.model import SecretRule

__all__ = ["MOST_HOSTS", "Misdirected", "Rules"]

MOST_HOSTS = 256
"""Over all secrets of a sandbox."""
_MOST_RULES = 64
_MOST_VALUE, _MOST_PLACEHOLDER, _MOST_NAME = 64 << 10, 256, 253
_PLACEHOLDER = re.compile(r"[!-~]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


class Misdirected(Exception):
    """A request that is not for whom the connection is; the text is for the program."""


class Rules:
    """The secrets of one sandbox."""

    def __init__(self, rules: Sequence[SecretRule]) -> None:
        """Raises Invalid: a rule cannot be meant; the text holds no value."""
        if len(rules) > _MOST_RULES:
            raise Invalid(f"secrets: {len(rules)} of them; {_MOST_RULES} is the most")
        for index, rule in enumerate(rules):
            _check(f"secrets[{index}]", rule)
        self._rules = [(rule, frozenset(_normal(host) for host in rule.hosts)) for rule in rules]
        if len(self._all_hosts()) > MOST_HOSTS:
            raise Invalid(f"secrets: {len(self._all_hosts())} hosts in all; {MOST_HOSTS} is the most")
        self._made: dict[tuple[int, ...], Replacement] = {}

    @property
    def hosts(self) -> tuple[str, ...]:
        """For which there is a secret; empty when one is for every host."""
        return () if any(not hosts for _, hosts in self._rules) else tuple(sorted(self._all_hosts()))

    @property
    def env(self) -> Mapping[str, str]:
        """What the sandbox sees of them."""
        return {rule.name: rule.placeholder for rule, _ in self._rules if _VARIABLE.fullmatch(rule.name)}

    def concern(self, host: str) -> bool:
        """Whether there is a secret for *host*, in lower case and without the last dot."""
        return bool(_HOST.fullmatch(host)) and any(not hosts or _is_among(host, hosts) for _, hosts in self._rules)

    def replacement(self, host: str, *, is_vouched: bool) -> Replacement:
        """What is put into a request for *host*.

        Args:
            is_vouched: it is known that who gets the request is this host.

        Raises:
            Misdirected: it is not, and there is a secret for this host and not for every.
        """
        meant = tuple(i for i, (_, hosts) in enumerate(self._rules) if not hosts or _is_among(host, hosts))
        if not is_vouched and any(self._rules[i][1] for i in meant):
            raise Misdirected(
                f"There is a secret for {host}, and this connection was not made to an address that its name led to "
                "lately: look the name up again, or use https."
            )
        if meant not in self._made:
            self._made[meant] = Replacement([self._rules[i][0] for i in meant])
        return self._made[meant]

    def _all_hosts(self) -> frozenset[str]:
        return frozenset[str]().union(*(hosts for _, hosts in self._rules))


def _is_among(host: str, patterns: frozenset[str]) -> bool:
    """Whether *host* is one of them, or below one that begins with `*.`."""
    if host in patterns:
        return True
    while "." in host:
        host = host.partition(".")[2]
        if f"*.{host}" in patterns:
            return True
    return False


def _normal(host: str) -> str:
    return host.lower().removesuffix(".")


def _check(where: str, rule: SecretRule) -> None:
    if not rule.value or len(rule.value) > _MOST_VALUE or not _is_text(rule.value):
        raise Invalid(f"{where}.value: must be text of 1 to {_MOST_VALUE} characters")
    if not _PLACEHOLDER.fullmatch(rule.placeholder) or len(rule.placeholder) > _MOST_PLACEHOLDER:
        raise Invalid(f"{where}.placeholder: must be 1 to {_MOST_PLACEHOLDER} printable ASCII characters, no spaces")
    if rule.value in rule.placeholder:
        raise Invalid(f"{where}.placeholder: the sandbox sees it, so it must not hold the value")
    for host in rule.hosts:
        if not _HOST.fullmatch(_normal(host)) or len(host) > _MOST_NAME:
            raise Invalid(f"{where}.hosts: {host!r} is no name; write api.example.org, or *.example.org for all below")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
