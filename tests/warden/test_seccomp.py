"""The system call filter: its program is interpreted here, and applied for real in a child process."""

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from ctypes.util import find_library

import pytest

from stockade.warden import seccomp
from stockade.warden.syscall_table import NUMBERS

ALLOW, EPERM, ENOSYS = "allow", "EPERM", "ENOSYS"
TOKENS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, ARM = 0x40000003, 0x40000028
X32_BIT = 0x4000_0000
HIGH = 1 << 32

NEVER = """
    unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick
    mount_setattr statmount listmount open_tree_attr name_to_handle_at open_by_handle_at ptrace process_vm_readv
    process_vm_writev process_madvise kcmp pidfd_getfd io_uring_setup io_uring_enter io_uring_register bpf
    perf_event_open userfaultfd add_key request_key keyctl memfd_secret init_module finit_module delete_module
    kexec_load reboot swapon swapoff acct quotactl quotactl_fd settimeofday clock_settime clock_adjtime adjtimex
    sethostname setdomainname syslog vhangup vmsplice fanotify_init io_setup syncfs mbind cachestat
"""
EVERYWHERE = [
    ("read", (), ALLOW),
    ("openat", (), ALLOW),
    ("openat2", (), ALLOW),
    ("faccessat2", (), ALLOW),
    ("close_range", (), ALLOW),
    ("statx", (), ALLOW),
    ("epoll_pwait2", (), ALLOW),
    ("execve", (), ALLOW),
    ("exit_group", (), ALLOW),
    ("mmap", (), ALLOW),
    ("futex", (), ALLOW),
    ("futex_waitv", (), ALLOW),
    ("rseq", (), ALLOW),
    ("memfd_create", (), ALLOW),
    ("pidfd_open", (), ALLOW),
    ("seccomp", (), ALLOW),
    ("landlock_restrict_self", (), ALLOW),
    ("getrandom", (), ALLOW),
    ("clone3", (), ENOSYS),
    ("sync", (), "0"),
    *((call, (), EPERM) for call in NEVER.split()),
    # clone(flags, …): threads and processes, but no namespaces
    ("clone", (0x3D0F00,), ALLOW),
    ("clone", (0x01200011,), ALLOW),
    ("clone", (0x8000_0000 | 17,), ALLOW),
    *(
        ("clone", (flag | 17,), EPERM)
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
    ),
    ("clone", (HIGH | 0x10000000,), EPERM),
    # socket(family, type, protocol)
    ("socket", (1, 1, 0), ALLOW),
    ("socket", (1, 5, 0), ALLOW),
    ("socket", (2, 1, 0), ALLOW),
    ("socket", (2, 1 | 0o2004000, 6), ALLOW),
    ("socket", (10, 2, 17), ALLOW),
    ("socket", (16, 3, 0), ALLOW),
    ("socket", (HIGH | 2, HIGH | 1, HIGH | 0), ALLOW),
    ("socket", (2, 3, 1), EPERM),
    ("socket", (2, 3 | 0o2000000, 255), EPERM),
    ("socket", (10, 3, 58), EPERM),
    ("socket", (2, 10, 0x300), EPERM),
    ("socket", (2, 5, 132), EPERM),
    ("socket", (2, HIGH | 3, 1), EPERM),
    ("socket", (2, 1, 132), "EPROTONOSUPPORT"),
    ("socket", (2, 1, 262), "EPROTONOSUPPORT"),
    ("socket", (2, 2, 1), "EPROTONOSUPPORT"),
    ("socket", (2, 2, 136), "EPROTONOSUPPORT"),
    ("socket", (16, 3, 9), "EPROTONOSUPPORT"),
    ("socket", (16, 3, 12), "EPROTONOSUPPORT"),
    *(("socket", (family, 1, 0), "EAFNOSUPPORT") for family in (0, 3, 15, 17, 29, 30, 31, 38, 39, 40, 41, 44, 255)),
    ("socket", (HIGH | 40, 1, 0), "EAFNOSUPPORT"),
    ("socketpair", (1, 1, 0), ALLOW),
    ("socketpair", (2, 1, 0), "EAFNOSUPPORT"),
    ("socketpair", (30, 1, 0), "EAFNOSUPPORT"),
    # ioctl(descriptor, command)
    ("ioctl", (0, 0x5401), ALLOW),
    ("ioctl", (0x5412, 0x541B), ALLOW),
    *(
        ("ioctl", (0, command | high), EPERM)
        for command in (0x5412, 0x541C, 0x541D, 0x5423)
        for high in (0, HIGH, 0xFFFFFFFF << 32)
    ),
    *(("ioctl", (0, command), ALLOW) for command in (0x40049409, 0x4020940D, 0xC0189436)),
    *(("ioctl", (0, command | HIGH), EPERM) for command in (0x50009418, 0x50009417, 0x5000940E, 0x5000943F, 0x9408)),
    ("personality", (0,), ALLOW),
    ("personality", (0xFFFFFFFF,), ALLOW),
    ("personality", (0x0040000,), EPERM),
    ("personality", (8,), EPERM),
    ("personality", (HIGH | 0x0040000,), EPERM),
    # mknodat(directory, path, mode)
    ("mknodat", (3, 0, 0o010644), ALLOW),
    ("mknodat", (3, 0, 0o140644), ALLOW),
    ("mknodat", (3, 0, 0o020644), EPERM),
    ("mknodat", (3, 0, 0o060644), EPERM),
]
X86_64_ONLY = [
    ("open", (), ALLOW),
    ("fork", (), ALLOW),
    ("vfork", (), ALLOW),
    ("arch_prctl", (), ALLOW),
    ("mknod", (0, 0o010644), ALLOW),
    ("mknod", (0, 0o020644), EPERM),
    ("iopl", (), EPERM),
    ("ioperm", (), EPERM),
    ("modify_ldt", (), EPERM),
    ("uselib", (), EPERM),
    ("_sysctl", (), EPERM),
]
CASES = [(arch, *case) for arch in TOKENS for case in EVERYWHERE] + [("x86_64", *case) for case in X86_64_ONLY]


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def answer(program: bytes, token: int, number: int, args: tuple[int, ...] = ()) -> str:
    """What the kernel would do: an interpreter of the instructions that the filter uses, and of no others."""
    data = struct.pack(
        "<iIQ6Q", number - (1 << 32) if number >> 31 else number, token, 0, *args, *[0] * (6 - len(args))
    )
    code = decode(program)
    at = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                assert operand % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return name(operand)
            case _:
                raise AssertionError(f"instruction {operation:#x} is not one the filter should use")


