"""`python -m pinas_cli`, which torchrun and subprocesses can call: `torchrun -m pinas_cli train CONFIG`."""

from pinas_cli.main import main

if __name__ == '__main__':
    raise SystemExit(main())
