"""Public files by HTTP, and files of a Debian package without root, both with limited waiting.

Only progress counts: a slow connection may take its time, a dead one is abandoned after `patience` seconds.
"""

import io
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath

from pinas_zoo.weights.fetch import Policy, TransferError, from_url

__all__ = ['FetchError', 'fetch_package_files', 'fetch_urls']

#: Bytes that count as progress: a server that sends one byte per minute is useless.
STEP = 1 << 16
#: Hooks of the machine's apt (clean-ups, desktop notices) must not run for a download into our own folder.
APT_CONFIGURATION = ''.join(
    f'#clear APT::Update::{hook};\n' for hook in ('Pre-Invoke', 'Post-Invoke', 'Post-Invoke-Success')
)


class FetchError(RuntimeError):
    """A source did not give the files; the message says why in one line."""


class _Watch:
    """Whether a folder still grows.

    Args:
        folder: Folder that receives the files.
        patience: Seconds without progress after which it counts as stalled.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder, self.patience = folder, patience
        self.size, self.moved = self._size(), time.monotonic()

    def _size(self) -> int:
        total = 0
        for folder, _, files in os.walk(self.folder):
            for file in files:
                try:
                    total += os.stat(os.path.join(folder, file), follow_symlinks=False).st_size
                except FileNotFoundError:  # renamed meanwhile
                    continue
        return total

    def wait(self, running: Callable[[], bool]) -> None:
        """Returns as soon as nothing runs any more.

        Raises:
            FetchError: It still runs, without progress.
        """
        while running():
            time.sleep(0.05)
            now, size = time.monotonic(), self._size()
            if abs(size - self.size) >= STEP:  # apt replaces a packed list by its unpacked form
                self.size, self.moved = size, now
            elif now - self.moved > self.patience:
                raise FetchError(f'gave up after {self.patience:g} s without progress')


# ---- HTTP -----------------------------------------------------------------------------------------------------------


def fetch_urls(urls: Sequence[str], folder: Path, patience: float) -> None:
    """Download files; each is named by the last part of its URL.

    Args:
        urls: http or https URLs.
        folder: Folder to write to; nothing else may write there.
        patience: Seconds without progress.

    Raises:
        FetchError: One could not be obtained.
    """
    faults: list[Exception] = []
    policy = Policy(attempts=2, timeout=2 * patience)  # the watch is faster; this ends an abandoned thread

    def run() -> None:
        try:
            for url in urls:
                from_url(url, folder / url.rsplit('/', 1)[-1], None, policy)
        except Exception as error:  # must reach the waiting thread, whatever it is
            faults.append(error)

    # In a thread that can be abandoned, since no time-out bounds a name look-up.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _Watch(folder, patience).wait(thread.is_alive)
    for fault in faults:
        if not isinstance(fault, (TransferError, OSError)):
            raise fault
        raise FetchError(str(fault)) from fault


# ---- apt ------------------------------------------------------------------------------------------------------------


def fetch_package_files(package: str, names: Collection[str], folder: Path, patience: float) -> None:
    """Extract files from a package of the machine's distribution; nothing is installed and no root is needed.

    The machine's package lists are used if they know the package, otherwise new ones are downloaded into our own
    folder. The machine's sources and keys are used as configured.

    Args:
        package: Its name.
        names: File names, unique in the package.
        folder: Folder to write to; nothing else may write there.
        patience: Seconds without progress.

    Raises:
        FetchError: The files could not be obtained.
    """
    if shutil.which('apt-get') is None:
        raise FetchError('no apt-get on this machine')
    work = folder / 'apt'
    for part in ('lists/partial', 'cache/archives/partial', 'package'):
        (work / part).mkdir(parents=True)
    (work / 'apt.conf').write_text(APT_CONFIGURATION)
    watch, own_lists = _Watch(work, patience), [f'Dir::State::Lists={work / "lists"}']
    if _apt(work, watch, ['download', package]) is not None:
        updated = _apt(work, watch, ['update'], own_lists)  # one unreachable source among several does not matter
        if (failed := _apt(work, watch, ['download', package], own_lists)) is not None:
            raise FetchError(failed if updated is None else f'{failed} (apt-get update: {updated})')
    packages = sorted((work / 'package').glob('*.deb'))
    if not packages:
        raise FetchError(f'apt-get download did not produce a file of {package}')
    _unpack(packages[0], names, folder)
    shutil.rmtree(work)


def _apt(work: Path, watch: _Watch, command: list[str], settings: Sequence[str] = ()) -> str | None:
    """Run apt-get with our own folders; returns the reason of a failure, else None."""
    # As root, apt would leave the download to a user that cannot write here.
    private = [f'Dir::Cache={work / "cache"}', 'APT::Sandbox::User=root', 'Acquire::Languages=none']
    waiting = [f'Acquire::{kind}::Timeout={max(1, int(watch.patience / 2))}' for kind in ('http', 'https')]
    options = [x for setting in (*private, *waiting, 'Acquire::Retries=1', *settings) for x in ('-o', setting)]
    log = work / f'{command[0]}.log'
    with log.open('w') as output:
        process = subprocess.Popen(
            ['apt-get', '-q', '-c', str(work / 'apt.conf'), *options, *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=work / 'package',
            env={**os.environ, 'LC_ALL': 'C'}, start_new_session=True,
        )  # fmt: skip
        try:
            watch.wait(lambda: process.poll() is None)
        finally:
            if process.poll() is None:  # including its helpers
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return None if process.returncode == 0 else _reason(log, process.returncode)


def _reason(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(('E:', 'Err:'))] or lines
    return errors[-1][:200] if errors else f'exit status {code}'


def _unpack(package: Path, names: Collection[str], folder: Path) -> None:
    """Write the named files of a .deb into the folder; its other members are ignored."""
    try:
        if shutil.which('dpkg-deb'):
            command = ['dpkg-deb', '--fsys-tarfile', str(package)]
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
                tarfile.open(fileobj=process.stdout, mode='r|') as archive,
            ):
                _take(archive, names, folder)
        else:
            with tarfile.open(fileobj=io.BytesIO(_data_member(package))) as archive:
                _take(archive, names, folder)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise FetchError(f'{package.name} cannot be unpacked: {error}') from error


def _take(archive: tarfile.TarFile, names: Collection[str], folder: Path) -> None:
    for member in archive:
        name = PurePosixPath(member.name).name
        if name in names and (content := archive.extractfile(member)) is not None:
            with content, (folder / name).open('wb') as file:
                shutil.copyfileobj(content, file)


def _data_member(package: Path) -> bytes:
    """The data.tar of a .deb, which is an ar archive with three members."""
    with package.open('rb') as file:
        if file.read(8) != b'!<arch>\n':
            raise ValueError('it is not an ar archive')
        while len(header := file.read(60)) == 60:
            size = int(header[48:58])
            if header.startswith(b'data.tar'):
                return file.read(size)
            file.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError('it has no data.tar')
