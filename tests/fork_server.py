"""A `python` whose starts take no seconds: each is a fork of a process that has imported the packages already.

`python()` is the path of a program. It takes a script, `-m MODULE` or `-c CODE` with arguments, and behaves as the
interpreter does: its files, environment, folder, signals and exit status are those of the fork, and so are processes
that it spawns (multiprocessing). What is different: modules are imported, and all its starts have one hash seed. What
concerns the start of a process needs sys.executable.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import hashlib
import json
import multiprocessing.spawn
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remembered import remember

ROOT = Path(__file__).resolve().parents[1]
#: What a server imports; the first part belongs to other projects, so that it serves a copy of ours too.
OTHERS = (
    'torchvision', 'timm', 'torch.distributed.launcher.api', 'torch.utils.tensorboard', 'matplotlib.figure',
    'mmengine.runner', 'mmcv.transforms', 'pycocotools.coco', 'scipy.ndimage', 'sklearn.datasets', 'sklearn.ensemble',
    'sklearn.gaussian_process', 'sklearn.mixture', 'sklearn.svm', 'transformers.models.bert.modeling_bert',
)  # fmt: skip
OURS = ('pinas_zoo.mm.engine.loop', 'pinas_zoo.mm.engine.launch', 'mmdet.models', 'mmseg.models')
#: Names the folder of the servers that several workers share.
SHARED = 'PINAS_TEST_FORKS'

#: The interpreter, also where this is imported in a fork.
INTERPRETER = sys.orig_argv[0] if Path(sys.executable).read_bytes()[:2] == b'#!' else sys.executable

#: The program imports nothing that takes time. A signal goes on to the fork; its death is the fork's, and the reverse.
CLIENT = """#!{executable} -IS
import json, os, signal, socket, sys
words = sys.argv[1:]
if words[:1] == ['-B']:  # multiprocessing passes it on; in a fork, the server's start decides
    del words[0]
if words[1:] and words[1].startswith('from multiprocessing.resource_tracker'):  # small, and outlives its parent
    os.execv({executable!r}, [{executable!r}, *words])
def is_inherited(file):
    try:
        return os.get_inheritable(file)
    except OSError:  # that of the folder
        return False
files = [*filter(is_inherited, map(int, os.listdir('/proc/self/fd')))]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = dict(program=sys.argv[0], words=words, files=files, env=dict(os.environ), cwd=os.getcwd())
call = json.dumps(call).encode()
socket.send_fds(server, [b'%16d' % len(call)], files)
server.sendall(call)
answers = server.makefile()
pid = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if status != -9 else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def share() -> Callable[[], None]:
    """Processes that this one starts from now on share their servers, which end with this process.

    Returns:
        Ends the servers.
    """
    folder = tempfile.mkdtemp(prefix='python-')
    os.mkfifo(f'{folder}/alive')
    alive = os.open(f'{folder}/alive', os.O_RDWR)  # the stdin of all servers: its end is theirs
    os.environ[SHARED] = folder

    def end() -> None:
        del os.environ[SHARED]
        os.close(alive)
        shutil.rmtree(folder)

    return end


@functools.cache
def python(hash_seed: int = 1, ours: bool = True, log_imports: bool = False) -> str:
    """Starts a server that ends with this process, or with the one that called `share`; returns the program's path.

    Args:
        hash_seed: Of the server. Runs that are compared should have different ones, as two starts of Python have.
        ours: Import this project and what builds on it; False serves a copy of the project.
        log_imports: Forks log what they import to their stderr, as PYTHONPROFILEIMPORTTIME lets an interpreter do.
    """
    kind = [INTERPRETER, str(ROOT), hash_seed, ours, log_imports]
    if not os.environ.get(SHARED):
        folder = Path(tempfile.mkdtemp(prefix='python-'))
        server = _start(folder, subprocess.PIPE, hash_seed, ours, log_imports)
        atexit.register(_stop, server, folder)
        return str(folder / 'python')
    folder = Path(os.environ[SHARED], hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16])
    folder.mkdir(exist_ok=True)
    with open(folder / 'lock', 'w') as lock, open(folder.parent / 'alive', 'rb', buffering=0) as alive:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / 'socket').exists():
            _start(folder, alive, hash_seed, ours, log_imports)
    return str(folder / 'python')


@contextlib.contextmanager
def forked_spawns() -> Iterator[None]:
    """Processes that this one spawns (multiprocessing) are forks."""
    executable = multiprocessing.spawn.get_executable()
    multiprocessing.spawn.set_executable(python())
    try:
        yield
    finally:
        multiprocessing.spawn.set_executable(executable)


