"""What `code_execution` starts as a Python of its own: runs one program under limits.

Standard input holds a line with seconds, bytes and a token, and then the program. The descriptor named on the command
line gets READY once the limits stand, and the token once the program has run to its end: a program that stops before
its tests, however it does, does not get that far. This file imports little, so that it starts soon.
"""

import _posixsubprocess
import _thread
import os
import resource
import sys
from types import ModuleType

READY = b"+"
OPEN_FILES = 64
FILE_BYTES = 2**24
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


def refuse(event: str, arguments: tuple) -> None:  # type: ignore[type-arg]  # `typing` takes long
    """An audit hook: no network, no processes, no changes outside of the working directory.

    A program can change the variables of this module, the defaults of its functions and `builtins`, but not the
    constants of a code; so those hold what keeps it from the rest of its process. They name the events of
    https://docs.python.org/3/library/audit_events.html that no program of a benchmark needs.
    """
    processes = ("subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.spawn", "os.system", "os.kill", "pty.")
    memory = ("ctypes.", "gc.get_", "cpython.PyInterpreterState_New")  # of which the last has no hook
    if event.startswith(("socket.", "signal.pthread_kill")) or event.startswith(processes) or event.startswith(memory):
        raise PermissionError(f"{event} is not for programs under test")
    if event == "object.__setattr__" and arguments[1] == "__code__" and arguments[0].__code__.co_name == "refuse":
        raise PermissionError("this function is not for programs under test")
    if event == "import":
        # `join` copies what a subclass of str holds; a compiled module is found by the last part of its name alone
        name = "".join((arguments[0], "")).rpartition(".")[2]
        if name.startswith(("_ctypes", "_test", "_xx", "_interp")):
            raise PermissionError(f"{name} is not for programs under test")
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


def forbid() -> None:
    """Let Python itself refuse what no program of a benchmark needs."""
    for owner, name in ((_thread, "start_new_thread"), (_posixsubprocess, "fork_exec")):
        setattr(owner, name, impossible)  # they do not raise an audit event
    sys.addaudithook(refuse)


if __name__ == "__main__":
    out = int(sys.argv[1])
    with open(0, "rb", closefd=False) as file:  # not `sys.stdin`, which keeps what it has read
        *limits, token = file.readline().split()
        program, tokens = file.read().decode(errors="surrogatepass"), [token]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing to be read there again
    realpath, inside, write = os.path.realpath, os.path.realpath(os.getcwd()) + os.sep, os.write
    limit(*map(int, limits))
    module = sys.modules["candidate"] = ModuleType("candidate")
    del token
    forbid()
    write(out, READY)
    # While the program runs, the token has no name: it waits where the interpreter keeps what it is about to pass on.
    write(out, (tokens.pop(), exec(program, module.__dict__))[0])  # type: ignore[func-returns-value]  # noqa: S102 - what this file is for
