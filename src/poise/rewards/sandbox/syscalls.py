"""The system calls that a program in the sandbox goes without: a seccomp filter, as bubblewrap takes it.

Limits on processes do not bound shared memory that no process has attached, a new namespace may mount file systems
without a limit, and a socket to the virtual machine's host (AF_VSOCK) belongs to no network namespace. Whatever makes
these, or looks into other processes, is refused; everything that a Python program needs is not here.

Source: linux/audit.h, linux/seccomp.h, linux/bpf_common.h; call numbers of the two tables named below.
"""

from __future__ import annotations

import platform
import struct

# One row a call: name, number on x86_64 (arch/x86/entry/syscalls/syscall_64.tbl), on aarch64 (asm-generic/unistd.h).
_REFUSED = (
    ("shmget", 29, 194),
    ("msgget", 68, 186),
    ("semget", 64, 190),
    ("mq_open", 240, 180),
    ("ptrace", 101, 117),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("unshare", 272, 97),
    ("setns", 308, 268),
    ("mount", 165, 40),
    ("umount2", 166, 39),
    ("pivot_root", 155, 41),
    ("open_tree", 428, 428),
    ("move_mount", 429, 429),
    ("fsopen", 430, 430),
    ("fsmount", 432, 432),
    ("add_key", 248, 217),
    ("request_key", 249, 218),
    ("keyctl", 250, 219),
    ("bpf", 321, 280),
    ("perf_event_open", 298, 241),
    ("userfaultfd", 323, 282),
    ("io_uring_setup", 425, 425),
)
# AUDIT_ARCH, clone, socket, and where the numbers of another ABI (x32) begin.
_MACHINES = {"x86_64": (0xC000003E, 56, 41, 0x40000000), "aarch64": (0xC00000B7, 220, 198, None)}
_CLONE3 = 435
_NEW_NAMESPACE = 0x7E020000  # every CLONE_NEW flag of clone
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: of the sandbox's own, empty network

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter for a machine (this one if None) as an array of sock_filter; None where its numbers are not known.

    clone3 hides its flags from a filter, so it does not exist here; the C library then takes clone.
    """
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    arch, clone, socket, other_abi = known
    refused = [row[1 if other_abi else 2] for row in _REFUSED]
    # (operation, operand, where to jump if true, if false); None goes on with the next line.
    lines: list[tuple[int, int, str | None, str | None]] = [
        (_LOAD, _ARCH, None, None),
        (_EQUAL, arch, None, "refuse"),
        (_LOAD, _NUMBER, None, None),
        *([(_AT_LEAST, other_abi, "refuse", None)] if other_abi else []),
        *((_EQUAL, number, "refuse", None) for number in refused),
        (_EQUAL, _CLONE3, "absent", None),
        (_EQUAL, clone, "clone", None),
        (_EQUAL, socket, "socket", "allow"),
    ]
    places = {"clone": len(lines)}
    lines += [(_LOAD, _FIRST_ARGUMENT, None, None), (_ANY_BIT, _NEW_NAMESPACE, "refuse", "allow")]
    places["socket"] = len(lines)
    lines += [(_LOAD, _FIRST_ARGUMENT, None, None)]
    lines += [(_EQUAL, family, "allow", None) for family in _FAMILIES]
    for place, value in (("refuse", _EPERM), ("absent", _ENOSYS), ("allow", _ALLOW)):
        places[place] = len(lines)
        lines.append((_RETURN, value, None, None))

    def jump(here: int, target: str | None) -> int:
        return 0 if target is None else places[target] - here - 1

    return b"".join(
        struct.pack("=HBBI", operation, jump(here, yes), jump(here, no), operand)
        for here, (operation, operand, yes, no) in enumerate(lines)
    )
