"""What each way in is meant to give to a program: not an escape there, whatever the program itself says of it.

A program of the corpus is written for a run, the strictest way: no identity but a nobody's, no terminal, no network. A
sandbox that lives gives more, and which of it is data here, word by word: who gives more must say so, and the review of
this table is the review of that decision.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from stockade.attacks.verdicts import Judgement

__all__ = ["GIVEN", "is_given"]

GIVEN: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        # A sandbox that lives, whoever the program is in it.
        "live": {
            # Of no use to a process that has no capability and can gain none (`no-new-privileges`).
            "capability-bounds": "0x4fb",
            "own-everything": "(ch(own|mod) (/|/etc)(; |$))+",
            # No limit ends a process that prints without end: its log is a ring.
            "output-flood": "exited 0|wall_time( 137)?",
            "output-flood-stderr": r"(exited 0|wall_time( 137)?)(; \x00+)?",
            "output-endless-line": "exited 0|wall_time( 137)?",
            # Of its many children one after the other is killed, not all with the first: that takes its time.
            "memory-by-children": "wall_time( 137)?",
        },
        # Root of the sandbox, with eight capabilities over what is in it.
        "root": {
            "capabilities": r"\{'CapPrm': '00000000000004fb', 'CapEff': '00000000000004fb'\}",
            "become-root": "setgroups; setuid 65534; setuid 1",
            "groups": r"groups \[\]",
            # Root's own home is another one.
            "host-secrets": r"/home: \['user'\]",
            "own-everything": "(ch(own|mod) (/|/etc)(; |$)|give a file to root)+",
        },
        # All belongs to the one user there is, in a copy of the sandbox's own, and process 1 is that user, too.
        "ordinary": {
            "write-system": "write /etc/passwd; write /etc/ld.so.cache",
            "hard-links": "/etc/passwd",
            "identity": "uid 1000 inside, 0 outside",
            "own-everything": "(ch(own|mod) (/|/etc|/etc/passwd)(; |$))+",
            "starve-init": "the run reports signaled 137, the program exited with status 37",
        },
        "terminal": {
            "environment": r"variables \['TERM'\]",
            "standard-streams": "(/dev/pts/0(; |$))+",
            "terminal": "controlling terminal",
        },
        # A disk is bounded by its size, and names count as bytes: of those it takes as many as fit, at its own pace.
        "disk": {
            "deep-tree": "20000 levels",
            "inode-flood": r"wall_time( 137)?|\d{4,6} files",
            "link-flood": r"wall_time( 137)?|\d{4,6} links",
            "sparse-file": "1125899906842624 bytes",
        },
        # Input that is a file of the sandbox's own, where the shell has put it.
        "file": {
            "standard-streams": r"/code/given-input \(deleted\)",
            "reopen-streams": "0 rw: it can seek; 0 truncate: it can seek",
        },
        "outgoing": {"name-service": "name server 10.0.2.3", "listening-sockets-seen": "tcp: 2; udp: 1"},
        # A kernel of the tenant's own: these are its objects, which the host has not heard of. They are bounded by the
        # memory that this kernel may have, and the filter that the programs look for is the one that it runs under.
        "gvisor": {
            "timers": "20000 timers",
            "terminals": r"\d+(; \d+)*",
            "watches": r"\d+(; \d+)*",
            "mount-table": r"(/(sys|tmp|dev/shm)? is (9p|sysfs) of none, writable(; |$))+",
            "thread-bomb": r"wall_time|5000 threads",
            "out-of-memory-immunity": "oom_score_adj -1000",
            "descriptors-in-flight": "50000 in flight",
            "core-file": r"asked for 1073741824, limit \(0, 0\); asked for 0, limit \(0, 0\)",
            "seccomp-mode": "mode 0",
            "namespaces-unshare": r"((user|mount|cgroup|uts|ipc|pid|net|time): entered(; |$))+",
            "namespaces-clone": r"(clone (user|mount|net|pid)(; |$))+",
            "io-uring": "io_uring_setup",
            "async-io-budget": "io_setup",
            "kernel-log": "klogctl read all; klogctl size",
            "devices-listed": "/dev/fuse; /dev/net/tun",
            "devices-opened": "fuse; net/tun",
            "filter-replaced": "a filter that allows all has taken another's place",
            "socket-filters": r"((SO_ATTACH_(REUSEPORT_E)?BPF|TCP_REPAIR|SO_MARK|IP_TRANSPARENT)(; |$))+",
            "netlink": "kobject",
            # Its /proc says less than the host's, and these programs look for what it does not say.
            "capabilities": "exited 1; StopIteration",
            "execute-by-descriptor": "exited 1; StopIteration",
            "template-init-signals": "the run reports exited 1, the program exited with status 43",
            "template-objects": "exited 1; RuntimeError: dictionary changed size during iteration",
            "identity": "uid 1000 inside, 1000 outside",
            "standard-streams": r"host:\[\d+\]",
            "reopen-streams": "0 rw: it can seek; 0 truncate: it can seek",
            # Process 1 is one that sleeps, with an environment of one word that everybody knows.
            "init-secrets": "/proc/1/environ; /proc/1/auxv; /proc/1/maps; link ns/user; list fd",
            "init-settings": "robust list of process 1; /proc/1/fd/0 by path; /proc/1/ns/net by path",
            "limits-raised": "NPROC is unlimited",
            "priority": "nice -20",
            "template-memory-of-the-one-before": "memory",
        },
    }
)
"""By what a way gives (`Way.gives`) and the name of an attack: the evidence that says no more than that."""


def is_given(judgement: Judgement, gives: frozenset[str]) -> bool:
    """Whether a way that *gives* this much is meant to give just what *judgement* found.

    Raises:
        KeyError: *gives* names what no way gives.
    """
    name = judgement.attack.name
    allowed = [given[name] for one in gives if name in (given := GIVEN[one])]
    return any(re.fullmatch(pattern, judgement.evidence) for pattern in allowed)
