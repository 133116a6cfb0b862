"""What `code_execution` starts first where Linux has namespaces: makes a sandbox and starts a command inside.

Three processes follow each other. This one makes the namespaces (``namespaces(7)``). Its child, the first process in
them, makes a file system that holds nothing but what it was told to show, and gives up every right. *Its* child starts
the command, which is a Python without `ctypes`: whoever has that can read and change all of its process. When the
command has ended, the kernel ends whatever it left behind, together with the first process.

Arguments: a descriptor; paths to show, with a ``+`` in front, and to hide in them, with a ``-``; ``--``; the command.
The descriptor gets why there is no sandbox, or how the command ended; the command itself inherits it too.

Sources: the manual pages named here; numbers are those of Linux's include/uapi.
"""

import ctypes
import os
import sys
from struct import pack

KILLED, ENDED = b"k", b"e"  # how the command ended: by the system, which ran out of patience, or by itself
HOME = "/lors-program"  # in the sandbox
SIZE = "size=64m,nr_inodes=1024,mode=700"  # of all that may be written
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET, for unshare(2)
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXECUTION = 1, 2, 4, 8  # of mount(2), and the same for statvfs(3)
REMOUNT, BIND, RECURSIVE, PRIVATE = 32, 4096, 16384, 1 << 18
DETACH = 2  # of umount2(2)
DEATH_SIGNAL, DROP_BOUND, NO_NEW_RIGHTS = 1, 24, 38  # of prctl(2)
SET_FILTER, FILTER_KEEPS_SPEED = 1, 4  # of seccomp(2); without the latter, older kernels slow the process down
FIRST_SHARED = 424  # calls have the same number on every machine from here on
ALLOW, REFUSE, ABSENT, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # of seccomp(2): EPERM is 1, ENOSYS 38
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of BPF
SIGKILL, SIGXCPU = 9, 24  # of signal(7); the module takes longer to import than all the rest

# For each machine its number in <linux/audit.h> and those of system calls.
CALLS = {
    "x86_64": {"arch": 0xC000003E, "execve": 59, "prlimit64": 302, "seccomp": 317},
    "aarch64": {"arch": 0xC00000B7, "execve": 221, "prlimit64": 261, "seccomp": 277},
}
# What no program under test needs: the namespaces hold without, but much of the kernel is not to be reached at all.
# name: (x86_64, aarch64), None where there is no such call
REFUSED = {
    "clone": (56, 220),  # and with it threads
    "fork": (57, None),
    "vfork": (58, None),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "io_setup": (206, 0),
    "userfaultfd": (323, 282),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "name_to_handle_at": (303, 264),
    "syslog": (103, 116),
    "open_by_handle_at": (304, 265),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "acct": (163, 89),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
}

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call the C library's function `name`.

    Raises:
        OSError: it failed.

    """
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*wide) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: bytes, target: str, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    """Attach a file system at `target`, or change the one that is there."""
    call("mount", source, os.fsencode(target), kind, flags, options)


def column() -> int:
    """Which of the numbers of a call is this machine's."""
    return list(CALLS).index(os.uname().machine)


def unshare() -> None:
    """Leave the namespaces of everybody else, as nobody in particular, who has all rights in the new ones."""
    owners = {"uid_map": os.geteuid(), "gid_map": os.getegid()}
    call("unshare", NAMESPACES)
    for file, text in {"setgroups": "deny", **{name: f"65534 {own} 1" for name, own in owners.items()}}.items():
        with open(f"/proc/self/{file}", "w") as kernel:
            kernel.write(text)


