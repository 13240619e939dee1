"""Paths are views, extraction is exact, costs add up."""

import numpy as np
import pytest
import torch
from golden import arrays, filled, image, keys

from pinas_zoo.models.cost import Cost, CostTable, count
from pinas_zoo.models.network import PINAS_A, PINAS_B, PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import PINAS, PINAS_NANO, PINAS_TINY, Candidate, SearchSpace
from pinas_zoo.weights.loading import load_supernet
from pinas_zoo.weights.released.remap import supernet_from_released


def randomised(space: SearchSpace, seed: int = 0) -> SuperNet:
    """A supernet whose BN layers all do something."""
    generator = torch.Generator().manual_seed(seed)
    net = SuperNet(space, zero_init_last=False)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if 'running' in name or 'bn' in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net.eval()


def test_released_tiny_supernet():
    golden = arrays('supernet_tiny.npz')
    net = SuperNet(PINAS_TINY).eval()
    net.load_state_dict(supernet_from_released(filled(keys('supernet_tiny_keys.json')['backbone'])))
    with torch.no_grad():
        out = net(image(), golden['path'])
    np.testing.assert_allclose(out, golden['out'], rtol=0, atol=1e-4)


def test_extraction_is_bit_equal_for_every_candidate_at_every_position():
    net = randomised(PINAS_TINY)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for choice in range(4):
        # A shifted pattern too, so that candidates meet other neighbours.
        for arch in ([choice] * 16, [(choice + p) % 4 for p in range(16)]):
            with torch.no_grad():
                assert torch.equal(net(x, arch), net.extract(arch).forward_features(x))


def test_extraction_with_skips_and_channels_last():
    space = SearchSpace(
        'skips',
        depths=(2, 2),
        planes=(16, 32),
        strides=(2, 2),
        stem_widths=(8, 8, 16),
        candidates=(Candidate(), Candidate(skip=True), Candidate(radix=2, cardinality=2)),
    )
    net = randomised(space).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    for arch in space.all_archs():
        alone = net.extract(arch).to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.equal(net(x, arch), alone.forward_features(x))


def test_path_is_a_view():
    net = SuperNet(PINAS_NANO)
    path = net.path('30-32-20-03')
    own = {id(p) for p in net.parameters()}
    assert all(id(p) in own for p in path.parameters())
    assert len(path.parameters()) == len(list(net.extract(path.arch).parameters()))
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in path.modules()) == sum(
        'running_mean' in k for k in path.state_dict()
    )
    x = torch.randn(2, 3, 28, 28)
    path(x).sum().backward()
    touched = {id(p) for p in net.parameters() if p.grad is not None}
    assert touched == {id(p) for p in path.parameters()}


def test_the_shortcut_is_one_module_for_all_candidates():
    net = SuperNet(PINAS_NANO)
    shortcuts = [[p for n, p in net.path([c] * 8).state_dict().items() if 'downsample.1' in n] for c in range(4)]
    assert len(shortcuts[0]) == 4
    for other in shortcuts[1:]:
        assert [t.data_ptr() for t in other] == [t.data_ptr() for t in shortcuts[0]]


def test_zero_init_makes_every_path_the_same_at_first():
    net = SuperNet(PINAS_NANO).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(net(x, [0] * 8), net(x, [3] * 8))


def test_paper_costs():
    table = CostTable(PINAS)
    for arch, params, macs in ((PINAS_A, 27_046_278, 5.33229), (PINAS_B, 27_039_016, 5.25364)):
        cost = table.of(arch)
        assert cost.params == params and round(cost.macs / 1e9, 5) == macs


def test_cost_table_equals_a_count_on_built_models():
    """Each entry on networks with one candidate everywhere, and the sums on random ones."""
    rng, table = np.random.default_rng(0), CostTable(PINAS)
    same = [[choice] * PINAS.num_positions for choice in range(len(PINAS.candidates))]
    for arch in (*same, *(PINAS.sample(rng) for _ in range(4))):
        with torch.device('meta'):
            assert count(PiNASNet(arch), 224) == table.of(arch), PINAS.format(arch)


@pytest.mark.parametrize('output_stride', [8, 16, 32])
@pytest.mark.parametrize('size', [28, 67])
def test_cost_table_of_other_forms(output_stride, size):
    space = SearchSpace('cost', candidates=(Candidate(skip=True), Candidate(2, 1, 32, kernel=5)))
    arch = [1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0]
    for candidate_space, path in ((space, arch), (PINAS_NANO, [0, 1, 2, 3] * 2)):
        table = CostTable(candidate_space, size, 10, 1, output_stride)
        with torch.device('meta'):
            net = PiNASNet(path, candidate_space, 10, 1, output_stride)
            assert count(net, size, 1) == table.of(path)
    assert CostTable(space).table[1][0] == Cost()


def test_cost_table_of_an_oblong_image_and_a_stem_of_single_pixels():
    space = SearchSpace('oblong', stem_kernel=1, candidates=(Candidate(), Candidate(kernel=5)))
    table, path = CostTable(space, (20, 37), 10, 16), [0, 1] * 8
    with torch.device('meta'):
        net = PiNASNet(path, space, 10, 16)
    assert count(net, (20, 37), 16) == table.of(path) and net.conv1[0].weight.shape == (32, 16, 1, 1)
    assert CostTable(space, 20, 10, 16).of(path) == CostTable(space, (20, 20), 10, 16).of(path)


def test_load_supernet_from_a_file_and_from_a_work_dir(tmp_path):
    net = randomised(PINAS_NANO)
    state = {f'method.student.backbone.{k}': v for k, v in net.state_dict().items()} | {'method.queue': torch.zeros(2)}
    torch.save({'state_dict': state}, tmp_path / 'iter_3.pth')
    with pytest.raises(FileNotFoundError, match='no last_checkpoint'):
        load_supernet(tmp_path, PINAS_NANO)
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_3.pth')  # the folder was moved
    for source in (tmp_path / 'iter_3.pth', tmp_path):
        loaded = load_supernet(source, PINAS_NANO).state_dict()
        assert all(torch.equal(v, loaded[k]) for k, v in net.state_dict().items())
