"""Downloads against a server on loopback that misbehaves; caches that are full, read-only, damaged, or shared."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest
import timm
import torch
from faulty_server import FaultyServer
from fork_server import python
from golden import filled, keys

from pinas_zoo.files import file_sha256
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.space import PINAS_NANO
from pinas_zoo.weights import download, hashes, manifest
from pinas_zoo.weights import fetch as transfer
from pinas_zoo.weights.download import DownloadError, fetch
from pinas_zoo.weights.fetch import Policy
from pinas_zoo.weights.load import read_weights
from pinas_zoo.weights.manifest import Entry, entries, find_entry
from tools.download import main

ROOT = Path(__file__).resolve().parents[1]
ARCH = '01-23-32-10'
QUICK = Policy(attempts=3, pause=0.01, timeout=1.0)
CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def row(**changes) -> dict:
    """A row of the manifest: plain bytes of a known hash from a URL."""
    values = dict(
        name='thing', model='pinas_nano', task='t', dataset='d', arch=ARCH, space='pinas_nano', num_classes=10,
        file='thing.bin', licence='l', sources=[{'url': 'http://127.0.0.1:9/thing.bin'}],
        size=len(CONTENT), sha256=SHA256,
    )  # fmt: skip
    return values | changes


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('PINAS_ZOO_HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('PINAS_ZOO_MIRROR', raising=False)
    monkeypatch.delenv('PINAS_OFFLINE', raising=False)
    monkeypatch.setattr(hashes, '_hashes', {})
    return tmp_path / 'home'


@pytest.fixture
def rows(tmp_path, monkeypatch, home):
    """Sets the manifest's rows."""

    def write(*rows: dict) -> None:
        path = tmp_path / f'manifest{len(list(tmp_path.iterdir()))}.json'
        path.write_text(json.dumps({'weights': rows}))
        monkeypatch.setattr(manifest, 'MANIFEST', path)

    return write


@pytest.fixture
def server(rows):
    with FaultyServer(CONTENT) as server:
        rows(row(sources=[{'url': f'{server.url}/thing.bin'}]))
        yield server


def nothing_partial(home: Path) -> bool:
    """Whether the file under its final name, if there is one, is complete."""
    final = home / 'thing.bin'
    return not final.exists() or final.read_bytes() == CONTENT


class TestServer:
    def test_well(self, server, home):
        path = fetch('thing', QUICK)
        assert path == home / 'thing.bin' and path.read_bytes() == CONTENT
        assert json.loads((home / 'thing.bin.json').read_text())['sha256'] == SHA256
        assert fetch('thing', QUICK) == path and len(server.requests) == 1
        left = sorted(p.name for p in home.iterdir())
        assert left == ['.thing.bin.lock', 'thing.bin', 'thing.bin.json']

    def test_dies_once(self, server, home):
        server.fault, server.times = 'dies', 1
        assert fetch('thing', QUICK).read_bytes() == CONTENT
        assert server.requests == [None, f'bytes={len(CONTENT) // 2}-']

    def test_dies_always_then_resumes_in_the_next_call(self, server, home):
        server.fault = 'dies'
        with pytest.raises(DownloadError, match='connection ended after'):
            fetch('thing', QUICK)
        assert len(server.requests) == 3 and nothing_partial(home) and not (home / 'thing.bin').exists()
        server.fault = None
        assert fetch('thing', QUICK).read_bytes() == CONTENT and server.requests[-1] is not None

    def test_ignores_range(self, server, home):
        server.fault, server.times = 'dies', 1
        original = server.answer

        def answer(handler):
            if server.requests:
                server.fault, server.times = 'no range', -1
            original(handler)

        server.answer = answer
        assert fetch('thing', QUICK).read_bytes() == CONTENT
        assert server.requests[1] is not None

    def test_answers_another_range(self, server, home):
        home.mkdir()
        (home / '.thing.bin.part').write_bytes(CONTENT[:1000])
        server.fault, server.times = 'odd range', 1
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    def test_part_that_is_no_beginning(self, server, home):
        home.mkdir()
        (home / '.thing.bin.part').write_bytes(bytes(2 * len(CONTENT)))
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    @pytest.mark.parametrize(('status', 'requests'), [(404, 1), (403, 1), (500, 3), (503, 3)])
    def test_status(self, server, home, status, requests):
        server.fault = status
        with pytest.raises(DownloadError, match=f'HTTP {status}') as error:
            fetch('thing', QUICK)
        assert len(server.requests) == requests
        assert str(home / 'thing.bin') in str(error.value) and 'By hand: take thing.bin' in str(error.value)

    def test_back_off(self, server, monkeypatch):
        server.fault, server.times, pauses = 503, 2, []
        monkeypatch.setattr(transfer.time, 'sleep', pauses.append)
        assert fetch('thing', dataclasses.replace(QUICK, pause=1.0)).read_bytes() == CONTENT
        assert pauses == [1.0, 2.0]

    def test_stalls(self, server):
        server.fault, server.times = 'stalls', 1
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    @pytest.mark.parametrize('fault', ['truncated', 'corrupted'])
    def test_bad_file(self, server, home, fault):
        server.fault = fault
        with pytest.raises(DownloadError, match='announces 128000 bytes' if fault == 'truncated' else 'sha256'):
            fetch('thing', QUICK)
        assert not (home / 'thing.bin').exists()
        assert len(server.requests) == (1 if fault == 'truncated' else 2)
        assert (home / 'thing.bin.bad').exists() == (fault == 'corrupted')

    def test_bad_once(self, server, home):
        server.fault, server.times = 'corrupted', 1
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    def test_no_server(self, rows, home):
        rows(row())
        start = time.monotonic()
        with pytest.raises(DownloadError, match='ConnectionRefusedError'):
            fetch('thing', QUICK)
        assert time.monotonic() - start < 2


