"""The sandbox: what programs try that set out to leave it, most with `ctypes` and without the runner's own refusals."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lors_cli.errors import RequestError
from lors_cli.evaluation import code_execution, humaneval
from lors_cli.evaluation.code_execution import RUNNER, SANDBOX, Sandbox, Verdict, sandbox

ENCLOSED = sandbox()
needs_namespaces = pytest.mark.skipif(ENCLOSED.kind != "namespaces", reason=ENCLOSED.reason)

# Each ends without an error where it succeeds. OUTSIDE is a folder of the user with the file `secret`, PORT listens.
ESCAPES = {
    # what is outside
    "sqlite": "import sqlite3; sqlite3.connect(OUTSIDE + '/new').execute('create table t (x)')",
    "dir_fd": "os.open(OUTSIDE[1:] + '/new', os.O_CREAT | os.O_WRONLY, dir_fd=os.open('/', os.O_RDONLY))",
    "up": "os.open('../' * 20 + OUTSIDE[1:] + '/secret', os.O_RDONLY)",
    "unlink": "os.unlink(OUTSIDE + '/secret')",
    "rename": "os.rename(OUTSIDE + '/secret', 'here')",
    "read": "open(OUTSIDE + '/secret')",
    "link": "os.symlink(OUTSIDE, 'link'); open('link/secret')",
    "hard link": "os.link(os.__file__, 'here')",
    "password file": "open('/etc/passwd')",
    "user": "import pwd; pwd.getpwuid(os.getuid())",
    "home": "assert os.listdir(os.path.expanduser('~'))",
    "process files": "os.listdir('/proc')",
    "environment": "assert set(os.environ) - {'HOME', 'TMPDIR', 'PYTHONHASHSEED', 'LC_CTYPE'}",
    "memory of the parent": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "shared memory": "open('/dev/shm/new', 'w')",
    "temporary": "open('/tmp/new', 'w')",
    "root": "open('/new', 'w')",
    "devices": "open('/dev/new', 'w')",
    "terminal": "open('/dev/tty')",
    "modules": "open(os.__file__, 'a')",
    "cache of modules": "open(os.path.dirname(os.__file__) + '/__pycache__/os.new', 'w')",
    "rights of modules": "os.chmod(os.__file__, 0o777)",
    "times of modules": "os.utime(os.__file__)",
    "third party": "sys.path.append(os.path.dirname(os.__file__) + '/site-packages'); import pip",
    "host name": "import socket; socket.sethostname('mine')",
    # rights
    "fifo": "os.mkfifo('fifo')",
    "regular node": "os.mknod('node')",
    "device": "os.mknod('node', 0o20666, os.makedev(1, 1))",
    "other user": "os.setuid(0)",
    "change root": "os.mkdir('d'); os.chroot('d')",
    "mount": "fine(libc.mount(b'none', os.getcwdb(), b'tmpfs', 0, None))",
    "writable again": "fine(libc.mount(b'none', b'/', None, 32 | 4096, None))",
    "unmount": "fine(libc.umount2(os.getcwdb(), 2))",
    "namespace": "fine(libc.unshare(0x10000000))",
    "namespace by clone": "fine(libc.syscall(56 if X86 else 220, 0x10000011, 0, 0, 0, 0))",
    "capabilities": "fine(libc.capset(struct.pack('=Ii', 0x20080522, 0), b'\\xff' * 24))",
    "rights by files": "fine(libc.prctl(24, 0, 0, 0, 0))",
    "trace": "fine(libc.ptrace(16, os.getppid(), None, None))",
    "new calls": "fine(libc.syscall(425, 8, ctypes.create_string_buffer(200)))",
    "other calls": "fine(libc.syscall(0x40000000 + 39))",
    "keyring": "fine(libc.syscall(250 if X86 else 219, 0, -3, 1))",
    "bpf": "fine(libc.syscall(321 if X86 else 280, 0, bytes(128), 128))",
    # other processes
    "fork": "os.fork() or os._exit(0)",
    "vfork": "import subprocess; subprocess.Popen([sys.executable])",
    "program": "os.execv(sys.executable, ['python'])",
    "own program": "open('p', 'w').write('#!' + sys.executable); os.chmod('p', 0o700); os.execv('p', ['p'])",
    "thread": "import _thread; _thread.start_new_thread(print, ())",
    "parent's limits": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, 3))",
    "own limits": "import resource as r; r.setrlimit(r.RLIMIT_CPU, (r.RLIM_INFINITY,) * 2)",
    "parent's priority": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 10)",
    "user's priority": "os.setpriority(os.PRIO_USER, os.getuid(), 10)",
    "parent's processors": "os.sched_setaffinity(os.getppid(), {0})",
    "parent's scheduler": "os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
    # the network, and what else processes share
    "network": "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
    "new network": "import socket; socket.create_connection(('::1', PORT), 1)",
    "abstract": "import socket; socket.socket(socket.AF_UNIX).connect(ABSTRACT)",
    "pair": "import socket; socket.socketpair()",
    "shared segment": "fine(libc.shmget(1, 1 << 20, 0o1600))",
    "queue": "fine(libc.msgget(1, 0o1600))",
    "named queue": "fine(libc.mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o600, None))",
    "nameless file": "os.memfd_create('file')",
    # more than its share
    "bytes": """
