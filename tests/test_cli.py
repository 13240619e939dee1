"""The command `pinas`: help without torch, every option explained, copies that agree with their homes, thin tools."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fork_server import python

from pinas_cli import main as cli
from pinas_cli.options import CommandError, UsageError, errors_as_line

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ('pinas_zoo', 'torch', 'timm', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'PIL', 'matplotlib')
#: tools/*.py: the command of each.
TOOLS = {'prepare_data': 'prepare', 'publish_model': 'publish', 'convert_checkpoint': 'convert'}


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'pinas {name}')
    cli._fill(parser, name)
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from parsers(subparser)


class TestHelp:
    @pytest.mark.parametrize('words', [[], *([name] for name in cli.COMMANDS), ['prepare', 'coco'], ['rank', 'run']])
    def test_loads_nothing_heavy(self, words):
        code = f"""
import sys
from pinas_cli.main import main
try:
    main({[*words, '--help']})
except SystemExit as end:
    assert end.code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == '[]' and done.stdout.startswith('usage: pinas')

    @pytest.mark.parametrize('name', cli.COMMANDS)
    def test_explains_every_option(self, name):
        for parser in parsers(parser_of(name)):
            for action in parser._actions:
                if not isinstance(action, argparse._SubParsersAction):
                    assert action.help, f'{parser.prog}: {action.option_strings or action.dest}'
                else:
                    explained = {choice.dest for choice in action._choices_actions if choice.help}
                    assert explained == set(action.choices)

    def test_names_every_command(self, capsys):
        assert cli.main([]) == 2
        shown = capsys.readouterr().out
        assert all(f'    {name}' in shown for name in cli.COMMANDS)


class TestCopies:
    """Help does not import pinas_zoo, so a few names and defaults are repeated in pinas_cli."""

    def test_names(self):
        from pinas_cli import convert, machine, prepare, rank
        from pinas_zoo import dist
        from pinas_zoo.data.scenes.prepare import FORMATS
        from pinas_zoo.data.trees import TREES
        from pinas_zoo.ranking.truth import HALVES
        from pinas_zoo.space import SPACES
        from pinas_zoo.weights.released.convert import KINDS

        assert machine.cores() == dist.cores()
        assert (convert.KINDS, set(convert.SPACES)) == (KINDS, set(SPACES))
        assert prepare.FORMATS == FORMATS and (*HALVES, 'both') == rank.HALVES
        assert {name: tree.root for name, tree in TREES.items()} == prepare.ROOTS

    def test_defaults(self):
        from pinas_zoo.data.scenes.prepare import SceneSettings

        args = parser_of('prepare').parse_args(['scenes'])
        assert SceneSettings(args.size, args.train, args.val, args.seed, tuple(args.formats)) == SceneSettings()

    @pytest.mark.mm
    def test_of_mm(self):
        options = pytest.importorskip('pinas_zoo.mm.engine.options')
        from pinas_cli.options import LAUNCHERS

        assert options.LAUNCHERS == LAUNCHERS
        settings = pytest.importorskip('pinas_zoo.mm.inference.predictors').PredictionSettings()
        args = parser_of('infer').parse_args(['x.jpg', '--model', 'm'])
        assert (args.score_thr, args.topk) == (settings.score_thr, settings.topk)


class TestCall:
    def test_errors_are_one_line(self, capsys):
        with pytest.raises(UsageError, match='^wrong$') as caught, errors_as_line(KeyError):
            raise UsageError('wrong')
        assert caught.value.status == 2
        with pytest.raises(CommandError, match='^bad$'), errors_as_line(ValueError):
            raise ValueError('bad')
        assert cli.main(['download']) == 2
        assert capsys.readouterr().err == 'pinas download: error: give a NAME, --list or --all\n'

    @pytest.mark.parametrize(
        ('words', 'says'),
        [
            ('export resnet18 a.onnx', "unknown model 'resnet18'; known: pinas, pinas_a, "),
            ('export pinas_nano_a.fmnst a.onnx --pretrained', 'Invalid pretrained tag (fmnst)'),
            ('rank proxies --space pinas --arch 301', "'301' is not an architecture of space 'pinas'"),
            ('derive --pareto macs --search nowhere --out x', 'nowhere does not exist: give the work dir of a search'),
        ],
    )
    def test_a_wrong_name_is_one_line(self, words, says, capsys):
        assert cli.main(words.split()) == 1
        error = capsys.readouterr().err
        assert says in error and error.count('\n') == 1

    @pytest.mark.parametrize('words', [['lr'], ['=1'], ['a=1', 'b']])
    def test_an_override_without_value(self, words, capsys):
        with pytest.raises(SystemExit):
            parser_of('train').parse_args(['config.py', '--cfg-options', *words])
        assert 'must be KEY=VALUE' in capsys.readouterr().err

    @pytest.mark.mm
    def test_overrides_are_read_as_mmengine_does(self):
        pytest.importorskip('mmengine')
        from mmengine.config import DictAction

        from pinas_cli.options import overrides

        words = ['a.b=1', 'c=[1,2]', 'd=(x,y)', 'e=True', 'f=a=b', 'g=none', 'h=/x y']
        theirs = argparse.ArgumentParser()
        theirs.add_argument('--cfg-options', nargs='+', action=DictAction)
        args = parser_of('train').parse_args(['x.py', '--cfg-options', *words[:3], '--cfg-options', *words[3:]])
        assert overrides(args.cfg_options) == theirs.parse_args(['--cfg-options', *words]).cfg_options
        assert overrides([]) == {}

    def test_a_shipped_config_is_found_anywhere(self, tmp_path, monkeypatch):
        from pinas_cli.options import config_path

        monkeypatch.chdir(tmp_path)
        found = Path(config_path('checkpoints/pinas_nano_a.fmnist.py'))
        assert found.is_absolute() and found.is_file()
        assert config_path('configs/none.py') == 'configs/none.py'

    def test_as_a_module_of_either_package(self):
        for package in ('pinas_cli', 'pinas_zoo'):
            command = [python(), '-m', package, 'download', '--list']
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            assert 'pinas_nano_a.fmnist' in done.stdout


