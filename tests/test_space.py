"""The search space: parsing, formatting, sampling, distinct pairs, skips, plain values."""

from __future__ import annotations

import json
import math
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from pinas_zoo.methods.predictor import one_hot
from pinas_zoo.search.strategies import cross, mutate
from pinas_zoo.space import (
    PINAS,
    PINAS_NANO,
    PINAS_TINY,
    SPACES,
    Candidate,
    SearchSpace,
    get_space,
)

PINAS_A = (3, 0, 1, 3, 2, 3, 1, 2, 0, 3, 2, 1, 3, 0, 3, 2)
PINAS_B = (3, 3, 3, 3, 1, 1, 3, 3, 3, 0, 0, 1, 1, 0, 2, 1)
#: The nano space with a skip as candidate 4: it fits every second position, where no shape changes.
SKIP = replace(PINAS_NANO, name='skip', candidates=(*PINAS_NANO.candidates, Candidate(skip=True)))
ALL = pytest.mark.parametrize('space', [PINAS, PINAS_NANO, PINAS_TINY, SKIP], ids=lambda s: s.name)


# ---- the skeleton -----------------------------------------------------------------------------------


def test_the_papers_space() -> None:
    assert PINAS.num_positions == 16 and PINAS.num_archs == 4**16
    assert PINAS.num_features == 2048 and PINAS.stem_reduction == 4
    table = [(c.radix, c.cardinality, c.base_width) for c in PINAS.candidates]
    assert table == [(1, 1, 64), (2, 1, 64), (1, 2, 42), (2, 2, 40)]
    # int(planes * base_width / 64) * cardinality, at the planes of the four stages
    widths = [[c.group_width(planes) for planes in PINAS.planes] for c in PINAS.candidates]
    assert widths == [[64, 128, 256, 512], [64, 128, 256, 512], [84, 168, 336, 672], [80, 160, 320, 640]]


@ALL
def test_positions_channels_and_projections(space: SearchSpace) -> None:
    places = [(s, b) for s, depth in enumerate(space.depths) for b in range(depth)]
    assert [space.stage_of(p) for p in range(space.num_positions)] == places
    for position, (stage, block) in enumerate(places):
        out = space.planes[stage] * space.expansion
        if block:
            assert space.in_channels(position) == out
        elif stage:
            assert space.in_channels(position) == space.planes[stage - 1] * space.expansion
        else:
            assert space.in_channels(position) == space.stem_widths[-1]
        assert space.has_projection(position) == (block == 0)
    for position in (-1, space.num_positions):
        with pytest.raises(ValueError, match=rf'0\.\.{space.num_positions - 1}, got {position}'):
            space.stage_of(position)


def test_a_stage_that_keeps_its_shape_has_no_projection() -> None:
    space = replace(SKIP, name='flat', stem_widths=(16, 16, SKIP.planes[0] * SKIP.expansion))
    assert not space.has_projection(0) and 4 in space.choices(0)
    assert space.has_projection(2) and 4 not in space.choices(2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'depths': ()}, 'one to four stages'),
        ({'depths': (1,) * 5}, 'one to four stages'),
        ({'depths': (3, 4, 6)}, 'one entry per stage'),
        ({'planes': (64, 128)}, 'one entry per stage'),
        ({'depths': (3, 4, 0, 3)}, 'depths must be integers of at least 1'),
        ({'strides': (1, 2, 2.0, 2)}, 'strides must be integers'),
        ({'planes': (64, 128, -256, 512)}, 'planes must be integers'),
        ({'stem_widths': (32,) * 4}, 'one to three entries'),
        ({'candidates': ()}, 'one to ten candidates, got 0'),
        ({'candidates': (Candidate(),) * 11}, 'one to ten candidates, got 11'),
        ({'candidates': (Candidate(skip=True),)}, 'skip'),
        ({'depths': (3, 4, True, 3)}, 'depths must be integers'),
        ({'expansion': 0}, 'expansion must be an integer of at least 1, got 0'),
        ({'stem_stride': 2.0}, 'stem_stride must be an integer of at least 1, got 2.0'),
        ({'stem_kernel': 2}, 'stem_kernel must be odd, got 2'),
        ({'input_size': -224}, 'input_size must be an integer of at least 1, got -224'),
        ({'min_attention_width': True}, 'min_attention_width must be an integer of at least 1, got True'),
    ],
)
def test_malformed_spaces(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PINAS, **changes)


