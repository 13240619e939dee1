"""The project's requirements and what is installed, found with the standard library (and packaging if it exists)."""

import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from pinas_cli.machine import package_version

__all__ = ['EXTRAS', 'Wanted', 'wanted']

#: Optional parts of pyproject.toml that `pinas env` reports, and what they are for.
EXTRAS = {
    'mm': 'training, testing, detection and segmentation',
    'search': 'search and figures',
    'export': 'ONNX',
    'download': "the authors' released weights",
}
#: Distributions that provide the same module: the compiled form of mmcv, and maintained forks of the mm packages.
EQUIVALENTS = {
    'mmcv-lite': ('mmcv', 'onedl-mmcv'),
    'mmengine': ('onedl-mmengine', 'mmengine-lite'),
    'mmdet': ('onedl-mmdetection',),
    'mmsegmentation': ('onedl-mmsegmentation',),
}
PROJECT = Path(__file__).resolve().parents[1] / 'pyproject.toml'


@dataclass(frozen=True)
class Wanted:
    """A distribution that the project requires.

    Args:
        name: Its name on PyPI.
        bounds: Allowed versions, such as '>=2.4'; '' for any.
        extra: Part of the project that needs it; '' for the core.
        found: Installed version; None if it is missing.
        provider: Distribution that is installed: `name`, or an equivalent of it.
    """

    name: str
    bounds: str
    extra: str
    found: str | None
    provider: str

    @property
    def fits(self) -> bool:
        """Whether it is installed in an allowed version; a fork counts in any version."""
        if self.found is None or self.provider not in (self.name, 'mmcv'):
            return self.found is not None
        if not find_spec('packaging'):
            return True
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(self.bounds).contains(self.found, prereleases=True)


def _lines() -> list[tuple[str, str]]:
    """(extra, requirement) of the clone, otherwise of the installed wheel."""
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text())['project']
        extras = project['optional-dependencies']
        return [('', line) for line in project['dependencies']] + [(e, line) for e in extras for line in extras[e]]
    try:
        found = requires('pinas-zoo') or []
    except PackageNotFoundError:
        return []
    pairs = (line.partition(';')[::2] for line in found)
    return [(marker.rpartition('extra ==')[2].strip(' "\''), line.strip()) for line, marker in pairs]


def wanted() -> list[Wanted]:
    """The requirements of the core and of `EXTRAS`, with what is installed; 'mm' contains 'train'."""
    rows: dict[str, Wanted] = {}
    for extra, line in _lines():
        extra = 'mm' if extra == 'train' else extra
        name = line[: next((i for i, c in enumerate(line) if c in '[<>=!~ ('), len(line))]
        if name == 'pinas-zoo' or name in rows or (extra and extra not in EXTRAS):
            continue
        candidates = (name, *EQUIVALENTS.get(name, ()))
        provider = next((each for each in candidates if package_version(each)), name)
        rows[name] = Wanted(name, line[len(name) :].strip(' ()'), extra, package_version(provider), provider)
    return sorted(rows.values(), key=lambda row: ['', *EXTRAS].index(row.extra))
