"""No module imports a private name of another one; ruff's SLF001 checks attributes only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ('pinas_zoo', 'pinas_cli', 'benchmarks', 'tools', 'examples')


def _private_imports(code: str) -> list[str]:
    froms = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = [f'{node.module}.{alias.name}' for node in froms for alias in node.names]
    return [
        name
        for name in names
        if name.split('.')[0] in OURS and any(p.startswith('_') and not p.endswith('__') for p in name.split('.'))
    ]


def test_a_private_import_is_seen():
    assert _private_imports('from pinas_zoo.space import PINAS, _STAGE') == ['pinas_zoo.space._STAGE']
    assert not _private_imports('from pinas_zoo import __version__\nfrom torch.nn.modules.batchnorm import _BatchNorm')


def test_private_names_stay_in_their_module():
    files = [file for folder in OURS for file in sorted((ROOT / folder).rglob('*.py'))]
    assert len(files) > 150
    found = {str(file.relative_to(ROOT)): _private_imports(file.read_text(encoding='utf-8')) for file in files}
    assert not {file: names for file, names in found.items() if names}
