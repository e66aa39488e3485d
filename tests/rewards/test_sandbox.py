"""Sandboxes: what programs cannot reach, what they cannot use up, and that missing isolation is never passed over.

Every attack is bounded in count and in time, and runs inside the sandbox only.
"""

import base64
import struct
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from poise.errors import ConfigError
from poise.rewards.sandbox import Limits, SandboxError, open_sandbox
from poise.rewards.sandbox.bubblewrap import Bubblewrap
from poise.rewards.sandbox.syscalls import seccomp_filter

SMALL = Limits(cpu_seconds=1, wall_seconds=20.0, memory=256 << 20, processes=6, output=100_000, file=1 << 20)


@pytest.fixture
def sandbox(bubblewrap):
    return bubblewrap


def running(name):
    """Processes of this name on the whole machine; a fork inherits the name that its parent gave itself."""
    listed = subprocess.run(["ps", "axo", "comm"], capture_output=True, text=True, check=True).stdout
    return listed.split("\n").count(name)


class TestBubblewrap:
    def test_a_program_reads_its_input_and_its_files(self, sandbox):
        program = "import sys; print(sys.stdin.read().upper() + open('/sandbox/more.txt').read())"
        outcome = sandbox.run(program, stdin="héllo ", files={"more.txt": "wörld"})
        assert (outcome.status, outcome.exit_code, outcome.stdout) == ("finished", 0, "HÉLLO wörld\n")

    def test_large_input_and_a_program_that_ignores_it(self, sandbox):
        assert sandbox.run("import sys; print(len(sys.stdin.read()))", stdin="x" * 3_000_000).stdout == "3000000\n"
        assert sandbox.run("print('done')", stdin="x" * 3_000_000).stdout == "done\n"

    def test_exit_codes_and_complaints(self, sandbox):
        outcome = sandbox.run("import sys; sys.stderr.write('x' * 100_000 + 'oops'); sys.exit(3)")
        assert (outcome.status, outcome.exit_code) == ("finished", 3)
        assert outcome.stderr.endswith("oops")
        assert len(outcome.stderr) <= 1 << 14

    @pytest.mark.parametrize(
        "path", ["/work", "/home", "/etc/passwd", "/etc/shadow", "/root/.bashrc", "/var", "/proc/1/environ"]
    )
    def test_the_machines_files_are_not_there(self, sandbox, path):
        outcome = sandbox.run(
            f"import os; print(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())"
        )
        assert outcome.exit_code == 1
        assert outcome.stdout == ""

    def test_a_symlink_out_leads_nowhere(self, sandbox):
        program = """
import os
os.symlink("/etc/passwd", "/tmp/a"); os.symlink("/", "/tmp/b"); os.symlink("/proc/1/root/etc", "/tmp/c")
for path in ("/tmp/a", "/tmp/b/etc/passwd", "/tmp/c/passwd", "/tmp/../etc/passwd", "/proc/self/root/etc/passwd"):
    try:
        print("read", path, open(path).read())
    except OSError:
        print("nothing")
"""
        assert sandbox.run(program).stdout == "nothing\n" * 5

    @pytest.mark.parametrize(
        "path", ["/x", "/usr/x", "/sandbox/main.py", "/sandbox/x", sys.prefix + "/x", "/proc/sys/kernel/x"]
    )
    def test_only_its_own_tmp_can_be_written(self, sandbox, path):
        assert sandbox.run(f"open({path!r}, 'w').write('x')").exit_code == 1
        assert sandbox.run("open('/tmp/x', 'w').write('x')\nprint(open('/tmp/x').read())").stdout == "x\n"
        assert sandbox.run("import os; print(os.listdir('/tmp'))").stdout == "[]\n"

    @pytest.mark.parametrize("user", [0, 1000])
    def test_no_folder_of_devices_can_be_filled(self, sandbox, user, monkeypatch):
        """Of a caller that is not root they would be its own: such a caller takes the branch with a user namespace."""
        monkeypatch.setattr("poise.rewards.sandbox.bubblewrap.os.geteuid", lambda: user)
        program = """
for path in ("/dev/x", "/dev/shm/x", "/sandbox/x", "/x", "/run/x"):
    try:
        open(path, "w").write("x"); print(path, "was written")
    except OSError:
        pass
open("/dev/null", "w").write("x")
print("done", open("/tmp/x", "w").write("x"))
"""
        assert sandbox.run(program).stdout == "done 1\n"

    def test_there_is_no_network(self, sandbox):
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
            program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.server_port}), 2)"
            outcome = sandbox.run(program)
        assert outcome.exit_code == 1
        assert "Connection refused" in outcome.stderr or "unreachable" in outcome.stderr

    def test_it_is_not_root_and_has_no_rights(self, sandbox):
        program = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"].strip(), sorted(os.environ))
