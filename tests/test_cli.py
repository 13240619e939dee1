"""The command `pinas`: help without torch, every option explained, copies that agree with their homes, thin tools."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    """Help does not import pinas_zoo, so a few names and defaults stand in pinas_cli too."""

    def test_names(self):
        from pinas_cli import convert, prepare, rank
        from pinas_zoo.data.scenes.prepare import FORMATS
        from pinas_zoo.data.trees import TREES
        from pinas_zoo.ranking.truth import HALVES
        from pinas_zoo.space import SPACES
        from pinas_zoo.weights.released.convert import KINDS

        assert (convert.KINDS, set(convert.SPACES)) == (KINDS, set(SPACES))
        assert prepare.FORMATS == FORMATS and rank.HALVES == HALVES
        assert {name: tree.root for name, tree in TREES.items()} == prepare.ROOTS

    def test_defaults(self):
        from pinas_zoo.data.scenes.prepare import SceneSettings

        args = parser_of('prepare').parse_args(['scenes'])
        assert SceneSettings(args.size, args.train, args.val, args.seed, tuple(args.formats)) == SceneSettings()

    @pytest.mark.mm
    def test_of_mm(self):
        process = pytest.importorskip('pinas_zoo.mm.engine.process')
        from pinas_cli.options import LAUNCHERS

        assert process.LAUNCHERS == LAUNCHERS
        choice = pytest.importorskip('pinas_zoo.mm.inference.predictors').Choice()
        args = parser_of('infer').parse_args(['x.jpg', '--model', 'm'])
        assert (args.score_thr, args.topk) == (choice.score_thr, choice.topk)


class TestCall:
    def test_errors_are_one_line(self, capsys):
        with pytest.raises(UsageError, match='^wrong$') as caught, errors_as_line(KeyError):
            raise UsageError('wrong')
        assert caught.value.status == 2
        with pytest.raises(CommandError, match='^bad$'), errors_as_line(ValueError):
            raise ValueError('bad')
        assert cli.main(['download']) == 2
        assert capsys.readouterr().err == 'pinas download: error: give a NAME, --list or --all\n'

    @pytest.mark.parametrize('words', [['lr'], ['=1'], ['a=1', 'b']])
    def test_an_override_without_value(self, words, capsys):
        with pytest.raises(SystemExit):
            parser_of('train').parse_args(['config.py', '--cfg-options', *words])
        assert 'KEY=VALUE is wanted' in capsys.readouterr().err

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
            command = [sys.executable, '-m', package, 'download', '--list']
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            assert 'pinas_nano_a.fmnist' in done.stdout


def test_every_tool_is_a_command():
    """tools/*.py do nothing but call the command of the same name."""
    tools = {path.stem: path.read_text() for path in (ROOT / 'tools').glob('*.py')}
    assert len(tools) >= 13
    for name, text in tools.items():
        command = TOOLS.get(name, name)
        assert command in cli.COMMANDS and f"main = command('{command}')" in text and len(text.splitlines()) < 12
