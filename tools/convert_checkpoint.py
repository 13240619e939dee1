"""`pinas convert` from a clone; `--help` explains it."""

from pinas_cli.main import command

main = command('convert')

if __name__ == '__main__':
    raise SystemExit(main())
