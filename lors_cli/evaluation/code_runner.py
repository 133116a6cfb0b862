"""What `code_execution` starts as a Python of its own: runs one program under limits.

Standard input holds the request as JSON: the program, the limits and a token. The descriptor named on the command line
gets READY once the limits stand, and the token once the program has run to its end: a program that stops before its
tests, however it does, does not get that far.
"""

import _posixsubprocess
import _thread
import json
import os
import resource
import sys
from types import ModuleType
from typing import Any

READY = b"+"
OPEN_FILES = 64
FILE_BYTES = 2**24
# Auditing events (https://docs.python.org/3/library/audit_events.html) that no program of a benchmark needs.
REFUSED = (
    *("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.spawn", "os.system", "pty.", "ctypes."),
    *("os.kill", "signal.pthread_kill"),
)
CHANGES_A_PATH = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.chflags", "shutil.rmtree"),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Let the system end what takes too much; the hard limits cannot be raised again."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,  # no further process; root is not held by it, but by `refuse` and `impossible`
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: no network, no processes, no changes outside of the working directory."""
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is not for programs under test")
    if event == "open" and arguments[2] & WRITES:
        paths = arguments[:1]
    elif event in CHANGES_A_PATH:
        paths = arguments
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes) and not realpath(os.fsdecode(path)).startswith(inside):
            raise PermissionError(f"{event} outside of the working directory")


def impossible(*_arguments: object, **_options: object) -> None:
    """Stands for what starts something."""
    raise PermissionError("nothing may be started by programs under test")


if __name__ == "__main__":
    request, out = json.load(sys.stdin), int(sys.argv[1])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing to be read there again
    sys.path.pop(0)  # the folder of this file
    realpath, inside, write = os.path.realpath, os.path.realpath(os.getcwd()) + os.sep, os.write
    for owner, name in ((_thread, "start_new_thread"), (_posixsubprocess, "fork_exec")):
        setattr(owner, name, impossible)  # they do not raise an audit event
    limit(request["cpu_seconds"], request["memory_bytes"])
    module = sys.modules["candidate"] = ModuleType("candidate")
    sys.addaudithook(refuse)
    write(out, READY)
    exec(request["program"], module.__dict__)  # noqa: S102 - what this file is for
    write(out, request["token"].encode())
