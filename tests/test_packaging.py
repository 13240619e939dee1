"""The package as installed: what an import loads, what a wheel contains, what set-up says when something is missing."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import timm
from PIL import Image
from project_copy import copy_project, run_in

import pinas_zoo
from pinas_zoo.files import file_sha256
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.space import PINAS_NANO
from pinas_zoo.weights.load import save_weights
from pinas_zoo.weights.manifest import put_rows

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'matplotlib', 'sklearn', 'scipy')
# What setup_env.sh may call before it has found Python and the compiler.
SYSTEM_TOOLS = (
    'awk',
    'bash',
    'cat',
    'cp',
    'cut',
    'df',
    'dirname',
    'du',
    'find',
    'flock',
    'grep',
    'head',
    'ls',
    'mkdir',
)
SYSTEM_TOOLS += ('mktemp', 'mv', 'paste', 'rm', 'sha256sum', 'sleep', 'sort', 'tee', 'touch', 'uname', 'xargs')
VERSION = '{}.{}'.format(*sys.version_info)
#: pip without its configuration and without an index
CLOSED = {'PIP_CONFIG_FILE': os.devnull, 'PIP_INDEX_URL': 'http://127.0.0.1:9', 'PIP_RETRIES': '0'}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


class TestImport:
    def test_loads_torch_and_timm_only(self):
        loaded = run_python(f'import sys, pinas_zoo; print([m for m in {HEAVY} if m in sys.modules])')
        assert loaded.strip() == '[]'

    def test_registers_the_models(self):
        assert {'pinas_a', 'pinas_b'} <= set(timm.list_models('pinas*'))


class TestVersion:
    def test_form(self):
        assert re.fullmatch(r'\d+\.\d+\.\d+([a-z0-9.+]*)', pinas_zoo.__version__)

    def test_equals_metadata(self):
        try:
            installed = metadata.version('pinas-zoo')
        except metadata.PackageNotFoundError:
            pytest.skip('pinas-zoo is imported from its folder, not installed')
        assert installed == pinas_zoo.__version__

    def test_equals_citation(self):
        citation = (ROOT / 'CITATION.cff').read_text()
        assert re.search(r'^version: (.+)$', citation, re.M).group(1) == pinas_zoo.__version__


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of the project, so that a build leaves nothing in the real one, with one small weight file more."""
    source = copy_project(tmp_path_factory.mktemp('source') / 'project')
    for folder in ('configs', 'checkpoints'):  # one file of each, whatever the project has by now
        (source / folder / 'probe.txt').write_text('probe')
    net = PiNASNet('01-23-32-10', PINAS_NANO, num_classes=10)
    file = source / 'checkpoints' / 'pinas_nano_probe.fmnist.safetensors'
    save_weights(file, net.state_dict(), {'arch': '01-23-32-10', 'space': json.dumps(PINAS_NANO.to_dict())})
    row = dict(
        name='pinas_nano_probe.fmnist', model='pinas_nano_probe', timm=True, task='t', dataset='d', arch='01-23-32-10',
        space='pinas_nano', num_classes=10, file=file.name, licence='l', size=file.stat().st_size,
        sha256=file_sha256(file), sources=[{'package': f'checkpoints/{file.name}'}],
    )  # fmt: skip
    put_rows([row], source / 'pinas_zoo' / 'weights' / 'manifest.json')
    return source


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    """The wheel that is built from `source`."""
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    subprocess.run([*command, '-w', out, source], check=True)
    (wheel,) = out.glob('pinas_zoo-*.whl')
    assert wheel.name.startswith(f'pinas_zoo-{pinas_zoo.__version__}-')
    return wheel


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory) -> Path:
    """A folder where the wheel is installed; its commands are in bin/."""
    site = tmp_path_factory.mktemp('installed') / 'site'
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', site, wheel]
    subprocess.run(command, check=True)
    return site


