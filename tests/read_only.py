"""A directory that nobody can write to, root neither: bound over itself, read-only, in a namespace of its own."""

import ctypes
import os
import traceback
from collections.abc import Callable
from pathlib import Path

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18


def within(directory: Path, do: Callable[[], None]) -> str | None:
    """Call `do` in a child for which `directory` is read-only. What it raised, None if nothing.

    Raises:
        OSError: the system allows no namespaces.

    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "namespace"
        try:
            _bind(directory)
            said = ""
            do()
        except OSError as error:
            said = (said and f"namespace: {error}") or traceback.format_exc()
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(writing, said.encode()[-60_000:])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if said.startswith("namespace"):
        raise OSError(said)
    return said or None


def _bind(directory: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(directory)

    def call(status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), "no namespace")

    call(libc.unshare(NEW_MOUNTS if os.geteuid() == 0 else NEW_USER | NEW_MOUNTS))
    call(libc.mount(b"none", b"/", None, ctypes.c_ulong(RECURSIVE | PRIVATE), None))
    call(libc.mount(place, place, None, ctypes.c_ulong(BIND), None))
    call(libc.mount(place, place, None, ctypes.c_ulong(REMOUNT | BIND | READ_ONLY), None))