for number in range(200):
    with open(str(number), 'wb') as file: file.write(bytes(1 << 24))
""",
    "files": """
for number in range(2000): os.close(os.open(str(number), os.O_CREAT))
""",
    "one large file": "os.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 25)",
    "shared pages": "import mmap; [mmap.mmap(-1, 1 << 27) for _ in range(9)]",
}
PRELUDE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
def fine(value): assert value != -1, os.strerror(ctypes.get_errno())
"""
TRIED = """{}
try: exec({!r})
except (NameError, SyntaxError, TypeError, AttributeError): pass  # a mistake in the test is no success of the sandbox
"""

HOOK = """
import os
try: os.fork()
except PermissionError as error: caught = error.__traceback__
while caught.tb_next: caught = caught.tb_next
frame = caught.tb_frame
function = frame.f_globals["refuse"]
"""

# A program that looks for what makes its verdict, and then ends before its tests.
FORGERIES = {
    "names": """
import os, sys
def look(value, seen, depth):
    if isinstance(value, (bytes, str)) and len(value) == 32:
        for descriptor in range(3, 64):
            try: os.write(descriptor, value if isinstance(value, bytes) else value.encode())
            except OSError: pass
    if id(value) in seen or depth == 0: return
    seen.add(id(value))
    parts = list(value.items()) if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    for part in (*parts, *(getattr(value, name, None) for name in INSIDE)): look(part, seen, depth - 1)
INSIDE = ("__dict__", "__closure__", "cell_contents", "__defaults__", "__kwdefaults__", "__self__", "f_back",
          "f_locals", "f_globals", "f_code", "co_consts", "gi_frame", "tb_frame")
look(sys._getframe(), set(), 12)
os._exit(0)
""",
    "input": "import os, sys; os.lseek(0, 0, 0); sys.stdin.seek(0); token = sys.stdin.readline().split()[2]",
    "garbage": "import gc; gc.get_objects()",
    "referents": "import gc, sys; gc.get_referents(sys._getframe(1))",
    "fresh garbage": "import _imp, importlib.util as i; _imp.create_builtin(i.find_spec('gc')).get_objects()",
    "hook": HOOK + "frame.f_globals.update(refuse=None); frame.f_locals.update(memory=()); import gc; gc.get_objects()",
    "ctypes": "import ctypes",
    "_ctypes": "import _ctypes",
    "_ctypes by another name": """
import glob, sys, importlib.util as i
class Name(str):
    def startswith(self, *_): return False
for name in ("other._ctypes", Name("_ctypes")):
    try: i.module_from_spec(i.spec_from_file_location(name, glob.glob(sys.path[-1] + "/_ctypes.*")[0])); break
    except PermissionError: pass
else: raise PermissionError
""",
    "an interpreter without the hook": """
import _xxsubinterpreters
_xxsubinterpreters.run_string(_xxsubinterpreters.create(), "import _ctypes")
""",
    "the hook's own": HOOK + "function.__kwdefaults__.update(refused=(), kept=()); import _ctypes",
    "the hook's code": HOOK + "function.__code__ = (lambda *_: None).__code__",
    "builtins": "import builtins as b, os; b.exec = b.PermissionError = os.write = print; raise SystemExit(0)",
    "at exit": "import atexit, os; atexit.register(os._exit, 0); raise SystemExit(0)",
    "excepthook": "import os, sys; sys.excepthook = lambda *_: os._exit(0); assert False",
    "assertions": "import builtins; builtins.AssertionError = ValueError; assert False",
    "trace": """
import sys
def jump(frame, event, _):
    if event == "line": frame.f_lineno += 1
    return jump
sys._getframe(1).f_trace = jump; sys.settrace(jump)
raise ValueError
""",
    "abort": "import os; os.abort()",
    "stack": "import sys; sys._getframe(1).f_globals.update(tokens=[b''], write=print, out=1); assert False",
}