@pytest.fixture(scope='module')
def names(wheel) -> list[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


#: Runs where a connection fails at once, so that nothing can come from elsewhere.
INSTALLED = """
import socket
def refuse(*arguments, **options): raise AssertionError('the network was asked')
socket.socket.connect = socket.create_connection = refuse
import pinas_zoo, timm
from pinas_zoo.weights.manifest import MANIFEST, entries, package_file
assert 'site' in MANIFEST.parts, MANIFEST
own = [entry for entry in entries().values() if entry.own]
for entry in entries().values():
    assert entry.config is None or package_file(entry.config), entry.config
for entry in own:
    assert all(package_file(source['package']) for source in entry.sources), entry.name
    if entry.timm:
        net = timm.create_model(entry.name, pretrained=True)
        assert net.space.format(net.arch) == entry.arch and net.num_classes == entry.num_classes
print(sorted(entry.name for entry in own))
"""


@pytest.mark.slow
class TestWheel:
    def test_has_every_module(self, names):
        modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('pinas_*/**/*.py')}
        assert {name for name in modules if '/.mim/' not in name} <= set(names)

    @pytest.mark.parametrize('name', ['configs/probe.txt', 'checkpoints/probe.txt', 'tools/setup_env.sh'])
    def test_has_mim_folder(self, names, name):
        assert f'pinas_zoo/.mim/{name}' in names

    def test_has_nothing_else(self, names):
        tops = {name.split('/')[0] for name in names}
        assert tops == {'pinas_zoo', 'pinas_cli', f'pinas_zoo-{pinas_zoo.__version__}.dist-info'}

    def test_works_installed(self, site, tmp_path):
        """Outside the checkout and without network: manifest, configs, and every small weight by its timm name."""
        done = run_in(tmp_path, '-c', INSTALLED, forked=True, PYTHONPATH=str(site))
        assert "'pinas_nano_probe.fmnist'" in done.stdout, done.stderr

    @pytest.mark.mm
    def test_pinas_infer_in_an_empty_folder(self, site, tmp_path):
        """The installed command draws with a detector that came in the wheel, whose config it finds there too."""
        pytest.importorskip('mmdet')
        Image.new('RGB', (96, 64), (200, 30, 30)).save(tmp_path / 'picture.png')
        words = ['infer', 'picture.png', '--model', 'pinas_nano_a_mask-rcnn_scenes', '--out', 'drawn', '--quiet']
        done = run_in(tmp_path, str(site / 'bin' / 'pinas'), *words, forked=True, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stderr
        (line,) = (tmp_path / 'drawn' / 'predictions.jsonl').read_text().splitlines()
        assert json.loads(line)['image'] == 'picture.png' and (tmp_path / 'drawn' / 'picture.png').is_file()


class Machine:
    """A folder that is the whole PATH: only the commands that are put there exist."""

    def __init__(self, folder: Path):
        self.bin, self.folder = folder / 'bin', folder
        self.bin.mkdir()
        for name in SYSTEM_TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.set_free_disk(64 << 20)

    def add(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\n{body}\n')
        path.chmod(0o755)

    def add_python(self, without: str | None = None, headers: bool = True) -> None:
        """This Python as `python3`; `without` is a module whose import fails."""
        include = self.folder / 'include'
        include.mkdir(exist_ok=True)
        if headers:
            (include / 'Python.h').touch()
        lines = [f'case "$2" in *{without}*) exit 1;; esac'] if without else []
        lines.append(f'case "$2" in *sysconfig*) echo {include}; exit 0;; esac')
        self.add('python3', '\n'.join([*lines, f'exec {sys.executable} "$@"']))

    def add_environment(self) -> None:
        """An environment of this Python, as far as the checks before the first download see one."""
        folder = self.folder / 'env' / 'bin'
        folder.mkdir(parents=True)
        (folder / 'python').symlink_to(self.bin / 'python3')

    def set_free_disk(self, kilobytes: int) -> None:
        (self.bin / 'df').unlink()
        self.add('df', f'echo Filesystem; echo none 9 9 {kilobytes} 0% /')

    def set_up(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
        env = {
            'PATH': str(self.bin),
            'HOME': str(self.folder),
            'PINAS_ENV_DIR': str(self.folder / 'env'),
            'PINAS_CACHE_DIR': str(self.folder / 'cache'),
            **settings,
        }
        command = ['bash', ROOT / 'tools' / 'setup_env.sh', *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def error(self, *arguments: str, status: int = 1, **settings: str) -> str:
        """The only line that set-up writes to stderr."""
        done = self.set_up(*arguments, **settings)
        assert done.returncode == status, done
        (line,) = done.stderr.splitlines()
        assert line.startswith('setup_env: error: ')
        return line


class TestSetUpErrors:
    @pytest.fixture
    def machine(self, tmp_path):
        return Machine(tmp_path)

    def test_no_python(self, machine):
        line = machine.error()
        assert 'no Python of 3.11, 3.12, 3.13' in line and 'apt-get install python3 ' in line

    @pytest.mark.parametrize('version', ['3.10', '3.14'])
    def test_other_python(self, machine, version):
        machine.add('python3', f'echo {version}')
        assert 'no Python of 3.11' in machine.error()

    def test_a_python_that_only_seems_to_be_there(self, machine):
        """pyenv puts commands on the PATH that fail."""
        machine.add('python3', 'exit 127')
        assert 'no Python of 3.11' in machine.error()
        machine.add('python3.13', 'case "$*" in *version_info*) echo 3.13;; *) exit 1;; esac')
        assert 'python3.13-venv' in machine.error()

    def test_no_venv(self, machine):
        machine.add_python(without='ensurepip')
        line = machine.error()
        assert 'venv module is missing' in line and f'python{VERSION}-venv' in line

    def test_unknown_argument(self, machine):
        assert 'unknown argument --fast; allowed: --where, --versions' in machine.error('--fast')

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason='mmcv is not compiled on this Python')
    def test_compiled_operators_need_headers(self, machine):
        machine.add_python(headers=False)
        machine.add_environment()
        machine.add('c++', 'exit 0')
        line = machine.error('--mmcv-ops')
        assert 'Python.h' in line and f'python{VERSION}-dev' in line

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason='mmcv is not compiled on this Python')
    @pytest.mark.parametrize('compiler', [None, 'exit 1'], ids=['absent', 'broken'])
    def test_compiled_operators_need_a_compiler(self, machine, compiler):
        machine.add_python()
        machine.add_environment()
        if compiler:
            machine.add('c++', compiler)
        line = machine.error('--mmcv-ops')
        assert 'compiler is missing' in line and 'apt-get install g++' in line

    def test_compiled_operators_on_python_3_13(self, machine):
        machine.add('python3', 'case "$*" in *version_info*) echo 3.13;; *) exit 0;; esac')
        assert 'PINAS_PYTHON=python3.12' in machine.error('--mmcv-ops')

    def test_full_disk(self, machine):
        machine.add_python()
        machine.set_free_disk(1 << 20)
        assert 'disk is too full: 1 GB free' in machine.error(status=75)

    def test_interrupted_set_up_begins_anew(self, machine):
        machine.add_python()
        machine.set_free_disk(1 << 20)  # stops it before it costs time
        half_installed = machine.folder / 'env' / 'lib' / 'torch'
        half_installed.mkdir(parents=True)
        (machine.folder / 'env' / '.pinas-installing').touch()
        assert 'interrupted: building' in machine.set_up().stdout
        assert not half_installed.exists()

    def test_an_environment_whose_python_is_gone_is_built_anew(self, machine):
        machine.add_python()
        machine.set_free_disk(1 << 20)
        folder = machine.folder / 'env' / 'bin'
        folder.mkdir(parents=True)
        (folder / 'python').symlink_to('/gone/python3')
        assert 'is not an environment of Python' in machine.error()  # not of ours: it stays
        assert (folder / 'python').is_symlink()
        (folder.parent / '.pinas-ours').touch()
        assert 'building it again' in machine.set_up().stdout
        assert not folder.exists()

    def test_folder_in_use(self, machine):
        machine.add_python()
        (machine.folder / 'env').mkdir()
        (machine.folder / 'env' / 'thesis.tex').touch()
        assert 'is not empty and no virtual environment' in machine.error()
        assert (machine.folder / 'env' / 'thesis.tex').exists()

    def test_share_without_an_environment(self, machine):
        assert '--share needs the folder of an environment' in machine.error('--share', str(machine.folder / 'none'))

    @pytest.mark.slow
    @pytest.mark.skipif(platform.machine() != 'x86_64', reason='torch is a CPU build here')
    def test_share(self, machine, tmp_path):
        machine.add_python()
        packages = tmp_path / 'other' / 'lib' / 'python3.10' / 'site-packages'
        for name in ('nvidia/nccl/lib/libnccl.so.2', 'nvidia_nccl_cu12-2.0.dist-info/METADATA'):
            (packages / name).parent.mkdir(parents=True)
            (packages / name).write_text('Name: nvidia-nccl-cu12\nVersion: 2.0\n')
        (tmp_path / 'other' / 'bin').mkdir()
        done = machine.set_up('--core', '--share', str(tmp_path / 'other'), **CLOSED)
        assert 'network is missing' in done.stderr.splitlines()[-1]
        (library,) = (machine.folder / 'env').glob('lib/python3*/site-packages/nvidia/nccl/lib/*')
        assert library.samefile(packages / 'nvidia/nccl/lib/libnccl.so.2')

    @pytest.mark.slow
    def test_no_network(self, machine):
        machine.add_python()
        done = machine.set_up(**CLOSED)
        assert done.returncode == 1
        assert 'network is missing' in done.stderr.splitlines()[-1]

    @pytest.mark.slow
    @pytest.mark.skipif(platform.machine() != 'x86_64', reason='torch is a CPU build here')
    def test_no_cpu_build(self, machine, tmp_path):
        """An index that answers but does not have this torch."""
        machine.add_python()
        subprocess.run([sys.executable, '-m', 'venv', machine.folder / 'env'], check=True)
        (pip,) = re.findall(r'^(pip==.*)$', (ROOT / 'requirements' / 'lock.txt').read_text(), re.M)
        packages = machine.folder / 'env' / 'lib' / f'python{VERSION}' / 'site-packages'
        (packages / f'{pip.replace("==", "-")}.dist-info').mkdir(exist_ok=True)  # the pinned pip seems to be there
        index = tmp_path / 'index'
        for name in ('torch', 'torchvision'):
            (index / name).mkdir(parents=True)
            (index / name / 'index.html').write_text('<!DOCTYPE html><html><body></body></html>')
        done = machine.set_up('--cpu', '--core', **CLOSED | {'PIP_INDEX_URL': index.as_uri()})
        assert done.returncode == 1, done
        assert 'no CPU build of torch' in done.stderr.splitlines()[-1], done.stderr


class TestScripts:
    def test_ci_runs_the_tests(self):
        lines = (ROOT / '.ci' / 'run').read_text().splitlines()
        assert [line for line in lines if not line.startswith('#')] == ['bash tools/run_tests.sh']

    def test_where(self):
        def where(**settings):
            env = {'PATH': os.environ['PATH'], 'HOME': '/home/x', **settings}
            script = ROOT / 'tools' / 'setup_env.sh'
            return subprocess.check_output(['bash', script, '--where'], env=env, text=True).strip()

        assert where() == str(ROOT / '.venv')
        assert where(PINAS_ENV_DIR='/e', CI='true') == '/e'
        assert where(CI='true', PINAS_CACHE_DIR='/c').startswith('/c/envs/py3.1')

    def test_shellcheck(self):
        shellcheck = shutil.which('shellcheck') or shutil.which('shellcheck', path=str(Path(sys.executable).parent))
        if not shellcheck:
            pytest.skip('shellcheck is not installed')
        scripts = [*ROOT.glob('tools/*.sh'), ROOT / '.ci' / 'run']
        done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_pins_match_the_requirements(self):
        """Versions that pyproject.toml pins exactly equal those of the pinned environment."""
        pins = (ROOT / 'requirements' / 'lock.txt').read_text() + (ROOT / 'requirements' / 'mmcv.txt').read_text()
        fixed = re.findall(r'"((?:mm[\w-]+)==[\w.]+)"', (ROOT / 'pyproject.toml').read_text())
        assert len(fixed) == 3
        for requirement in fixed:
            assert re.search(rf'^{re.escape(requirement)}$', pins, re.M), requirement