def name(action: int) -> str:
    kind, value = action & 0xFFFF0000, action & 0xFFFF
    if kind == 0x00050000:
        return errno.errorcode[value] if value else "0"
    return {0x7FFF0000: ALLOW, 0x80000000: "kill"}[kind]


@pytest.mark.parametrize(("arch", "call", "args", "expected"), CASES)
def test_filter_answers_as_the_table_says(arch: str, call: str, args: tuple[int, ...], expected: str) -> None:
    assert answer(seccomp.build(arch), TOKENS[arch], NUMBERS[arch][call], args) == expected


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_calls_of_another_architecture_kill(arch: str) -> None:
    program = seccomp.build(arch)
    others = {I386, ARM, *TOKENS.values()} - {TOKENS[arch]}
    for token in others:
        for number in (0, 20, 59, 10_000):
            assert answer(program, token, number) == "kill"


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_numbers_without_a_call_are_unknown(arch: str) -> None:
    program = seccomp.build(arch)
    known = set(NUMBERS[arch].values())
    unknown = [number for number in range(1024) if number not in known]
    assert unknown
    for number in (*unknown, 0x3FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert answer(program, TOKENS[arch], number) == ENOSYS


def test_x32_calls_are_unknown() -> None:
    program = seccomp.build("x86_64")
    for number in range(600):
        assert answer(program, TOKENS["x86_64"], X32_BIT | number) == ENOSYS


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_every_call_is_in_exactly_one_group(arch: str) -> None:
    listed = [call for group in (*seccomp.ALLOWED, *seccomp.REFUSED, *seccomp.CHECKED) for call in group.calls]
    assert len(listed) == len(set(listed))
    assert set(NUMBERS[arch]) <= set(listed)
    assert set(listed) == set().union(*NUMBERS.values())


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_every_call_of_a_group_is_answered_alike(arch: str) -> None:
    program = seccomp.build(arch)
    for groups, expected in ((seccomp.ALLOWED, ALLOW), (seccomp.REFUSED, EPERM)):
        for call in (call for group in groups for call in group.calls if call in NUMBERS[arch]):
            assert answer(program, TOKENS[arch], NUMBERS[arch][call]) == expected, call


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_what_gvisor_may_do_beyond_a_tenants_program_is_what_is_listed(arch: str) -> None:
    tenants, walls, token = seccomp.build(arch), seccomp.build(arch, of_wall=True), TOKENS[arch]
    differing = {
        call for call, number in NUMBERS[arch].items() if answer(tenants, token, number) != answer(walls, token, number)
    }
    listed = {call for group in seccomp.WALL for call in group.calls} & set(NUMBERS[arch])
    assert differing == listed - {"clone"}  # which without flags is everybody's
    new_user = NUMBERS[arch]["clone"], (0x1000_0000,)
    assert (answer(tenants, token, *new_user), answer(walls, token, *new_user)) == (EPERM, ALLOW)


def test_every_group_has_a_reason() -> None:
    groups = (*seccomp.ALLOWED, *seccomp.REFUSED, *seccomp.CHECKED)
    assert all(group.why and group.calls for group in groups)
    assert len({group.name for group in groups}) == len(groups)


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_jumps_stay_inside_and_the_program_ends_in_a_return(arch: str) -> None:
    code = decode(seccomp.build(arch))
    assert len(code) < 512  # short enough for every call; the kernel takes 4096
    for at, (operation, if_true, if_false, operand) in enumerate(code):
        if operation == 0x05:
            assert at + 1 + operand < len(code)
        elif operation & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_a_call_is_decided_in_few_steps(arch: str) -> None:
    code = decode(seccomp.build(arch))
    longest: dict[int, int] = {}
    for at in range(len(code) - 1, -1, -1):
        operation, if_true, if_false, operand = code[at]
        if operation == 0x06:
            longest[at] = 1
        elif operation == 0x05:
            longest[at] = 1 + longest[at + 1 + operand]
        elif operation & 0x07 == 0x05:
            longest[at] = 1 + max(longest[at + 1 + if_true], longest[at + 1 + if_false])
        else:
            longest[at] = 1 + longest[at + 1]
    assert longest[0] <= 32


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="sparc64"):
        seccomp.build("sparc64")