for attempt in (lambda: os.setuid(0), lambda: os.chroot("/tmp")):
    try:
        attempt(); print("went through")
    except OSError:
        print("refused")
"""
        lines = sandbox.run(program).stdout.splitlines()
        assert lines[0].startswith("0 0 1 ")
        assert not {"PWD_SECRET", "VIRTUAL_ENV", "PYTHONPATH"} & set(lines[0].split())
        assert lines[1:3] == ["refused", "refused"]

    def test_nothing_is_made_that_no_limit_bounds(self, sandbox):
        """Detached shared memory, namespaces with file systems of their own, a socket to the machine's host."""
        program = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def said(name, *arguments):
    made = getattr(libc, name)(*arguments)
    print(name, errno.errorcode[ctypes.get_errno()] if made == -1 else "went through")
said("shmget", 0, 100 << 20, 0o1600)
said("unshare", 0x10000000)
said("mount", b"none", b"/tmp", b"tmpfs", 0, None)
said("ptrace", 16, 1, 0, 0)
said("syscall", 435, 0, 0)
NEW_USER, CHILD = 0x10000000, 17
said("syscall", {"x86_64": 56, "aarch64": 220}[__import__("platform").machine()], NEW_USER | CHILD, 0, 0, 0, 0)
for family in (40, 16, 17):
    try:
        socket.socket(family, socket.SOCK_DGRAM); print(family, "went through")
    except OSError as error:
        print(family, errno.errorcode[error.errno])
print(len(socket.socketpair()), socket.socket(socket.AF_INET).family)
"""
        said = sandbox.run(program).stdout.splitlines()
        assert said == [
            "shmget EPERM",
            "unshare EPERM",
            "mount EPERM",
            "ptrace EPERM",
            "syscall ENOSYS",
            "syscall EPERM",
            "40 EPERM",
            "16 EPERM",
            "17 EPERM",
            "2 2",
        ]

    def test_ordinary_programs_do_without_them(self, sandbox):
        program = """
import subprocess, sys, threading, asyncio, tempfile
done = []
thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
out = subprocess.run([sys.executable, "-c", "print(2)"], capture_output=True, text=True).stdout
async def three(): return 3
with tempfile.TemporaryFile() as file: file.write(b"4")
print(done[0], int(out), asyncio.run(three()))
"""
        assert sandbox.run(program).stdout == "1 2 3\n"

    def test_limits_cannot_be_raised(self, sandbox):
        program = """
import resource
for name in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)); print("raised")
    except (ValueError, OSError):
        print("refused")
"""
        assert sandbox.run(program).stdout == "refused\n" * 4

    def test_our_descriptors_are_not_handed_in(self, sandbox):
        program = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])"
        assert sandbox.run(program).stdout == "[0, 1, 2]\n"

    def test_a_busy_loop_and_a_sleeper_time_out(self, sandbox):
        assert sandbox.run("while True: pass", limits=SMALL).status == "timeout"
        assert sandbox.run("import time; time.sleep(60)", limits=Limits(wall_seconds=0.7)).status == "timeout"
        stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
        assert sandbox.run(stubborn, limits=SMALL).exit_code != 0

    def test_endless_output_is_cut_off(self, sandbox):
        outcome = sandbox.run("while True: print('x' * 1000)", limits=SMALL)
        assert outcome.status == "output"
        assert len(outcome.stdout) == SMALL.output
        noisy = sandbox.run("import sys\nwhile True: sys.stderr.write('x' * 1000)", limits=SMALL)
        assert noisy.status == "timeout"
        assert len(noisy.stderr) <= 1 << 14

    def test_a_memory_bomb_meets_its_limit(self, sandbox):
        outcome = sandbox.run("x = bytearray(1 << 30)", limits=SMALL)
        assert (outcome.status, outcome.exit_code) == ("finished", 1)
        assert "MemoryError" in outcome.stderr
        growing = sandbox.run("x = []\nwhile True: x.append(bytearray(1 << 20))", limits=SMALL)
        assert "MemoryError" in growing.stderr

    def test_a_fork_bomb_meets_its_limit_and_leaves_nothing(self, sandbox):
        program = """
