"""A headless Chromium, controlled over two pipes (Chrome DevTools Protocol): no driver, no websocket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


class Chromium:
    """One page; leaving the context ends the browser and its children."""

    def __init__(self, profile: Path) -> None:
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        quiet = ('gpu', 'background-networking', 'component-update', 'sync')
        command = [CHROMIUM, '--headless', '--no-sandbox', '--no-first-run', '--hide-scrollbars']
        command += [*(f'--disable-{name}' for name in quiet), f'--user-data-dir={profile}', '--remote-debugging-pipe']
        # Chromium reads its commands from descriptor 3 and answers on 4.
        shell = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self.process = subprocess.Popen(
            ['bash', '-c', shell, 'bash', *command],
            pass_fds=(read_there, write_there),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_there), os.close(write_there)
        self.reader, self.writer, self.number = os.fdopen(read_here, 'rb'), os.fdopen(write_here, 'wb'), 0
        self.rest, self.session = b'', None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.close(), self.writer.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result; events in between are dropped."""
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params}
        self.writer.write(json.dumps(message | ({'sessionId': self.session} if self.session else {})).encode() + b'\0')
        self.writer.flush()
        while True:
            while b'\0' not in self.rest:
                part = os.read(self.reader.fileno(), 65536)
                assert part, 'Chromium ended'
                self.rest += part
            text, _, self.rest = self.rest.partition(b'\0')
            answer = json.loads(text)
            if answer.get('id') == self.number:
                assert 'error' not in answer, answer
                return answer['result']

    def open(self, url: str, width: int, height: int = 900) -> None:
        """Opens a page in a window of this size in px."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call('Page.navigate', url=url)

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def wait_for(self, script: str, seconds: float = 120) -> Any:
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.value(script)):
            assert time.monotonic() < end, f'not in time: {script}; {self.value("document.body.innerText")}'
            time.sleep(0.1)
        return value