class TestCache:
    def test_damaged_file_is_fetched_once_more(self, server, home, monkeypatch):
        fetch('thing', QUICK)
        (home / 'thing.bin').write_bytes(CONTENT[:-1] + b'x')
        assert fetch('thing', QUICK).read_bytes() == CONTENT
        assert (home / 'thing.bin.bad').exists() and len(server.requests) == 2

    def test_first_seen_hash_counts(self, server, rows, home):
        url = [{'url': f'{server.url}/thing.bin'}]
        rows(row(sources=url, sha256=None, size=None))
        fetch('thing', QUICK)
        (home / 'thing.bin').unlink()
        server.content = CONTENT[:-1] + b'x'
        with pytest.raises(DownloadError, match=f'expected {SHA256}'):
            fetch('thing', QUICK)
        assert not (home / 'thing.bin').exists()

    def test_full_disk(self, server, home, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(transfer.shutil, 'disk_usage', lambda folder: types.SimpleNamespace(free=1 << 20))
            with pytest.raises(DownloadError, match='too full: 1 MB free'):
                fetch('thing', QUICK)
        with monkeypatch.context() as patch:
            patch.setattr(transfer.os, 'fsync', lambda handle: (_ for _ in ()).throw(OSError(28, 'No space')))
            with pytest.raises(DownloadError, match='became full'):
                fetch('thing', QUICK)
        assert not (home / 'thing.bin').exists() and not (home / '.thing.bin.part').exists()
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    @pytest.mark.skipif(os.geteuid() != 0, reason='gives up the rights of root for a while')
    def test_read_only(self, server, monkeypatch):
        with tempfile.TemporaryDirectory() as folder:
            monkeypatch.setenv('PINAS_ZOO_HOME', folder)
            fetch('thing', QUICK)
            os.chmod(folder, 0o555)
            monkeypatch.setattr(hashes, '_hashes', {})
            os.seteuid(65534)
            try:
                assert fetch('thing', QUICK).read_bytes() == CONTENT  # what is there can be used
                monkeypatch.setenv('PINAS_ZOO_HOME', f'{folder}/more')
                with pytest.raises(DownloadError, match=r'cannot be written .* set \$PINAS_ZOO_HOME'):
                    fetch('thing', QUICK)
            finally:
                os.seteuid(0)

    def test_package_file(self, rows, home, tmp_path, monkeypatch):
        (tmp_path / 'thing.bin').write_bytes(CONTENT)
        monkeypatch.setattr(download, 'package_file', lambda name: tmp_path / name)
        rows(row(sources=[{'package': 'thing.bin'}]))
        assert fetch('thing') == tmp_path / 'thing.bin' and not home.exists()
        (tmp_path / 'thing.bin').write_bytes(b'x')
        with pytest.raises(DownloadError, match='is part of the package, is damaged'):
            fetch('thing')


class TestMirror:
    def test_folder(self, rows, home, tmp_path, monkeypatch):
        rows(row())
        monkeypatch.setenv('PINAS_ZOO_MIRROR', str(tmp_path / 'mirror'))
        with pytest.raises(DownloadError, match='does not exist'):
            fetch('thing', QUICK)
        (tmp_path / 'mirror').mkdir()
        (tmp_path / 'mirror' / 'thing.bin').write_bytes(CONTENT)
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    def test_address_is_tried_first_and_also_offline(self, server, home, monkeypatch):
        monkeypatch.setenv('PINAS_OFFLINE', '1')
        with pytest.raises(DownloadError, match=r'not asked, \$PINAS_OFFLINE is set'):
            fetch('thing', QUICK)
        with FaultyServer(CONTENT) as mirror:
            monkeypatch.setenv('PINAS_ZOO_MIRROR', f'{mirror.url}/folder/')
            assert fetch('thing', QUICK).read_bytes() == CONTENT
            assert len(mirror.requests) == 1 and not server.requests

    def test_other_schemes(self, rows, home):
        rows(row(sources=[{'url': 'file:///etc/hostname'}]))
        with pytest.raises(DownloadError, match='only http and https'):
            fetch('thing', QUICK)


class TestDrive:
    SOURCES = ({'drive_folder': 'F', 'file': 'thing.bin'},)

    def fake(self, monkeypatch, names=('a/thing.bin',), content=CONTENT):
        """A replacement for gdown with the calls that are used; the real one could not be run here."""
        gdown = types.ModuleType('gdown')
        gdown.download_folder = lambda id, skip_download, quiet: [
            types.SimpleNamespace(id=str(i), path=name) for i, name in enumerate(names)
        ]
        gdown.download = lambda id, output, quiet: Path(output).write_bytes(content)
        monkeypatch.setitem(sys.modules, 'gdown', gdown)

    def test_by_name(self, rows, home, monkeypatch):
        rows(row(sources=self.SOURCES))
        self.fake(monkeypatch, names=('b', 'a/thing.bin'))
        assert fetch('thing', QUICK).read_bytes() == CONTENT

    def test_faults(self, rows, home, monkeypatch):
        rows(row(sources=self.SOURCES))
        monkeypatch.setitem(sys.modules, 'gdown', None)
        with pytest.raises(DownloadError, match=r"pip install 'pinas-zoo\[download\]'"):
            fetch('thing', QUICK)
        self.fake(monkeypatch, names=('b',))
        with pytest.raises(DownloadError, match="does not list thing.bin, only \\['b'\\]"):
            fetch('thing', QUICK)
        self.fake(monkeypatch, content=b'<html>')
        with pytest.raises(DownloadError, match='6 bytes, the manifest states'):
            fetch('thing', QUICK)


def _fetch_in_process(path: Path, results) -> None:
    manifest.MANIFEST = path
    results.put(str(fetch('thing', QUICK)))


def _fetch_on_rank(rank: int, path: Path, store: str, results) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    manifest.MANIFEST = path
    try:
        results.put((rank, str(fetch('thing', QUICK))))
    except DownloadError as error:
        results.put((rank, f'error: {error}'))
    torch.distributed.destroy_process_group()


class TestProcesses:
    def run(self, target, arguments: list[tuple]) -> list:
        context = multiprocessing.get_context('fork')
        results = context.Queue()
        processes = [context.Process(target=target, args=(*args, results)) for args in arguments]
        for process in processes:
            process.start()
        out = [results.get(timeout=30) for _ in processes]
        for process in processes:
            process.join(10)
        return out

    def test_two_at_once(self, server, home):
        server.fault = 'slow'
        paths = self.run(_fetch_in_process, [(manifest.MANIFEST,)] * 2)
        assert paths == [str(home / 'thing.bin')] * 2 and len(server.requests) == 1

    @pytest.mark.processes
    @pytest.mark.parametrize('fault', [None, 404])
    def test_ranks(self, server, home, tmp_path, fault):
        server.fault = fault
        arguments = [(rank, manifest.MANIFEST, str(tmp_path / f'store{fault}')) for rank in (0, 1)]
        results = dict(self.run(_fetch_on_rank, arguments))
        if fault is None:
            assert set(results.values()) == {str(home / 'thing.bin')}
        else:
            assert all(text.startswith('error: on rank 0: ') and 'HTTP 404' in text for text in results.values())
        assert len(server.requests) == 1


# ---- released files and timm ----------------------------------------------------------------------------------------


@pytest.fixture
def released(rows, tmp_path, monkeypatch) -> Path:
    """A mirror with a small released classifier, and its row; returns the released file."""
    folder = tmp_path / 'mirror'
    folder.mkdir()
    net = PiNASNet(ARCH, PINAS_NANO, num_classes=10)
    torch.save({'state_dict': net.state_dict(), 'epoch': 3}, folder / 'nano.pth.tar')
    monkeypatch.setenv('PINAS_ZOO_MIRROR', str(folder))
    name = 'pinas_nano.untrained'  # a tag that timm knows
    rows(
        row(name=name, timm=True, file='nano.safetensors', size=None, sha256=None,
            released={'file': 'nano.pth.tar', 'kind': 'classifier'})
    )  # fmt: skip
    return folder / 'nano.pth.tar'


class TestReleased:
    NAME = 'pinas_nano.untrained'

    def test_is_converted_once(self, released, home):
        path = fetch(self.NAME)
        state, metadata = read_weights(path)
        assert metadata['arch'] == ARCH and metadata['source_sha256'] == file_sha256(released)
        assert torch.equal(state['fc.bias'], read_weights(released)[0]['fc.bias'])
        record = json.loads((home / 'released' / 'nano.pth.tar.json').read_text())
        assert record['sha256'] == file_sha256(released)
        released.unlink()
        assert fetch(self.NAME) == path
        path.write_bytes(b'x')  # converted anew from the cached released file
        assert read_weights(fetch(self.NAME))[1] == metadata

    def test_placed_by_hand(self, released, home, monkeypatch):
        monkeypatch.delenv('PINAS_ZOO_MIRROR')
        with pytest.raises(DownloadError, match='it is converted at the next use'):
            fetch(self.NAME, QUICK)
        released.rename(home / 'released' / released.name)
        assert fetch(self.NAME).name == 'nano.safetensors'

    @pytest.mark.parametrize('content', [b'<html>quota exceeded</html>', b''])
    def test_what_does_not_convert(self, released, home, content):
        released.write_bytes(content)
        with pytest.raises(DownloadError, match='was refused'):
            fetch(self.NAME, QUICK)
        assert not list(home.glob('*.safetensors')) and not (home / 'released' / 'nano.pth.tar').exists()
        torch.save(PiNASNet(ARCH, PINAS_NANO, num_classes=10).state_dict(), released)
        assert fetch(self.NAME).is_file()  # the refused file's hash does not count

    def test_timm(self, released):
        state = read_weights(released)[0]
        arguments = dict(arch=ARCH, pretrained=True)
        net = timm.create_model('pinas_nano', **arguments)
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
        features = timm.create_model('pinas_nano', features_only=True, **arguments)
        assert torch.equal(features.state_dict()['layer4.1.conv3.weight'], state['layer4.1.conv3.weight'])
        grey = timm.create_model('pinas_nano', in_chans=1, num_classes=3, **arguments)
        assert grey.conv1[0].weight.shape[1] == 1 and grey.fc.out_features == 3
        with pytest.raises(ValueError, match='do not fit architecture 00-00-00-00'):
            timm.create_model('pinas_nano', arch='00-00-00-00', pretrained=True, num_classes=3)
        with pytest.raises(ValueError, match='give only one of them'):
            timm.create_model('pinas_nano', checkpoint=released, **arguments)

    def test_scheme(self, released):
        net = timm.create_model('pinas_nano', checkpoint=f'pinas://{self.NAME}')
        assert torch.equal(net.fc.bias, read_weights(released)[0]['fc.bias'])


class TestTrust:
    """Files without a published hash: the log says so, the hash is recorded, and the user may pin one."""

    NAME = TestReleased.NAME

    def test_first_use_is_said_before_and_after(self, released, caplog):
        fetch(self.NAME)
        before, after = [record.getMessage() for record in caplog.records]
        assert 'no sha256 of nano.pth.tar is published' in before and 'PINAS_ZOO_SHA256' in before
        assert f'has sha256 {file_sha256(released)}' in after
        caplog.clear()
        fetch(self.NAME)
        assert not caplog.records

    @pytest.mark.parametrize('how', ['argument', 'environment', 'timm', 'scheme'])
    def test_pin(self, released, home, monkeypatch, caplog, how):
        def get(pin: str) -> None:
            if how == 'argument':
                fetch(self.NAME, QUICK, sha256=pin)
            elif how == 'environment':
                monkeypatch.setenv('PINAS_ZOO_SHA256', f'{self.NAME}={pin}')
                fetch(self.NAME, QUICK)
            elif how == 'timm':
                timm.create_model('pinas_nano', arch=ARCH, pretrained=True, pretrained_sha256=pin)
            else:
                timm.create_model('pinas_nano', checkpoint=f'pinas://{self.NAME}#sha256={pin}')

        with pytest.raises(DownloadError, match=f'sha256 {file_sha256(released)}, expected {"0" * 64}'):
            get('0' * 64)
        assert not list(home.glob('*.safetensors'))
        get(file_sha256(released).upper())
        assert (home / 'nano.safetensors').is_file()
        assert 'is published' not in caplog.text

    def test_pin_after_first_use(self, released, home):
        """A file that was trusted at first use is refused once the user pins another hash."""
        fetch(self.NAME)
        old = file_sha256(released)
        torch.save(PiNASNet(ARCH, PINAS_NANO, num_classes=10).state_dict(), released)
        new = file_sha256(released)
        assert fetch(self.NAME, sha256=old) == fetch(self.NAME)
        assert read_weights(fetch(self.NAME, sha256=new))[1]['source_sha256'] == new
        assert (home / 'released' / 'nano.pth.tar.bad').is_file()

    def test_faults(self, server, monkeypatch, capsys):
        with pytest.raises(ValueError, match='64 hexadecimal digits'):
            fetch('thing', sha256='abc')
        with pytest.raises(ValueError, match=f'the manifest has {SHA256}'):
            fetch('thing', sha256='0' * 64)
        with pytest.raises(ValueError, match='pretrained is False'):
            timm.create_model('pinas_nano', pretrained_sha256='0' * 64)
        with pytest.raises(ValueError, match='are loaded by timm'):
            timm.create_model(
                'pinas_nano', pretrained=True, pretrained_sha256=SHA256, pretrained_cfg_overlay=dict(file='x.bin')
            )
        assert main(['--all', '--sha256', SHA256]) == 2
        assert main(['thing', '--sha256', SHA256]) == 0
        monkeypatch.setenv('PINAS_ZOO_SHA256', 'thing')
        with pytest.raises(ValueError, match='must be NAME=HEX'):
            fetch('thing')


class TestManifest:
    def test_rows(self):
        assert {'pinas_a.in1k', 'pinas_b_mask-rcnn_coco', 'pinas_b_deeplabv3_ade20k'} <= set(entries())
        for entry in entries().values():
            assert entry.config is None or (ROOT / entry.config).is_file(), entry.config
            assert entry.released or (entry.sha256 and entry.size), f'{entry.name}: hash and size have to be known'
            for source in entry.sources:
                if 'package' in source:
                    path = ROOT / source['package']
                    assert (file_sha256(path), path.stat().st_size) == (entry.sha256, entry.size)

    def test_timm_rows(self):
        names = {entry.name for entry in entries().values() if entry.timm}
        assert set(timm.list_models('pinas*', pretrained=True)) == names
        for name in names:
            cfg, entry = timm.get_pretrained_cfg(name), find_entry(name)
            assert cfg.url and cfg.license == entry.licence and cfg.num_classes == entry.num_classes

    def test_rows_are_put(self, rows, tmp_path, monkeypatch):
        rows(row(), row(name='other', file='other.bin'))
        path = manifest.MANIFEST
        added = row(name='new', file='new.bin', arch=None)
        manifest.put_rows([added, row(licence='changed')], path, drop=['other'])
        assert list(entries()) == ['thing', 'new'] and find_entry('thing').licence == 'changed'
        assert find_entry('new').arch is None and not find_entry('new').own
        before = path.read_bytes()
        with pytest.raises(ValueError, match='sources must be one of'):
            manifest.put_rows([row(name='bad', sources=[])], path)
        assert path.read_bytes() == before

    def test_the_shipped_manifest_is_as_it_would_be_written(self):
        text = manifest.MANIFEST.read_text(encoding='utf-8')
        assert json.dumps({'weights': manifest.read_rows()}, indent=1) + '\n' == text

    def test_malformed(self):
        with pytest.raises(ValueError, match='sources must be one of'):
            Entry.from_dict(row(sources=[{'ftp': 'x'}]))
        with pytest.raises(ValueError, match='not an architecture'):
            Entry.from_dict(row(arch='9'))
        with pytest.raises(ValueError, match="'paper' or 'us'"):
            Entry.from_dict(row(results=[dict(dataset='d', protocol='p', reported_by='them', values={})]))
        with pytest.raises(ValueError, match="unknown weights 'x'"):
            find_entry('x')

    def test_never_random(self, home, monkeypatch):
        monkeypatch.setenv('PINAS_OFFLINE', '1')
        with pytest.raises(DownloadError, match=r'PiNAS_cls.pth.tar from https://\S+ and put it there'):
            timm.create_model('pinas_a', pretrained=True)
        for name in ('pinas_b', 'pinas', 'pinas_nano'):
            with pytest.raises(RuntimeError, match=f'{name} has no pretrained weights'):
                timm.create_model(name, pretrained=True)


class TestTables:
    def test_never_mix_and_agree(self, rows, tmp_path):
        from tools.dev.make_tables import check_weights, table, weights_table

        model = dict(
            Name='m', Config='c.py', Weights=None, Metadata=dict(Arch=ARCH, Space='pinas_nano'),
            Results=[{'Reported by': 'us', 'Dataset': 'd', 'Metrics': {'top-1': 90.0}}],
        )  # fmt: skip
        result = dict(dataset='d', protocol='p', reported_by='us', values={'top-1': 90.0})
        rows(row(config='c.py', results=[result]))
        check_weights(model)
        cells = weights_table().splitlines()[2].split(' | ')
        assert cells[4] == '-' and cells[5] == 'd (p): top-1 90.0'
        for change in ({'Weights': 'x.pth'}, {'Results': []}, {'Metadata': dict(Arch='0', Space='pinas_nano')}):
            with pytest.raises(ValueError, match=r'^m'):
                check_weights(model | change)
        check_weights(model | {'Weights': 'pinas://thing'})
        with pytest.raises(ValueError, match='reported by us'):
            rows(row(config='c.py', results=[result | dict(values={'top-1': 91.0})]))
            check_weights(model)
        assert table(tmp_path / 'manifest.json', tmp_path / 'README.md') == weights_table()


class TestTool:
    def test_list(self, home, capsys):
        assert main(['--list']) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in entries()) and str(home) in said

    def test_names(self, server, home, capsys):
        assert main(['thing']) == 0 and str(home / 'thing.bin') in capsys.readouterr().out
        assert main(['thing', 'other']) == 1 and "'other'" in capsys.readouterr().err
        assert main(['--all']) == 0

    def test_offline(self, home):
        settings = {**os.environ, 'PINAS_OFFLINE': '1', 'PINAS_ZOO_HOME': str(home)}
        command = [python(), 'tools/download.py', 'pinas_a.in1k']
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
        assert done.returncode == 1 and 'could not be obtained' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_pinas_a_from_a_mirror(home, tmp_path, monkeypatch):
    torch.save({'state_dict': filled(keys('cls_keys.json'))}, tmp_path / 'PiNAS_cls.pth.tar')
    monkeypatch.setenv('PINAS_ZOO_MIRROR', str(tmp_path))
    net = timm.create_model('pinas_a', pretrained=True)
    assert torch.equal(net.fc.bias, filled({'fc.bias': [1000]})['fc.bias'])