import os, time
open("/proc/self/comm", "w").write("forked-sleepers")
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(30); os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
        assert int(sandbox.run(program, limits=SMALL).stdout) < SMALL.processes
        spreading = """
import os
open("/proc/self/comm", "w").write("forked-loopers")
for _ in range(12):
    try:
        os.fork()
    except OSError:
        pass
while True: pass
"""
        assert sandbox.run(spreading, limits=SMALL).status == "timeout"
        time.sleep(0.5)
        assert running("forked-sleepers") == running("forked-loopers") == 0

    def test_files_are_limited_each_and_together(self, sandbox):
        assert sandbox.run("open('/tmp/x', 'wb').write(bytes(5 << 20))", limits=SMALL).exit_code != 0
        many = "for i in range(20): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))"
        assert "No space left" in sandbox.run(many, limits=SMALL).stderr

    def test_odd_text_passes_through(self, sandbox):
        assert sandbox.run("print(ascii(input()))", stdin="\u202e\u0000\ud7ff\n").stdout == "'\\u202e\\x00\\ud7ff'\n"
        assert "\ufffd" in sandbox.run("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')").stdout

    def test_a_sandbox_that_cannot_start_the_program_is_an_error_not_an_outcome(self, sandbox):
        broken = object.__new__(Bubblewrap)
        broken.bwrap, broken.python, broken.readable = sandbox.bwrap, sandbox.python, ("/no/such/folder",)
        with pytest.raises(SandboxError, match=r"never started.*no/such/folder"):
            broken.run("print(1)")
        with pytest.raises(SandboxError, match="does not work here"):
            Bubblewrap(readable=("/no/such/folder",))


def test_the_filter_of_both_machines_and_none_for_others():
    for machine in ("x86_64", "aarch64"):
        lines = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
        assert [line[3] for line in lines[-3:]] == [0x00050001, 0x00050026, 0x7FFF0000]
        ends = [place + 1 + max(yes, no) for place, (_, yes, no, _) in enumerate(lines[:-3])]
        assert max(ends) < len(lines), "every jump ends inside"
    assert seccomp_filter("vax") is None


def test_missing_bubblewrap_is_loud(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="not installed; install it"):
        open_sandbox()
    with pytest.raises(SandboxError, match="not installed"):
        open_sandbox("bubblewrap")


@pytest.mark.parametrize("name", ["unsafe", "local", "bubble", "", "UNSAFE-LOCAL", "none"])
def test_no_other_name_opens_a_sandbox(name):
    with pytest.raises(ConfigError, match="no sandbox is called"):
        open_sandbox(name)


def test_unsafe_local_works_and_warns():
    with pytest.warns(UserWarning, match="without isolation"):
        sandbox = open_sandbox("unsafe-local")
    assert sandbox.run("print(open('more.txt').read() + input())", stdin="b", files={"more.txt": "a"}).stdout == "ab\n"
    assert sandbox.run("while True: pass", limits=SMALL).status == "timeout"
    assert sandbox.run("import time; time.sleep(60)", limits=Limits(wall_seconds=1.5)).status == "timeout"
    assert "MemoryError" in sandbox.run("x = bytearray(1 << 30)", limits=SMALL).stderr


def test_impossible_limits():
    with pytest.raises(ConfigError, match="the limit memory must be positive, got 0"):
        Limits(memory=0)


class TestFusion:
    def test_outcomes(self, fusion):
        sandbox = open_sandbox(f"sandbox-fusion:{fusion.url}")
        outcome = sandbox.run("print(open('more.txt').read() + input())", stdin="b", files={"more.txt": "a"})
        assert (outcome.status, outcome.exit_code, outcome.stdout) == ("finished", 0, "ab\n")
        assert sandbox.run("raise SystemExit(3)").exit_code == 3
        assert sandbox.run("while True: pass", limits=Limits(wall_seconds=0.5)).status == "timeout"
        assert sandbox.run("print('x' * 200)", limits=Limits(output=100)).status == "output"
        path, question = fusion.seen[0]
        assert path == "/run_code"
        assert question["language"] == "python"
        assert question["files"] == {"more.txt": base64.b64encode(b"a").decode()}

    def test_a_busy_server_is_asked_again(self, fusion):
        fusion.scripted = [(503, {}), (429, {})]
        assert open_sandbox(f"sandbox-fusion:{fusion.url}").run("print(1)").stdout == "1\n"
        assert len(fusion.seen) == 3

    @pytest.mark.parametrize(
        ("scripted", "said"),
        [
            ([(500, {})] * 3, "does not answer: HTTP Error 500"),
            ([(422, {})], "does not answer: HTTP Error 422"),
            ([(200, {"status": "SandboxError", "message": "no runner", "run_result": None})], "no runner"),
            ([(200, {"status": "Success", "run_result": {"status": "Odd"}})], "unknown status 'Odd'"),
        ],
    )
    def test_a_server_in_trouble_is_an_error(self, fusion, scripted, said):
        fusion.scripted = list(scripted)
        with pytest.raises(SandboxError, match=said):
            open_sandbox(f"sandbox-fusion:{fusion.url}").run("print(1)")

    def test_no_server_is_an_error(self):
        with pytest.raises(SandboxError, match="does not answer"):
            open_sandbox("sandbox-fusion:http://127.0.0.1:9").run("print(1)")
        with pytest.raises(SandboxError, match="http:// or https://"):
            open_sandbox("sandbox-fusion:ftp://x")
