"""The fork server gives the same results as separate processes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from fork_server import ForkServer

pytestmark = pytest.mark.mm

SCRIPT = """
import json, os, signal, sys
seen = [sys.argv, sys.path[0], os.getcwd(), os.environ.get('A'), 'PATH' in os.environ, sys.path[1], __name__]
print(json.dumps(seen), flush=True)
if 'die' in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if 'sleep' in sys.argv:
    import time
    time.sleep(60)
print('error', file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def test_a_fork_is_as_a_process(tmp_path: Path) -> None:
    script, server = tmp_path / 'script.py', ForkServer()
    script.write_text(SCRIPT)
    for number, (words, status) in enumerate([(['0'], 0), (['3', 'b c'], 3), (['0', 'die'], -signal.SIGKILL)]):
        command, output = [str(script), *words], tmp_path / f'{number}.log'
        assert server.run(command, {'A': 'a b', 'PYTHONPATH': '/one:/two'}, tmp_path, output, timeout=600) == status
        first, *rest = output.read_text().splitlines()
        assert json.loads(first) == [command, str(tmp_path), str(tmp_path), 'a b', False, '/one', '__main__']
        assert rest == ([] if status < 0 else ['error'])
    with pytest.raises(subprocess.TimeoutExpired):
        server.run([str(script), '0', 'sleep'], dict(os.environ), tmp_path, tmp_path / 'slow.log', timeout=1)
    assert server.run([str(script), '4'], dict(os.environ), tmp_path, tmp_path / 'after.log', timeout=600) == 4
    server.process.stdin.close()
    assert server.process.wait(60) == 0