def show(shown: list[str], hidden: list[str]) -> None:
    """Make a new root in the working directory, which shows these paths alone, all read-only, and an empty `HOME`."""
    sources = [(os.path.realpath(path), path) for path in (*shown, *DEVICES)]  # before they are out of sight
    mount(b"none", "/", None, RECURSIVE | PRIVATE)
    root = os.getcwd()
    mount(b"none", root, b"tmpfs", NO_SETUID | NO_DEVICES, b"size=1m,mode=755")
    os.chdir(root)
    for folder in ("old", "empty", HOME.strip("/")):
        os.mkdir(folder)
    call("syscall", REFUSED["pivot_root"][column()], b".", b"old")
    os.chdir("/")
    for source, target in [
        *((f"/old{source}", path) for source, path in sources),
        *(("/empty", path) for path in hidden),
    ]:
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT, 0o644))
        mount(os.fsencode(source), target, None, BIND | RECURSIVE)
    with open("/old/proc/self/mountinfo", "rb") as kernel:  # with spaces and the like as \\040
        mounted = [os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1")) for line in kernel]
    call("umount2", b"/old", DETACH)
    os.rmdir("old")
    for target in (path for path in mounted if not f"{path}/".startswith("/old/")):
        locked = os.statvfs(target).f_flag & (NO_DEVICES | NO_EXECUTION)  # not to be taken away
        mount(b"none", target, None, REMOUNT | BIND | READ_ONLY | NO_SETUID | locked)
    mount(b"none", HOME, b"tmpfs", NO_SETUID | NO_DEVICES | NO_EXECUTION, SIZE.encode())
    os.chdir(HOME)


def give_up() -> None:
    """Keep no right in these namespaces, and get none again; capabilities(7)."""
    for right in range(64):
        if libc.prctl(DROP_BOUND, ctypes.c_ulong(right), 0, 0, 0) != 0:
            break  # the kernel knows no more
    call("capset", pack("=Ii", 0x20080522, 0), bytes(24))
    call("prctl", NO_NEW_RIGHTS, 1, 0, 0, 0)


def filter_calls(path: int) -> None:
    """Refuse system calls from now on: those of `REFUSED`, all newer ones, and to start anything but the command.

    Args:
        path: address of the command's name, which nobody else knows, nor has something at.

    """
    own, mine = CALLS[os.uname().machine], column()
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, own["arch"]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(AT_LEAST, 0, 1, FIRST_SHARED), (RETURN, 0, 0, ABSENT)]
    for numbers in REFUSED.values():
        if (number := numbers[mine]) is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    for number, first in ((own["execve"], path), (own["prlimit64"], 0)):  # allowed with one first argument: 0 is itself
        low, high = (
            ((LOAD, 0, 0, 16), (EQUAL, 0, 3, first & 0xFFFFFFFF)),
            ((LOAD, 0, 0, 20), (EQUAL, 0, 1, first >> 32)),
        )
        steps += [(EQUAL, 0, 6, number), *low, *high, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    steps += [(RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(pack("=HBBI", step, *rest) for step, *rest in steps))
    program = pack("@HP", len(steps), ctypes.addressof(code))
    call("syscall", own["seccomp"], SET_FILTER, FILTER_KEEPS_SPEED, program)


def start(command: list[str]) -> None:
    """Become the command, which sees no variable of the environment but those that it needs."""
    path = ctypes.create_string_buffer(os.fsencode(command[0]))
    words = (ctypes.c_char_p * (len(command) + 1))(*map(os.fsencode, command), None)
    variables = [f"HOME={HOME}", f"TMPDIR={HOME}", "PYTHONHASHSEED=0"]
    environment = (ctypes.c_char_p * (len(variables) + 1))(*map(os.fsencode, variables), None)
    filter_calls(ctypes.addressof(path))
    call("execve", path, words, environment)


def wait(child: int) -> bool:
    """Wait for the end of a process: whether the system ended it."""
    while True:
        ended, status = os.wait()  # the first process in a namespace gets the orphans of all others
        if ended == child:
            return os.waitstatus_to_exitcode(status) in (-SIGKILL, -SIGXCPU)


if __name__ == "__main__":
    out, end = int(sys.argv[1]), sys.argv.index("--")
    paths = [(argument[0], argument[1:]) for argument in sys.argv[2:end]]
    try:
        unshare()
        call("prctl", DEATH_SIGNAL, SIGKILL, 0, 0, 0)
        if first := os.fork():
            os.close(out)
            wait(first)
            os._exit(0)
        call("prctl", DEATH_SIGNAL, SIGKILL, 0, 0, 0)
        show([path for sign, path in paths if sign == "+"], [path for sign, path in paths if sign == "-"])
        give_up()
        if command := os.fork():
            os.write(out, KILLED if wait(command) else ENDED)
        else:
            start(sys.argv[end + 1 :])
    except OSError as error:
        os.write(out, str(error).encode())
    os._exit(0)