@pytest.mark.parametrize('field', ['radix', 'cardinality', 'base_width', 'kernel'])
@pytest.mark.parametrize('value', [0, -1, 1.0, '2', None, True])
def test_malformed_candidates(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f'Candidate.{field} .* got {re.escape(repr(value))}'):
        Candidate(**{field: value})
    with pytest.raises(ValueError, match='odd, got 4'):
        Candidate(kernel=4)


def test_spaces_are_frozen_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        PINAS.name = 'other'  # type: ignore[misc]
    assert len({PINAS, replace(PINAS), PINAS_NANO}) == 2


# ---- parse and format -------------------------------------------------------------------------------


def test_the_searched_architectures() -> None:
    assert PINAS.format(PINAS_A) == '301-3231-203213-032'
    assert PINAS.format(PINAS_B) == '333-3113-330011-021'


@pytest.mark.parametrize(
    'arch',
    [
        '301-3231-203213-032',
        '3013231203213032',
        '  301-3231-203213-032\n',
        PINAS_A,
        list(PINAS_A),
        np.array(PINAS_A),
        np.array(PINAS_A, dtype=np.uint8),
        tuple(np.int64(digit) for digit in PINAS_A),
    ],
    ids=repr,
)
def test_every_way_to_write_an_arch(arch: Any) -> None:
    parsed = PINAS.parse(arch)
    assert parsed == PINAS_A
    assert type(parsed) is tuple and {type(digit) for digit in parsed} == {int}
    json.dumps(parsed)


