"""A server on loopback that serves files correctly, incorrectly, or not at all."""

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyServer:
    """Serves `content` at every path, or by the last part of the path.

    `fault` is what happens to the next `times` requests (-1: to all).

    Faults: an HTTP status as int; 'dies' (closes in the middle of the body), 'truncated' (a complete answer of half the
    bytes), 'corrupted' (right length, wrong bytes), 'no range' (ignores Range), 'odd range' (answers another range),
    'stalls' (sends half and then nothing), 'slow' (waits a moment before it answers well), 'stop' (answers 404
    once `release` is set).
    """

    def __init__(self, content: bytes | dict[str, bytes]):
        self.content, self.fault, self.times = content, None, -1
        self.requests: list[str | None] = []  # the Range header of each
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                with suppress(OSError):  # a client that went away
                    outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server.server_port}'

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get('Range')
        self.requests.append(wanted)
        fault = self.fault if self.times else None
        self.times -= self.times > 0
        handler.close_connection = True
        if isinstance(fault, int):
            handler.send_error(fault)
            return
        if fault == 'stop':
            self.release.wait(60)
            handler.send_error(404)
            return
        if fault == 'slow':
            time.sleep(0.3)
        body, start = self.content, 0
        if isinstance(body, dict):
            body = body[handler.path.rsplit('/', 1)[-1]]
        if fault == 'truncated':
            body = body[: len(body) // 2]
        elif fault == 'corrupted':
            body = bytes([body[0] ^ 1]) + body[1:]
        if wanted and fault != 'no range':
            start = int(wanted.removeprefix('bytes=').rstrip('-')) + (fault == 'odd range')
            if start >= len(body):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        else:
            handler.send_response(200)
        body = body[start:]
        handler.send_header('Content-Length', str(len(body)))
        handler.send_header('ETag', '"one"')
        handler.end_headers()
        if fault in ('dies', 'stalls'):
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            if fault == 'stalls':
                time.sleep(2)
            return
        handler.wfile.write(body)