def test_long_branches_are_reached_over_a_jump() -> None:
    long = seccomp._arg(0) * 300 + seccomp._ret(0x80000000)
    code = seccomp._when(0x15, 7, long, seccomp._ret(0x7FFF0000))
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in seccomp._arg(1) + code)
    assert answer(program, 0, 0, (0, 7)) == "kill"
    assert answer(program, 0, 0, (0, 8)) == ALLOW


@pytest.mark.parametrize("arch", seccomp.ARCHITECTURES)
def test_numbers_agree_with_libseccomp(arch: str) -> None:
    path = find_library("seccomp")
    if path is None:
        pytest.skip("libseccomp is not installed")
    resolve = ctypes.CDLL(path).seccomp_syscall_resolve_name_arch
    newest_known_to_any_libseccomp = 450
    for call, number in NUMBERS[arch].items():
        resolved = resolve(TOKENS[arch], call.encode())
        if number <= newest_known_to_any_libseccomp and call not in ("uretprobe", "uprobe"):
            assert resolved == number, call
        else:
            assert resolved in (number, -1), call  # -1: this libseccomp is older than the call


# ── for real ─────────────────────────────────────────────────────────────────────────────────────────────────────

UNDER_FILTER = """
import ctypes, os, sys
program = bytes.fromhex(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
buffer = ctypes.create_string_buffer(program, len(program))
fprog = Fprog(len(program) // 8, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0, os.strerror(ctypes.get_errno())
"""


def under_filter(code: str) -> subprocess.CompletedProcess[str]:
    if platform.machine() not in seccomp.ARCHITECTURES:
        pytest.skip("no filter for this machine")
    return subprocess.run(
        [sys.executable, "-c", UNDER_FILTER + code],
        input=seccomp.build().hex() + "\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_kernel_takes_the_filter_and_python_runs_under_it() -> None:
    done = under_filter(
        """
import asyncio, socket, threading
thread = threading.Thread(target=lambda: print("thread", flush=True)); thread.start(); thread.join()
async def main():
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print('child')")
    await child.wait()
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    server.close()
asyncio.run(main())
socket.if_nameindex()
os.sync()
print("done")
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["thread", "child", "done"]


def test_the_kernel_refuses_what_the_filter_refuses() -> None:
    numbers = NUMBERS[platform.machine()]
    # Should the filter fail, nothing happens to the host: no call acts on these arguments, vhangup has none.
    calls = sorted({call for group in seccomp.REFUSED for call in group.calls if call in numbers} - {"vhangup"})
    done = under_filter(
        f"""
for number in {[numbers[call] for call in calls]}:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    print(result, ctypes.get_errno())
"""
    )
    assert done.returncode == 0, done.stderr
    answers = dict(zip(calls, done.stdout.splitlines(), strict=True))
    assert answers == dict.fromkeys(calls, f"-1 {errno.EPERM}")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is an x86 instruction")
def test_the_i386_entry_kills() -> None:
    done = under_filter(
        """
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (i386 getpid); int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print("before", flush=True)
print("pid", call(), os.getpid(), flush=True)
"""
    )
    assert done.stdout == "before\n"
    assert done.returncode == -31  # SIGSYS


def test_programs_cannot_lift_the_filter() -> None:
    done = under_filter(
        """
allow_all = bytes.fromhex("060000000000ff7f")
buffer2 = ctypes.create_string_buffer(allow_all, 8)
fprog2 = Fprog(1, ctypes.addressof(buffer2))
assert libc.prctl(22, 2, ctypes.byref(fprog2), 0, 0) == 0
print(libc.unshare(0x10000000), ctypes.get_errno())
"""
    )
    assert done.stdout.split() == ["-1", str(errno.EPERM)], done.stderr


def test_this_machine_has_a_filter_by_default() -> None:
    if platform.machine() in seccomp.ARCHITECTURES:
        assert seccomp.build() == seccomp.build(os.uname().machine)