@pytest.fixture
def permitted() -> Iterator[None]:
    with code_execution.permitted():
        yield


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs run with `ctypes` and nothing that the runner refuses, so that the sandbox stands alone."""
    whole = RUNNER.read_text()
    runner = tmp_path / "bare.py"
    runner.write_text(whole.replace("    forbid()\n", ""))
    assert runner.read_text() != whole
    monkeypatch.setattr(code_execution, "RUNNER", runner)
    sandbox.cache_clear()
    yield
    sandbox.cache_clear()


@needs_namespaces
@pytest.mark.usefixtures("permitted", "bare")
@pytest.mark.parametrize("escape", list(ESCAPES.values()), ids=list(ESCAPES))
def test_nothing_gets_out(tmp_path: Path, escape: str) -> None:
    outside = tmp_path / "user"
    outside.mkdir()
    (outside / "secret").write_text("canary")
    limits = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0lors-test-{os.getpid()}")
        abstract.listen()
        names = f"OUTSIDE, PORT, ABSTRACT = {str(outside)!r}, {server.getsockname()[1]}, {abstract.getsockname()!r}"
        assert code_execution.check(f"{PRELUDE}{names}") == Verdict.PASSED
        assert code_execution.check(TRIED.format(f"{PRELUDE}{names}", escape)) == Verdict.FAILED
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("secret", "canary")]
    assert limits == (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0))


@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize("kind", ["limits", pytest.param("namespaces", marks=needs_namespaces)])
@pytest.mark.parametrize("forgery", list(FORGERIES.values()), ids=list(FORGERIES))
def test_a_program_does_not_pass_by_its_own_word(monkeypatch: pytest.MonkeyPatch, kind: str, forgery: str) -> None:
    monkeypatch.setattr(code_execution, "sandbox", lambda: ENCLOSED if kind == "namespaces" else Sandbox("limits"))
    assert code_execution.check(forgery) == Verdict.FAILED


@pytest.mark.usefixtures("permitted", "bare")
@needs_namespaces
@pytest.mark.parametrize(
    "program",
    [
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import signal; signal.raise_signal(signal.SIGSTOP)",
        "import os; os.closerange(0, 64)\nwhile True: pass",
    ],
    ids=["ignored signal", "stopped", "closed"],
)
def test_what_takes_too_long_is_ended_with_all_processes(program: str) -> None:
    assert code_execution.check(program, timeout=1) == Verdict.LATE


@pytest.mark.usefixtures("permitted", "bare")
@needs_namespaces
def test_a_crash_and_killing_all_are_failures() -> None:
    assert code_execution.check(f"{PRELUDE}ctypes.string_at(0)") == Verdict.FAILED
    assert code_execution.check("import os; os.kill(-1, 9)\nos.kill(os.getppid(), 9)\nassert False") == Verdict.FAILED


def test_where_namespaces_are_refused_limits_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(SANDBOX.read_text().replace("NAMESPACES = 0x7E020000", "NAMESPACES = -1"))
    monkeypatch.setattr(code_execution, "SANDBOX", broken)
    sandbox.cache_clear()
    try:
        assert sandbox() == Sandbox("limits", sandbox().reason)
        assert "unshare: Invalid argument" in sandbox().reason
    finally:
        sandbox.cache_clear()


class Task:
    """What is asked of a task before it may run programs."""

    task_name = "programs"

    def __init__(self, function: object) -> None:
        self.config = SimpleNamespace(filter_list=[{"name": "none", "filter": [{"filter_fn": function}]}])


def test_a_sandbox_can_be_insisted_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ours, other = Task(humaneval.run_tests), Task(print)
    monkeypatch.setattr(code_execution, "sandbox", lambda: Sandbox("namespaces"))
    assert [humaneval.permit(ours, asked) for asked in ("sandboxed", True)] == ["namespaces"] * 2
    with pytest.raises(RequestError, match="its own code starts them"):
        humaneval.permit(other, "sandboxed")
    assert not caplog.messages
    assert humaneval.permit(other, True) == "none"
    monkeypatch.setattr(code_execution, "sandbox", lambda: Sandbox("limits", "unshare: no"))
    with pytest.raises(RequestError, match="unshare: no"):
        humaneval.permit(ours, "sandboxed")
    with pytest.raises(RequestError, match="expected: sandboxed or true"):
        humaneval.permit(ours, False)
    assert humaneval.permit(ours, True) == "limits"
    assert ["its own code" in message or "unshare: no" in message for message in caplog.messages] == [True, True]
