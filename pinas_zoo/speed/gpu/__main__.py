"""`python -m pinas_zoo.speed.gpu`."""

from pinas_zoo.speed.gpu.main import main

if __name__ == '__main__':
    raise SystemExit(main())
