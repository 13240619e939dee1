"""The parts of `tools/benchmark.py`, one file each; every part has `measure(settings)`."""
