"""Shared by all tests: threads, seeds, what is skipped and why, and which real images were used."""

import fcntl
import gc
import os
import random
import re
import sys
from importlib.util import find_spec

# before torch: two cores are promised, and the count changes bits; of several workers (pytest -n) each has one
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ['OMP_NUM_THREADS'] = '1'
os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # tests start processes; spinning threads would take their cores
if not os.environ.get('PINAS_TEST_NET'):
    os.environ.setdefault('PINAS_OFFLINE', '1')  # missing data fall back to scikit-learn's digits

import pytest
from fork_server import forked_spawns, python, share
from remembered import remember
from tally import add, lines, packed

gc.disable()  # until the tests are collected: nothing that is imported is garbage

#: The files that take longest, in that order: they start first, so that the last minutes do not run on one worker.
LONGEST = (
    'downstream_train', 'downstream_dist', 'publish_zoo', 'gpu_check', 'own_weights', 'transfer_study', 'quickstart',
    'export', 'ranking_report', 'packaging', 'pretrain', 'downstream_resume', 'graphs', 'backbone', 'shortlist',
    'downstream_configs', 'ecosystem', 'cluster', 'notebook', 'convert', 'attentivenas', 'bnnas', 'fpnas', 'entrannas',
    'sparse', 'ranking_train', 'preflight', 'truth', 'engine', 'benchmark', 'class_list', 'kinds', 'own_data',
    'imports', 'mmcv_operators', 'search', 'mixed_arch', 'methods', 'run_search', 'mm_backbone', 'imagenet', 'cli',
)  # fmt: skip
MM_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
#: What a file with mm or slow tests only says.
NOT_CORE = re.compile(r'^pytestmark = .*\bmark\.(mm|slow)\b', re.MULTILINE)
#: How many modules the garbage collector no longer visits.
KEPT = [0]
#: Where the images of each worker come from.
IMAGES = set()


def pytest_configure(config):
    if getattr(config.option, 'dist', 'no') != 'no' and not hasattr(
        config, 'workerinput'
    ):  # it runs no tests, its workers do
        config.add_cleanup(share())
        return
    import torch

    import pinas_zoo  # noqa: F401  before mmdet: mmcv-lite takes its operators from here (docs/mmcv_ops.md)

    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_ignore_collect(collection_path, config):
    """The core tests need not import mmdet and mmseg with files of which they run nothing."""
    if config.option.markexpr == 'not mm and not slow' and collection_path.suffix == '.py':
        return True if NOT_CORE.search(collection_path.read_text()) else None
    return None


def pytest_collection_finish():
    keep_imports()
    gc.enable()


def keep_imports():
    """What was imported stays: the garbage collector need not visit it again (mmengine calls it for every data set)."""
    if len(sys.modules) > KEPT[0] + 100:
        gc.collect()
        gc.freeze()
        KEPT[0] = len(sys.modules)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests that start several processes run one at a time, so that workers do not starve each other."""
    if not item.get_closest_marker('processes'):
        return (yield)
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


def pytest_collection_modifyitems(config, items):
    import torch

    places = {f'test_{name}': place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    missing = [name for name in MM_PACKAGES if find_spec(name) is None]
    reasons = {
        'mm': missing and f'not installed: {", ".join(missing)} (bash tools/setup_env.sh)',
        'gpu': not torch.cuda.is_available() and 'no CUDA device',
        'net': not os.environ.get('PINAS_TEST_NET') and 'downloads; set PINAS_TEST_NET=1 to run it',
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_setup():
    remember()
    keep_imports()


@pytest.fixture(autouse=True)
def _seeded():
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_visualizers():
    """mmengine keeps one visualizer per name and process: a later run would write into the folder of an earlier one."""
    yield
    if 'mmengine.visualization' in sys.modules:
        base = sys.modules['mmengine.visualization'].Visualizer
        for kind in (base, *base.__subclasses__()):
            kind._instance_dict.clear()


@pytest.fixture
def forked_python(monkeypatch):
    """Programs that a test's code starts with sys.executable, and ranks of torchrun, are forks (fork_server.py)."""
    monkeypatch.setattr(sys, 'executable', python())
    monkeypatch.setenv('PYTHON_EXEC', python())


@pytest.fixture
def forked_processes():
    """Processes that the tested code spawns are forks (fork_server.py)."""
    with forked_spawns():
        yield


def pytest_sessionfinish(session):
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput |= {'inputs': packed(), 'images': describe_images()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    sent = getattr(node, 'workeroutput', {})  # a worker that crashed sends nothing
    add(sent.get('inputs', []))
    IMAGES.update(filter(None, [sent.get('images')]))


def pytest_terminal_summary(terminalreporter, config):
    if not config.option.collectonly:
        for images in sorted(IMAGES) or [describe_images()]:
            terminalreporter.write_line(f'real images: {images}')
        for line in lines(by_test=config.option.verbose > 0):
            terminalreporter.write_line(f'generated and damaged inputs, {line}')


def describe_images() -> str:
    """The data set that the tests' real images come from."""
    try:
        from pinas_zoo.data import FashionMNISTSource

        used = FashionMNISTSource('test', limit=1).description
    except ImportError as error:
        return f'none ({error})'
    return f'{used["data"]} (from: {used["origin"]})'