class TestEnv:
    """`pinas env` where packages are missing: a Python without site-packages, with links to some of them."""

    #: Beginnings of what a machine without the mm packages lacks.
    MM = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'onedl')

    @staticmethod
    def examine(tmp_path: Path, keep: Callable[[str], bool]) -> tuple[int, dict[str, dict[str, str]]]:
        """The exit status, and the rows by name."""
        site = tmp_path / 'site'
        site.mkdir()
        for path in Path(torch.__file__).parents[1].iterdir():
            if keep(path.name.lower()) and path.suffix != '.pth':
                (site / path.name).symlink_to(path)
        env = {
            'PATH': os.environ['PATH'],
            'HOME': str(tmp_path),
            'PYTHONPATH': f'{ROOT}{os.pathsep}{site}',
            'CXX': 'false',
        }
        command = [sys.executable, '-S', '-m', 'pinas_cli', 'env', '--json']
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert not done.stderr, done.stderr
        values = json.loads(done.stdout)
        assert values['ok'] is (done.returncode == 0)
        return done.returncode, {row['name']: row for row in values['rows']}

    def test_without_mm_packages(self, tmp_path):
        status, rows = self.examine(tmp_path, lambda name: not name.startswith(self.MM))
        assert status == 0
        for name in ('mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation'):
            assert rows[name]['state'] == 'optional' and rows[name]['fix'].startswith(f"pip install '{name}")
        assert rows['operators']['value'] == 'mmcv is missing'
        assert rows['C++ compiler']['value'].startswith('none found')  # CXX=false compiles nothing
        assert rows['timm']['state'] == rows['shipped']['state'] == 'ok'
        assert rows['Fashion-MNIST']['fix'] == 'pinas prepare fashion-mnist'

    def test_without_torch(self, tmp_path):
        status, rows = self.examine(tmp_path, lambda name: name.startswith('numpy'))
        assert status == 1 and rows['numpy']['state'] == rows['Python']['state'] == 'ok'
        assert rows['torch']['state'] == 'wrong' and rows['torch']['fix'] == "pip install 'torch>=2.4'"

    def test_versions_and_forks(self, monkeypatch):
        from pinas_cli import requirements

        have = {'torch': '1.13.1', 'timm': '1.0.31', 'onedl-mmcv': '2.3.0', 'mmcv': None, 'mmdet': '2.0.0'}
        monkeypatch.setattr(requirements, 'package_version', have.get)
        rows = {row.name: row for row in requirements.wanted()}
        assert (rows['torch'].fits, rows['timm'].fits, rows['numpy'].fits) == (False, True, False)
        assert rows['mmcv-lite'].provider == 'onedl-mmcv' and rows['mmcv-lite'].fits and not rows['mmdet'].fits

    def test_a_part_that_fails_is_a_row(self, monkeypatch, capsys):
        from pinas_cli import doctor

        def broken():
            raise OSError('torn library')
            yield

        monkeypatch.setattr(doctor, 'PARTS', (broken,))
        assert cli.main(['env']) == 1
        out = capsys.readouterr().out
        assert '!!  broken  OSError: torn library' in out and 'bash tools/setup_env.sh' in out


def test_every_tool_is_a_command():
    """tools/*.py do nothing but call the command of the same name."""
    tools = {path.stem: path.read_text() for path in (ROOT / 'tools').glob('*.py')}
    assert len(tools) >= 13
    for name, text in tools.items():
        command = TOOLS.get(name, name)
        assert command in cli.COMMANDS and f"main = command('{command}')" in text and len(text.splitlines()) < 12
