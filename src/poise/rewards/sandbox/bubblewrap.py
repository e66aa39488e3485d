"""The default sandbox: bubblewrap, with its own view of files, processes and network.

Inside: a read-only system and Python, a private /tmp of limited size, no network, no other processes, no environment,
no capabilities, and without the system calls that would get round the limits (`syscalls`). Limits on processor time,
memory, processes and files are set before the program starts. A caller that is root changes to an unused user id inside
the sandbox, because the kernel does not limit root's processes; any other caller gets a user namespace.

What this does not cover: the kernel itself is shared; memory is limited per process, so that a program may use
`processes` times `memory` in all, and a kilobyte of the kernel's for each empty file that it can make in its time. For
a hostile crowd, use virtual machines behind the SandboxFusion protocol.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from poise.rewards.sandbox.base import Limits, Outcome, SandboxError
from poise.rewards.sandbox.process import watch
from poise.rewards.sandbox.syscalls import seccomp_filter

_PRELUDE = Path(__file__).with_name("prelude.py")
_INSTALL = "install it (Debian: apt-get install bubblewrap), or choose another sandbox by name: sandbox-fusion:URL"


class Bubblewrap:
    """Runs programs under `bwrap`.

    Args:
        python: interpreter inside the sandbox; the one that runs this code if None. Its standard library is all that
            programs can import, unless `readable` adds more.
        readable: further folders that programs may read, at the same place as outside.

    Raises:
        SandboxError: bubblewrap is missing, or does not work for this user on this machine.
    """

    def __init__(self, python: str | None = None, readable: Sequence[str] = ()) -> None:
        found = shutil.which("bwrap")
        if found is None:
            raise SandboxError(f"bubblewrap (bwrap) is not installed; {_INSTALL}")
        self.bwrap = found
        self.python = os.path.realpath(python or sys.executable)
        self.readable = tuple(readable)
        _probe(self)

    def run(
        self, program: str, *, files: Mapping[str, str] | None = None, stdin: str = "", limits: Limits | None = None
    ) -> Outcome:
        """Runs a Python program; see `Sandbox.run`. Further files lie in /sandbox."""
        limits = limits or Limits()
        texts = {"prelude.py": _PRELUDE.read_text(), "main.py": program, **(files or {})}
        refusals = seccomp_filter()
        with _in_memory(texts) as handed, _in_memory({"filter": refusals} if refusals else {}) as calls:

            def command(ready: int) -> tuple[list[str], list[int]]:
                filtered = [word for descriptor in calls.values() for word in ("--seccomp", str(descriptor))]
                line = self._command(handed, ready, limits)
                return [line[0], *filtered, *line[1:]], [*handed.values(), *calls.values()]

            return watch(command, stdin, limits)

    def _command(self, handed: Mapping[str, int], ready: int, limits: Limits) -> list[str]:
        root = os.geteuid() == 0
        line = [self.bwrap, "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
        line += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        # A root caller keeps the right to change user until the prelude has used it; the change takes it away.
        line += ["--cap-drop", "ALL"]
        line += (
            ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else ["--unshare-user", "--disable-userns"]
        )
        folders = self._folders()
        for parent in sorted({str(parent) for folder in folders for parent in Path(folder).parents} - {"/"}):
            line += ["--perms", "0755", "--dir", parent]  # else only root could pass through them
        for folder in folders:
            line += ["--ro-bind", folder, folder]
        for link in ("bin", "lib", "lib64"):
            line += ["--symlink", f"usr/{link}", f"/{link}"] if Path(f"/{link}").is_symlink() else []
        line += ["--proc", "/proc", "--dev", "/dev", "--dir", "/sandbox"]
        line += [
            "--perms",
            "1777",
            "--size",
            str(4 * limits.file),
            "--tmpfs",
            "/tmp",
            "--perms",
            "0755",
            "--dir",
            "/run",
        ]
        for name, descriptor in handed.items():
            line += ["--perms", "0444", "--ro-bind-data", str(descriptor), f"/sandbox/{name}"]
        line += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
        line += ["--setenv", "OMP_NUM_THREADS", "1", "--setenv", "OPENBLAS_NUM_THREADS", "1"]
        settings = {
            **asdict(limits),
            # An id of its own, so that one program's processes are not counted against another's limit.
            "user": random.SystemRandom().randrange(200_000, 2_000_000) if root else 0,
            "folder": "/tmp",
            "ready": ready,
            "program": "/sandbox/main.py",
        }
        # A caller's own user could fill /dev and /dev/shm, whose size nothing limits; the devices stay writable.
        line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
        line += ["--", self.python, "-I", "/sandbox/prelude.py"]
        return [*line, json.dumps(settings)]

    def _folders(self) -> list[str]:
        prefix = str(Path(self.python).parent.parent)
        folders = ["/usr", *(f"/{name}" for name in ("bin", "lib", "lib64") if _is_folder(f"/{name}"))]
        folders += ["/etc/ld.so.cache"] if Path("/etc/ld.so.cache").is_file() else []
        folders += [] if prefix.startswith("/usr") else [prefix]
        return [*folders, *self.readable]


def _is_folder(path: str) -> bool:
    return Path(path).is_dir() and not Path(path).is_symlink()


@contextmanager
def _in_memory(texts: Mapping[str, str | bytes]) -> Iterator[dict[str, int]]:
    """Files that exist in memory only, as descriptors to hand over."""
    handed: dict[str, int] = {}
    try:
        for name, text in texts.items():
            handed[name] = os.memfd_create(name.replace("/", "_"))
            with os.fdopen(os.dup(handed[name]), "wb") as file:
                file.write(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
            os.lseek(handed[name], 0, os.SEEK_SET)
        yield handed
    finally:
        for descriptor in handed.values():
            os.close(descriptor)


@lru_cache(maxsize=8)
def _probed(bwrap: str, python: str, readable: tuple[str, ...], user: int) -> str:
    sandbox = object.__new__(Bubblewrap)
    sandbox.bwrap, sandbox.python, sandbox.readable = bwrap, python, readable
    try:
        outcome = sandbox.run("print('inside')")
    except SandboxError as error:
        return str(error)
    return "" if outcome.stdout == "inside\n" else f"a test program failed: {outcome.status}, {outcome.stderr.strip()}"


def _probe(sandbox: Bubblewrap) -> None:
    trouble = _probed(sandbox.bwrap, sandbox.python, sandbox.readable, os.geteuid())
    if trouble:
        raise SandboxError(
            f"bubblewrap does not work here ({trouble}); allow user namespaces for this user, or choose another "
            "sandbox by name: sandbox-fusion:URL"
        )
