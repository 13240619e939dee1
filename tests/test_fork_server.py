"""The program that forks behaves as the interpreter does."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fork_server import python

pytestmark = pytest.mark.mm

SCRIPT = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[:2], os.getcwd(), os.environ.get('A'), 'PATH' in os.environ, __name__]))
print('error', file=sys.stderr)
if 'die' in sys.argv:
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
sys.exit(int(sys.argv[1]))
"""


def start(program: str, *words: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([program, *words], capture_output=True, text=True, **options)


def test_a_fork_is_as_a_process(tmp_path: Path) -> None:
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code' / 'script.py').write_text(SCRIPT)
    for words in (
        ('code/script.py', '0'), ('code/script.py', '3', 'b c'), ('code/script.py', '0', 'die'),
        ('-u', '-m', 'script', '4'), ('-c', SCRIPT, '5'), ('-m', 'script', 'x'),
    ):  # fmt: skip
        options = dict(cwd=tmp_path, env={'A': 'a b', 'PYTHONPATH': str(tmp_path / 'code')})
        fork, process = (start(program, *words, **options) for program in (python(), sys.executable))
        assert (fork.returncode, fork.stdout) == (process.returncode, process.stdout), words
        assert fork.stderr.splitlines()[-1:] == process.stderr.splitlines()[-1:], words


def test_stdin_and_modules() -> None:
    code = 'import sys; print(sys.stdin.read(), "pinas_zoo.mm.engine.loop" in sys.modules, hash("a"))'
    outputs = [start(python(*kind), '-c', code, input='words').stdout.split() for kind in ((1,), (2,), (1, False))]
    assert [words[:2] for words in outputs] == [['words', 'True'], ['words', 'True'], ['words', 'False']]
    assert outputs[0][2] == outputs[2][2] != outputs[1][2]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_signals_reach_the_fork(number: signal.Signals, tmp_path: Path) -> None:
    """SIGKILL cannot be passed on: the fork ends since its client did."""
    code = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
open(sys.argv[1] + '.new', 'w').write(str(os.getpid()))
os.rename(sys.argv[1] + '.new', sys.argv[1])
time.sleep(60)
"""
    client = subprocess.Popen([python(), '-c', code, str(tmp_path / 'pid')])
    while not (tmp_path / 'pid').exists():
        time.sleep(0.01)
    client.send_signal(number)
    assert client.wait() == (7 if number == signal.SIGUSR1 else -number)
    fork = int((tmp_path / 'pid').read_text())
    while Path(f'/proc/{fork}').exists():
        time.sleep(0.01)


def test_inherited_files_keep_their_numbers(tmp_path: Path) -> None:
    """Also numbers that the fork's own files could have."""
    numbers = [*range(104, 110)]
    for number in numbers:
        with open(tmp_path / str(number), 'w+') as file:
            print(number, file=file, flush=True)
            os.dup2(file.fileno(), number)
    try:
        code = f'import os; print([int(os.pread(file, 9, 0)) for file in {numbers}])'
        done = start(python(), '-c', code, pass_fds=numbers)
    finally:
        for number in numbers:
            os.close(number)
    assert done.stdout == f'{numbers}\n', done.stderr


OWNER = """
import fork_server, os, subprocess, sys
fork_server.OTHERS = ()
if sys.argv[1] == 'shared':
    fork_server.share()
words = [sys.executable, '-c', 'import fork_server; fork_server.OTHERS = (); print(fork_server.python(3, False))']
calls = 2 if sys.argv[1] == 'shared' else 0
programs = [subprocess.check_output(words, text=True).strip() for _ in range(calls)] or [fork_server.python(3, False)]
programs.append(subprocess.check_output([programs[0], '-c', 'import os; print(os.getppid())'], text=True).strip())
print(*programs, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize('kind', ['own', 'shared'])
def test_the_server_ends_with_its_owner(kind: str) -> None:
    """Processes that share their servers get the same one, which outlives the process that started it."""
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent), PINAS_TEST_FORKS='')
    *programs, served = start(sys.executable, '-c', OWNER, kind, env=env).stdout.split()
    assert len(programs) == (2 if kind == 'shared' else 1) and len(set(programs)) == 1 and int(served) > 0
    while start(programs[0], '-c', 'pass').returncode == 0:
        time.sleep(0.05)
    folder = Path(programs[0]).parent
    shutil.rmtree(folder.parent if kind == 'shared' else folder)


ABSENT = """
import fork_server, subprocess
fork_server.OTHERS = ('absent', 'json.absent', 'colorsys')
print(subprocess.check_output([fork_server.python(3, False), '-c', 'import sys; print("colorsys" in sys.modules)']))
"""


def test_modules_that_an_environment_lacks_are_left_out() -> None:
    """One without the mm packages has torch.utils.tensorboard, but not the tensorboard that it imports."""
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent), PINAS_TEST_FORKS='')
    done = start(sys.executable, '-c', ABSENT, env=env)
    assert done.stdout == "b'True\\n'\n", done.stderr


SPAWNS = """
import multiprocessing, os, sys
def work(number):
    lock.release()
    return number**2, 'pinas_zoo.mm.engine.loop' in sys.modules, os.getpid()
def begin(given):
    global lock
    lock = given
if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    lock = context.Semaphore(0)
    with context.Pool(1, begin, (lock,)) as pool:
        found = pool.map(work, [2, 3])
    ours = os.getpid() in {row[2] for row in found}
    print([row[:2] for row in found], ours, lock.acquire() and lock.acquire(), os.read(int(sys.argv[1]), 9))
"""


def test_processes_that_it_spawns_and_files_that_it_inherits(tmp_path: Path) -> None:
    (tmp_path / 'script.py').write_text(SPAWNS)
    (tmp_path / 'file').write_text('inherited')
    with open(tmp_path / 'file') as file:
        done = start(python(), str(tmp_path / 'script.py'), str(file.fileno()), pass_fds=[file.fileno()])
    assert done.stdout == "[(4, True), (9, True)] False True b'inherited'\n", done.stderr


def test_imports_are_logged(tmp_path: Path) -> None:
    (tmp_path / 'new.py').write_text('import json.decoder')
    options = dict(env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    logged = start(python(1, False, True), '-c', 'import new', **options).stderr
    assert re.search(r'import time: .*\| +new$', logged, re.MULTILINE) and 'torch' not in logged
    assert start(python(), '-c', 'import new', **options).stderr == ''
