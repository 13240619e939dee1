"""`python` for launch scripts that start ranks: every call is a fork of a process that has imported the packages.

python fork_ranks.py SOCKET                  serves
FORK_SOCKET=... FORK_OUTPUT=... CLIENT WORDS  runs `python WORDS` in a fork; CLIENT is the text below
"""

import json
import os
import runpy
import signal
import socket
import sys

from fork_server import PRELOADED, become

#: A program that costs no imports; what the fork prints is appended to $FORK_OUTPUT.
CLIENT = """
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ['FORK_SOCKET'])
call = dict(command=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd(), output=os.environ['FORK_OUTPUT'])
server.sendall(json.dumps(call).encode() + b'\\n')
status = int(server.makefile().readline())
sys.exit(status if status >= 0 else 128 - status)
"""


def serve(path: str) -> list[str]:
    """Forks for every call; returns in each fork."""
    for name in (*PRELOADED, 'mmseg.models'):
        __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            call = json.loads(connection.makefile().readline())
            pid = os.fork()
            if pid == 0:
                connection.close()
                return become(call)
            connection.sendall(b'%d\n' % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os._exit(0)
        connection.close()


if __name__ == '__main__':
    runpy.run_path(serve(sys.argv[1])[0], run_name='__main__')
