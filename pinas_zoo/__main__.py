"""`python -m pinas_zoo`: the command `pinas`, after torch and timm were loaded; `python -m pinas_cli` does without."""

from pinas_cli.main import main

if __name__ == '__main__':
    raise SystemExit(main())
