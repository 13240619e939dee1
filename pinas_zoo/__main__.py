"""`python -m pinas_zoo`: the command `pinas`, which loads torch and timm first; `python -m pinas_cli` does not."""

from pinas_cli.main import main

if __name__ == '__main__':
    raise SystemExit(main())
