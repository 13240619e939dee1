"""What the result of a stage depends on: its data, settings, code and inputs; and which of these have changed since."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pinas_zoo.files import write_text

__all__ = ['Entry', 'Fingerprint', 'Records', 'code_version', 'differences', 'leaves', 'resolved_settings']

PACKAGE = Path(__file__).resolve().parents[2]
#: Other versions of these give different results.
PACKAGES = ('torch', 'timm', 'mmengine', 'mmdet', 'mmsegmentation')


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a stage's result depends on.

    Args:
        data: Title of the data set and the hash of its content.
        settings: Values by name: of the command, its configs as they resolve, the threads, and installed packages.
        code: Hashes of the modules, by path within the package.
        inputs: Hashes of the files of the stages before, by `stage/file`.
    """

    data: tuple[str, str]
    settings: Mapping[str, str]
    code: Mapping[str, str]
    inputs: Mapping[str, str]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Fingerprint:
        """From its JSON form."""
        title, digest = content['data']
        return cls((title, digest), content['settings'], content['code'], content['inputs'])


@dataclass(frozen=True)
class Entry:
    """What is known about a stage.

    Args:
        begun: What its folder is, or was, made from.
        seconds: Wall-clock time of its runs so far.
        ended: When its last run ended, in seconds since the epoch.
        outputs: Hashes by file; empty until it is done.
        continued: Whether it was interrupted at some point.
    """

    begun: Fingerprint
    seconds: float = 0.0
    ended: float = 0.0
    outputs: Mapping[str, str] | None = None
    continued: bool = False

    @property
    def done(self) -> bool:
        return self.outputs is not None


class Records:
    """The entries of all stages, in one JSON file that is replaced atomically.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: It is not such a file.
    """

    VERSION = 1

    def __init__(self, path: Path) -> None:
        self.path, self.entries = path, dict[str, Entry]()
        if not path.is_file():
            return
        try:
            content = json.loads(path.read_text())
            if content['version'] != self.VERSION:
                raise ValueError(f'version {content["version"]}')
            for name, entry in content['stages'].items():
                self.entries[name] = Entry(**entry | {'begun': Fingerprint.read(entry['begun'])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is not a record of this version ({error}): use another --root') from error

    def put(self, name: str, entry: Entry | None) -> None:
        """Sets or, with None, removes the entry of a stage, on disk too."""
        if entry is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = entry
        content = {'version': self.VERSION, 'stages': {name: asdict(entry) for name, entry in self.entries.items()}}
        write_text(self.path, json.dumps(content, indent=1) + '\n')

    def add_seconds(self, name: str, seconds: float) -> None:
        """Adds to the time of a stage."""
        entry = self.entries[name]
        self.put(name, replace(entry, seconds=round(entry.seconds + seconds, 2), ended=round(time.time(), 2)))

    def wall_clock(self) -> float:
        """Seconds during which at least one stage ran."""
        total, until = 0.0, 0.0
        for start, end in sorted((entry.ended - entry.seconds, entry.ended) for entry in self.entries.values()):
            total, until = total + max(0.0, end - max(start, until)), max(until, end)
        return total


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """One phrase for each kind of change; none if everything is the same."""
    reasons = []
    if old.data[1] != new.data[1]:
        then, now = (fingerprint.data[0] for fingerprint in (old, new))
        reasons.append(f'the data changed from {then} to {now}' if then != now else f'the content of {now} changed')
    if changed := _changed(old.settings, new.settings):
        shown = [f'{name} {old.settings.get(name, "-")} -> {new.settings.get(name, "-")}' for name in changed[:2]]
        reasons.append(f'settings changed: {_some(shown, len(changed))}')
    if changed := _changed(old.code, new.code):
        reasons.append(f'code changed: {_some(changed[:2], len(changed))}')
    if changed := sorted({name.split('/')[0] for name in _changed(old.inputs, new.inputs)}):
        reasons.append(f'other results of {", ".join(changed)}')
    return reasons


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _some(shown: Sequence[str], count: int) -> str:
    short = [text if len(text) <= 120 else f'{text[:117]}...' for text in shown]
    return ', '.join(short) + (f' and {count - len(shown)} more' if count > len(shown) else '')


# ---- settings --------------------------------------------------------------------------------------------------------


def leaves(node: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """The values inside nested containers, with their dotted names."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else None
    if items is None:
        yield name, node
    else:
        for key, value in items:
            yield from leaves(value, f'{name}.{key}' if name else str(key))


def resolved_settings(command: Sequence[str], configs: Sequence[Path], root: Path, threads: int) -> dict[str, str]:
    """The settings of a stage, all as text.

    Args:
        command: Its command line; `root` is removed from it, so that a run may be moved.
        configs: Its configs; what they inherit is part of them.
        root: Folder of the run.
        threads: Threads of its process; exact resuming needs the same number.
    """
    settings = {'threads': str(threads), 'python': '.'.join(platform.python_version_tuple()[:2])}
    settings |= {package: _version(package) for package in PACKAGES}
    options: dict[str, str] = {}
    words = [word.replace(str(root), 'ROOT') for word in command]
    for word in words:
        name, equals, value = word.partition('=')
        options |= {name: value} if equals and not word.startswith('-') else {}
    rest = [word for word in words if word.partition('=')[0] not in options]
    settings |= {'command': ' '.join(rest), **{f'option {name}': value for name, value in options.items()}}
    for config in configs:
        settings |= {f'{config.name}: {name}': str(value) for name, value in _config_leaves(config)}
    return settings


@cache
def _config_leaves(config: Path) -> tuple[tuple[str, Any], ...]:
    return tuple(leaves(Config.fromfile(config).to_dict()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return '-'


# ---- code ------------------------------------------------------------------------------------------------------------


def code_version(rooms: Sequence[str]) -> dict[str, str]:
    """Hashes of modules; comments, docstrings and layout do not count.

    Args:
        rooms: Modules and folders of the package, such as ``'models'`` and ``'mm/pretrain.py'``.

    Raises:
        ValueError: A room does not exist.
    """
    found: dict[str, str] = {}
    for room in rooms:
        path = PACKAGE / room
        files = sorted(path.rglob('*.py')) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise ValueError(f'{room!r} is neither a module nor a folder of modules of {PACKAGE}')
        found |= {str(file.relative_to(PACKAGE)): _code_sha256(file) for file in files}
    return found


@cache
def _code_sha256(file: Path) -> str:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
