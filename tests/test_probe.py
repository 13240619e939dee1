"""pinas probe: the classifiers against scikit-learn's and loops, the intervals, and whole runs on small real images."""

import json

import numpy as np
import pytest
import timm
import torch

from pinas_cli.main import main
from pinas_zoo.data import load_tensor, normalise, open_source
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.probes.knn import knn_top1
from pinas_zoo.probes.linear import PENALTIES, fit_linear, hold_out
from pinas_zoo.probes.probe import Images, Settings, bootstrap, few, probe, table, wilson
from pinas_zoo.probes.targets import Paths, Target, open_targets
from pinas_zoo.weights.load import save_weights

TRAIN, TEST = (
    dict(kind='digits', split=split, limit=limit, seed=0) for split, limit in (('train', 300), ('test', 100))
)


@pytest.fixture(scope='module')
def pixels() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Digits as features: 8 x 8 pixels."""
    parts = (load_tensor(spec, 28) for spec in (TRAIN, TEST))
    return tuple((torch.nn.functional.avg_pool2d(images[:, :1].float(), 4)[:, 0].flatten(1), y) for images, y in parts)


def test_linear_is_scikit_learns(pixels):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, y), (queries, _) = pixels
    ours = fit_linear(x, y, 10, (1e-2,))
    scaler = StandardScaler().fit(x.double().numpy())
    theirs = LogisticRegression(C=1 / (1e-2 * len(x)), max_iter=2000, tol=1e-8)
    theirs.fit(scaler.transform(x.double().numpy()), y.numpy())
    assert np.allclose(ours.weight.numpy(), theirs.coef_, atol=5e-3)
    predicted = theirs.predict(scaler.transform(queries.double().numpy()))
    assert (ours.predict(queries).numpy() == predicted).mean() >= 0.99


def test_the_penalty_is_the_best_on_held_out_images(pixels):
    """With one image per class there is none to choose the penalty on."""
    (x, y), _ = pixels
    x = torch.cat([x, 1000 * torch.randn(len(x), 60, generator=torch.Generator().manual_seed(0))], dim=1)
    held = hold_out(y, 0.2, 0)
    fits = [fit_linear(x[~held], y[~held], 10, (penalty,)) for penalty in PENALTIES]
    hits = [int((fitted.predict(x[held]) == y[held]).sum()) for fitted in fits]
    assert min(hits) < max(hits)
    chosen = fit_linear(x, y, 10)
    assert chosen.chosen and chosen.penalty == PENALTIES[hits.index(max(hits))]
    one_each = few(y, 0.001, 0)
    assert not fit_linear(x[one_each], y[one_each], 10).chosen


def test_draws_of_labels(pixels):
    labels = pixels[0][1]
    tenth = few(labels, 0.1, 3)
    counts, all_counts = (torch.bincount(part, minlength=10) for part in (labels[tenth], labels))
    assert torch.equal(counts, (all_counts * 0.1).int().clamp(min=1))
    assert torch.equal(tenth, few(labels, 0.1, 3)) and not torch.equal(tenth, few(labels, 0.1, 4))
    assert len(few(labels, 1e-6, 0)) == 10  # every class keeps one
    assert hold_out(labels, 0.2, 0).sum() == (all_counts * 0.2).int().sum()


def test_intervals():
    low, high = wilson(50, 100)
    assert (low, high) == pytest.approx((40.3832, 59.6168), abs=1e-3)  # the textbook value
    assert wilson(100, 100)[0] > 96 and wilson(100, 100)[1] == 100
    draw = np.random.default_rng(0)
    equal = np.repeat(draw.random((1, 400)) < 0.8, 5, axis=0)  # draws that agree: the test images alone
    low, high = bootstrap(equal, 0)
    assert (low, high) == pytest.approx(wilson(int(equal[0].sum()), 400), abs=1)
    uneven = draw.random((5, 400)) < np.array([0.4, 0.6, 0.8, 0.9, 1.0])[:, None]
    spread = np.subtract(*bootstrap(uneven, 0)[::-1])
    assert spread > 2 * (high - low)  # draws that differ widen it


def test_one_network(pixels):
    """Its features are extracted once, and the probes are those of the features."""
    calls = []

    class Net(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return torch.nn.functional.avg_pool2d(x[:, :1], 4).flatten(1)

    images = Images(TRAIN, TEST, batch_size=128)
    target = Target('pixels', 'timm', Net(), {'input_size': (3, 28, 28)})
    result = probe(target, images, Settings(k=5, shares=(0.1,), draws=2))
    assert calls == [128, 128, 44, 100]
    source = open_source(TRAIN)
    features = [
        torch.nn.functional.avg_pool2d(normalise(load_tensor(spec, 28)[0][:, :1], source.mean, source.std), 4).flatten(
            1
        )
        for spec in (TRAIN, TEST)
    ]
    expected = knn_top1(features[0], pixels[0][1], features[1], pixels[1][1], k=5)
    by = {(one.probe, one.share): one for one in result.probes}
    assert by['knn', 1.0].top1 == pytest.approx(expected) and expected > 85
    assert by['linear', 1.0].top1 > 75 and by['linear', 0.1].labelled == len(few(pixels[0][1], 0.1, 0))
    for one in result.probes:
        assert one.low <= one.top1 <= one.high and one.top1 == pytest.approx(np.mean(one.draws))
    assert by['knn', 0.1].top1 < expected
    lines = table([result]).splitlines()
    assert 'knn, 10 % labels' in lines[0] and lines[2].startswith('pixels')


def test_the_command(tmp_path, capsys):
    """A supernet's paths, a derived network and a timm model in one table."""
    torch.manual_seed(0)
    net = SuperNet('pinas_nano', zero_init_last=False)
    save_weights(
        tmp_path / 'supernet.safetensors', {f'method.supernet.{k}': v for k, v in net.state_dict().items()}, {}
    )
    small = timm.create_model('pinas_nano', arch='01-23-01-23', num_classes=0)
    save_weights(tmp_path / 'derived.safetensors', small.state_dict(), {})
    words = ['probe', str(tmp_path / 'supernet.safetensors'), str(tmp_path / 'derived.safetensors'), 'pinas_nano']
    words += ['--random', '--train', 'kind=digits', 'split=train', '--test', 'kind=digits', 'split=test']
    words += ['--train-limit', '60', '--test-limit', '30', '--shares', '0.2', '--draws', '2', '--calibration', '30']
    words += ['--arch', '30-32-20-03', '00-00-00-00', '--json', str(tmp_path / 'probes.json'), '--batch-size', '30']
    assert main(words) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / 'probes.json').read_text())
    rows = report['networks']
    assert [row['kind'] for row in rows] == ['path', 'path', 'derived', 'timm']
    assert [row['arch'] for row in rows[:3]] == ['30-32-20-03', '00-00-00-00', '01-23-01-23']
    assert all(row['name'] in shown for row in rows) and rows[3]['name'] == 'pinas_nano (random)'
    assert report['data']['train']['images'] == 60 and len(rows[0]['probes']) == 4
    again = ['--probes', 'knn', '--arch', '30-32-20-03', '--json', str(tmp_path / 'again.json')]
    assert main([words[0], words[1], *words[4:], *again]) == 0
    again = json.loads((tmp_path / 'again.json').read_text())['networks'][0]
    assert again['probes'] == [one for one in rows[0]['probes'] if one['probe'] == 'knn']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['nothing'], 'neither a file, nor a timm model'),
        (['pinas_nano', '--shares', '2'], r'shares in (0, 1)'),
        (['pinas_nano', '--train', 'kind=digits'], 'give either --data, or --train and --test'),
        (['pinas_nano', '--data', 'no/folder'], 'must be one of fashion-mnist'),
    ],
)
def test_faults(words, message, capsys):
    assert main(['probe', '--data', 'digits', *words]) in (1, 2)
    assert message in capsys.readouterr().err


def test_sets_have_to_fit():
    with pytest.raises(ValueError, match='must have the same list'):
        Images(TRAIN, dict(kind='fashion-mnist', split='test'))
    with pytest.raises(ValueError, match='without last_checkpoint'):
        list(open_targets('tests', Paths(), lambda view: []))
