"""`pinas latency` from a clone; `--help` explains it."""

from pinas_cli.main import command

main = command('latency')

if __name__ == '__main__':
    raise SystemExit(main())