@ALL
def test_round_trips(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        arch = space.sample(rng)
        text = space.format(arch)
        assert space.parse(text) == space.parse(text.replace('-', '')) == space.parse(arch) == arch
        assert tuple(map(len, text.split('-'))) == space.depths


@pytest.mark.parametrize(
    ('arch', 'why'),
    [
        ('301-3231-203213-03', r'stages have \(3, 4, 6, 2\) blocks'),
        ('3013-231-203213-032', r'stages have \(4, 3, 6, 3\) blocks'),
        ('3013231203213', 'has 13 positions'),
        ('', 'only digits, dashes'),
        ('301-3231--203213-032', 'only digits, dashes'),
        ('301-3231-20321x-032', 'only digits, dashes'),
        ('301-3231-20321³-032', 'only digits, dashes'),
        ('301-3231-203214-032', r'position 12 is 4, allowed there: \(0, 1, 2, 3\)'),
        ('3(01-3231-203213-032', 'only digits, dashes'),
        ('3()1-3231-203213-032', 'only digits, dashes'),
        ('3[01]1-3231-203213-032', 'only digits, dashes'),
        ('3(01)-3231-203213-032', r'stages have \(2, 4, 6, 3\) blocks'),
        ('3(0)1-3231-203213-032', r'position 1 is \(0,\), brackets keep at least two different candidates'),
        ((*PINAS_A[:-1], (1, 1)), r'position 15 is \(1, 1\), brackets keep at least two different candidates'),
        ((*PINAS_A[:-1], ()), r'position 15 is \(\), brackets keep at least two'),
        ((*PINAS_A[:-1], (0, 4)), r'position 15 is \(0, 4\), allowed there'),
        ((*PINAS_A[:-1], (0, 1.0)), r'position 15 is \(0, 1.0\), not an integer'),
        ((*PINAS_A, 0), 'has 17 positions'),
        ((), 'has 0 positions'),
        ((*PINAS_A[:-1], -1), 'position 15 is -1, allowed there'),
        ((*PINAS_A[:-1], 2.0), 'position 15 is 2.0, not an integer'),
        ((*PINAS_A[:-1], True), 'position 15 is True, not an integer'),
        ((*PINAS_A[:-1], '2'), "position 15 is '2', not an integer"),
        ((*PINAS_A[:-1], None), 'position 15 is None, not an integer'),
        (np.array(PINAS_A, dtype=np.float64), 'not an integer'),
        (3013231203213032, 'its type is int'),
        (None, 'its type is NoneType'),
        ({0: 1}, 'its type is dict'),
    ],
    ids=repr,
)
def test_malformed_archs_print_what_came_and_what_is_allowed(arch: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as info:
        PINAS.parse(arch)
    message = str(info.value)
    assert message.startswith(f'{arch!r} is not an architecture of space')
    assert 'allowed: 16 digits of 0..3, by stage ddd-dddd-dddddd-ddd' in message
    with pytest.raises(ValueError, match=why):
        PINAS.format(arch)


def test_a_two_dimensional_array_is_a_value_error() -> None:
    with pytest.raises(ValueError, match='not an architecture'):
        PINAS.parse(np.array([PINAS_A, PINAS_B]))
    with pytest.raises(ValueError, match='not an integer'):
        PINAS.parse(np.zeros((16, 2), dtype=np.int64))


# ---- sampling ---------------------------------------------------------------------------------------


def assert_uniform(values: np.ndarray, kinds: int) -> None:
    """Chi-square at a fixed seed; a p below 1e-4 would mean that the draw is not uniform."""
    counts = np.bincount(values, minlength=kinds)
    assert len(counts) == kinds and chisquare(counts).pvalue > 1e-4, counts


@ALL
def test_samples_are_uniform_and_valid(space: SearchSpace) -> None:
    rng = np.random.default_rng(1)
    archs = [space.sample(rng) for _ in range(2000)]
    assert all(space.parse(arch) == arch for arch in archs)
    digits = np.array(archs)
    for position in range(space.num_positions):
        choices = space.choices(position)
        assert_uniform(np.searchsorted(choices, digits[:, position]), len(choices))
    # Neighbouring positions are independent.
    first, second = digits[:, 0], digits[:, 2]
    assert_uniform(first * 4 + second, 16)


@ALL
def test_distinct_pairs_differ_everywhere_and_are_uniform(space: SearchSpace) -> None:
    rng = np.random.default_rng(2)
    pairs = [space.distinct_pair(rng) for _ in range(2000)]
    for first, second in pairs:
        assert space.parse(first) == first and space.parse(second) == second
        assert all(a != b for a, b in zip(first, second, strict=True))
        assert {type(digit) for digit in first + second} == {int}
    digits = np.array(pairs)
    for position in range(space.num_positions):
        kinds = len(space.choices(position))
        ordered = [(a, b) for a in range(kinds) for b in range(kinds) if a != b]
        seen = np.array([ordered.index((a, b)) for a, b in digits[:, :, position].tolist()])
        assert_uniform(seen, len(ordered))


def test_draws_depend_on_the_generator_alone() -> None:
    for draw in (PINAS.sample, PINAS.distinct_pair):
        assert draw(np.random.default_rng(5)) == draw(np.random.default_rng(5))
        assert draw(np.random.default_rng(5)) != draw(np.random.default_rng(6))


def test_a_single_candidate_has_no_pair_and_no_mutation() -> None:
    single = replace(PINAS_NANO, name='single', candidates=(Candidate(),))
    rng = np.random.default_rng(0)
    assert single.sample(rng) == (0,) * 8 and single.num_archs == 1
    with pytest.raises(ValueError, match='position 0 has only one candidate'):
        single.distinct_pair(rng)
    with pytest.raises(ValueError, match='only one architecture'):
        mutate(single, (0,) * 8, rng)


@ALL
@pytest.mark.parametrize('probability', [0, 0.1, 0.5, 1])
def test_mutations_change_at_least_one_position(space: SearchSpace, probability: float) -> None:
    rng = np.random.default_rng(3)
    arch = space.sample(rng)
    changes = []
    for _ in range(300):
        child = mutate(space, arch, rng, probability)
        assert space.parse(child) == child
        changes.append(sum(a != b for a, b in zip(arch, child, strict=True)))
    assert min(changes) >= 1
    if probability == 0:
        assert max(changes) == 1
    else:
        expected = space.num_positions * probability
        expected += (1 - probability) ** space.num_positions  # the forced change
        assert math.isclose(np.mean(changes), expected, rel_tol=0.15)


@pytest.mark.parametrize('probability', [-0.1, 1.1, math.nan])
def test_mutation_probability_is_checked(probability: float) -> None:
    with pytest.raises(ValueError, match=r'in 0\.\.1'):
        mutate(PINAS, PINAS_A, np.random.default_rng(0), probability)


def test_crossover_takes_every_position_from_a_parent() -> None:
    rng = np.random.default_rng(4)
    first, second = PINAS.distinct_pair(rng)
    takes = []
    for _ in range(500):
        child = cross(PINAS, first, second, rng)
        takes.append([c == a for a, b, c in zip(first, second, child, strict=True) if c in (a, b)])
    share = np.array(takes).mean(axis=0)
    assert share.shape == (16,) and (abs(share - 0.5) < 0.1).all()
    assert cross(PINAS, first, first, rng) == first


# ---- skips ------------------------------------------------------------------------------------------


def test_skips_fit_where_the_shape_stays_only() -> None:
    assert [SKIP.choices(p) for p in range(4)] == [(0, 1, 2, 3), (0, 1, 2, 3, 4)] * 2
    assert SKIP.num_archs == 4**4 * 5**4
    assert SKIP.parse('04-04-04-04') == (0, 4) * 4
    with pytest.raises(ValueError, match=r'position 0 is 4, allowed there: \(0, 1, 2, 3\)'):
        SKIP.parse('40-00-00-00')


def test_canonical_moves_skips_to_the_end_of_their_stage() -> None:
    space = replace(PINAS_TINY, name='deep', candidates=(*PINAS_TINY.candidates, Candidate(skip=True)))
    arch = space.parse('341-0444-143442-240')
    assert space.format(space.canonical(arch)) == '314-0444-132444-204'
    rng = np.random.default_rng(0)
    for _ in range(100):
        canonical = space.canonical(space.sample(rng))
        assert space.parse(canonical) == space.canonical(canonical) == canonical
    assert PINAS.canonical(PINAS_A) == PINAS_A


# ---- codes and plain values -------------------------------------------------------------------------


@ALL
def test_one_hot(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(10)]
    codes = one_hot(space, archs)
    assert codes.shape == (10, space.num_positions * len(space.candidates)) and codes.dtype == np.uint8
    cube = codes.reshape(10, space.num_positions, -1)
    assert (cube.sum(-1) == 1).all()
    assert [tuple(row) for row in cube.argmax(-1).tolist()] == archs
    assert one_hot(space, []).shape == (0, space.num_positions * len(space.candidates))


def test_all_archs_of_a_small_space() -> None:
    small = replace(SKIP, name='small', depths=(2, 1), planes=(16, 32), strides=(1, 2))
    archs = list(small.all_archs())
    assert archs == sorted(set(archs)) and len(archs) == small.num_archs == 4 * 5 * 4
    assert all(small.parse(arch) == arch for arch in archs)


@ALL
def test_plain_values_round_trip_through_json(space: SearchSpace) -> None:
    values = json.loads(json.dumps(space.to_dict()))
    back = SearchSpace.from_dict(values)
    assert back == space and hash(back) == hash(space)
    assert get_space(values) == space and get_space(space) is space
    assert SearchSpace.from_dict(space.to_dict()) == space


def test_from_dict_names_unknown_and_missing_fields() -> None:
    with pytest.raises(ValueError, match=r"\['depth', 'width'\], allowed: .*'depths'"):
        SearchSpace.from_dict({'name': 'x', 'depth': 3, 'width': 4})
    with pytest.raises(ValueError, match=r"needs its field 'name', got \['depths'\]"):
        SearchSpace.from_dict({'depths': [3, 4, 6, 3]})
    with pytest.raises(ValueError, match='must be odd'):
        SearchSpace.from_dict({'name': 'x', 'candidates': [{'kernel': 2}, {}]})


def test_spaces_by_name() -> None:
    assert all(get_space(name) is space for name, space in SPACES.items())
    assert {'pinas', 'pinas_nano', 'pinas_tiny'} <= set(SPACES)
    with pytest.raises(ValueError, match=r"unknown search space 'resnet', allowed: \['nas_bench_macro', 'pinas'"):
        get_space('resnet')
    for other in (3, None, ['pinas'], {'pinas'}):
        with pytest.raises(ValueError, match='unknown search space .* or a dict of its fields'):
            get_space(other)
