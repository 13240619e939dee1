"""How many generated or damaged inputs the tests tried, by test and by outcome: `pytest -v` prints them."""

from __future__ import annotations

from collections import Counter

#: Inputs by test and outcome: 'refused' (one clear error) or 'used'. Any other outcome fails its test.
INPUTS: Counter[tuple[str, str]] = Counter()


def tally(test: str, refused: bool) -> None:
    INPUTS[test, 'refused' if refused else 'used'] += 1


def packed() -> list[tuple[str, str, int]]:
    """The counts as a worker of pytest-xdist can send them."""
    return [(*key, count) for key, count in INPUTS.items()]


def add(sent: list[tuple[str, str, int]]) -> None:
    for test, outcome, count in sent:
        INPUTS[test, outcome] += count


def lines(by_test: bool) -> list[str]:
    """The sum, then a line per test."""
    names = sorted({test for test, _ in INPUTS})
    parts = {'all': names} | {name: [name] for name in names if by_test}
    found = []
    for name, tests in parts.items():
        refused, used = (sum(INPUTS[test, outcome] for test in tests) for outcome in ('refused', 'used'))
        found.append(f'{name}: {refused + used} tried, {refused} refused with an error, {used} used')
    return found if names else []