def _start(folder: Path, stdin: Any, hash_seed: int, ours: bool, log_imports: bool) -> subprocess.Popen:
    program, address = folder / 'python', str(folder / 'socket')
    program.write_text(CLIENT.format(executable=INTERPRETER, address=address))
    program.chmod(0o755)
    env = dict(os.environ, PYTHONHASHSEED=str(hash_seed), PYTHONPATH=str(ROOT) if ours else '', OMP_NUM_THREADS='1')
    command = [INTERPRETER, __file__, address, *OTHERS, *(OURS if ours else ())]
    errors = subprocess.DEVNULL if log_imports else None  # its own imports are of no interest
    env |= {'PYTHONPROFILEIMPORTTIME': '1'} if log_imports else {}
    # Its stdout would keep a pipe of its first user open.
    streams = dict(stdin=stdin, stdout=subprocess.DEVNULL, stderr=errors)
    server = subprocess.Popen(command, env=env, cwd='/', start_new_session=True, **streams)
    while not os.path.exists(address):
        if server.poll() is not None:
            raise RuntimeError(f'the server of forks ended with status {server.returncode}')
        time.sleep(0.02)
    return server


def _stop(server: subprocess.Popen, folder: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    shutil.rmtree(folder)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    length, files, _, _ = socket.recv_fds(connection, 16, 250)
    content = b''
    while len(content) < int(length):
        content += connection.recv(1 << 20)
    return json.loads(content), files


def _wait(pid: int, connection: socket.socket) -> None:
    """Tells the client the fork's process id and status; without a client the fork is killed."""
    ended = os.pidfd_open(pid)
    connection.sendall(b'%d\n' % pid)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError):  # what it left behind
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(b'%d\n' % status)


def _become(call: dict[str, Any], files: list[int], paths: list[str]) -> list[str]:
    """Makes a fork what a new process would be; returns the interpreter's arguments."""
    import numpy as np
    import torch

    above = max(100, 1 + max(call['files']))
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]  # none is in the place of another
    for file in files:
        os.close(file)
    for target, file in zip(call['files'], moved, strict=True):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(call['env'])
    os.chdir(call['cwd'])
    torch.set_num_threads(int(call['env'].get('OMP_NUM_THREADS', len(os.sched_getaffinity(0)))))
    np.random.seed()
    sys.executable = call['program']
    multiprocessing.spawn.set_executable(call['program'])
    if call['env'].get('PYTHONUNBUFFERED'):
        sys.stdout.reconfigure(write_through=True)
    sys.path[:] = [*filter(None, call['env'].get('PYTHONPATH', '').split(os.pathsep)), *paths]
    return call['words']


def serve(address: str, modules: list[str]) -> list[str]:
    """Answers calls until stdin ends; comes back in each fork, with the interpreter's arguments."""
    gc.disable()
    for name in modules:
        # Not every environment has the mm packages, or what an optional module of torch needs.
        with contextlib.suppress(ModuleNotFoundError):
            __import__(name)
    remember()
    gc.freeze()  # a fork's collections neither visit nor copy what it shares with the server
    gc.enable()
    paths = sys.path[1 + (str(ROOT) in sys.path) :]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{address}.new')
    listener.listen(64)
    os.rename(f'{address}.new', address)  # from here on it listens
    while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [])[0]) or listener in ready:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            call, files = _receive(connection)
            pid = os.fork()
            if pid == 0:
                connection.close()
                os.setsid()
                return _become(call, files, paths)
            for file in files:
                os.close(file)
            _wait(pid, connection)
            os._exit(0)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # their processor time then counts as this process's
                pass
    os._exit(0)


def run(words: list[str]) -> None:
    """Does what `python WORDS` does after its start."""
    if words[0] == '-u':
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    if words[0] == '-m':
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    elif words[0] == '-c':
        sys.argv = ['-c', *words[2:]]
        sys.path.insert(0, '')
        exec(compile(words[1], '<string>', 'exec'), {'__name__': '__main__', '__builtins__': __builtins__})
    elif words[0].startswith('-'):
        raise SystemExit(f'a fork does not know the option {words[0]}')
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name='__main__')


def end(status: Any) -> None:
    """Ends a fork as the interpreter ends, but for the destructors of libraries: those of gloo abort now and then."""
    if isinstance(status, str):
        print(status, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == '__main__':
    words, status = serve(sys.argv[1], sys.argv[2:]), None
    try:
        run(words)
    except SystemExit as error:
        status = error.code
    end(status)
