"""The command line, `pinas COMMAND` or `python -m pinas_cli COMMAND`: one module per command, listed in `main`.

A package beside pinas_zoo, because importing anything from pinas_zoo loads torch and timm: here only the standard
library is imported before the arguments are parsed.
"""
