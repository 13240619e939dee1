"""Linear stage, supervised classifier, top-k metric, and reading the supernet out of every stage's checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

from mmengine.logging import MessageHub  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402

from pinas_zoo.mm.classify import Classifier, LinearStage, TopAccuracy  # noqa: E402
from pinas_zoo.mm.pretrain import SupernetPretraining  # noqa: E402
from pinas_zoo.models.supernet import SuperNet  # noqa: E402
from pinas_zoo.space import SearchSpace  # noqa: E402
from pinas_zoo.weights.loading import load_supernet  # noqa: E402

SPACE = SearchSpace('small', (1, 2), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, input_size=16)


def linear_stage(seed: int = 0, **options: Any) -> LinearStage:
    torch.manual_seed(0)
    stage = LinearStage(SPACE, 5, seed=seed, **options)
    with torch.no_grad():
        for name, tensor in stage.supernet.named_buffers():  # statistics that are not those at the start
            if 'running' in name:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
        for name, tensor in stage.supernet.named_parameters():
            if name.endswith('bn3.weight'):
                tensor.fill_(0.7)
    return stage


def batch(index: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    image = torch.randn(6, 3, 16, 16, generator=generator) * (index + 1)
    return {'image': image, 'label': torch.randint(5, (6,), generator=generator)}


def train(stage: LinearStage, steps: int) -> list[list[str]]:
    """Trains as the runner does; returns the paths."""
    hub, paths = MessageHub.get_instance('classify'), []
    wrapper = OptimWrapper(torch.optim.SGD(stage.head.parameters(), lr=0.5))
    for step in range(steps):
        hub.update_info('iter', step)
        stage.train().train_step(batch(step), wrapper)
        paths.append(stage.last_paths)
    return paths


# ---- linear stage -------------------------------------------------------------------------------


@pytest.mark.parametrize('channels_last', [False, True])
def test_supernet_stays_bit_for_bit(channels_last: bool) -> None:
    stage = linear_stage(channels_last=channels_last)
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    train(stage, 4)
    after = stage.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {'head.weight', 'head.bias'}
    assert {name for name, p in stage.named_parameters() if p.requires_grad} == changed


def test_path_follows_from_seed_and_step() -> None:
    first, second = train(linear_stage(3), 6), train(linear_stage(3), 6)
    assert first == second and len({path for (path,) in first}) > 3
    assert train(linear_stage(4), 6) != first
    stage = linear_stage(3)
    assert [[SPACE.format(stage.method.paths(step)[0])] for step in range(6)] == first  # whatever ran before


def test_loss_is_that_of_batch_statistics() -> None:
    stage = linear_stage()
    data = batch()
    with torch.no_grad():
        outputs = stage.train()(**data, step=2, mode='loss')
        free = SuperNet(SPACE)
        free.load_state_dict(stage.supernet.state_dict())
        logits = stage.head(free.train()(data['image'], stage.method.paths(2)[0]).mean((2, 3)))
        stored = stage.head(free.eval()(data['image'], stage.method.paths(2)[0]).mean((2, 3)))
    assert torch.equal(outputs['loss'], F.cross_entropy(logits, data['label']))
    assert outputs['top1'].item() == pytest.approx(100 * (logits.argmax(1) == data['label']).float().mean().item())
    assert not torch.allclose(logits, stored)
    with pytest.raises(ValueError, match="mode='loss' only, got 'predict'"):
        stage(**data, mode='predict')


def test_run_seed_is_the_default() -> None:
    torch.manual_seed(11)
    assert LinearStage(SPACE, 2).method.seed == 11


# ---- classifier ---------------------------------------------------------------------------------


def classifier(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(dict(model_name='pinas', arch='3-12', space=SPACE), 5, **options)


def test_label_smoothing() -> None:
    model, data = classifier(label_smoothing=0.1), batch()
    losses = model.train()(**data, mode='loss')
    logits = model(data['image'], mode='tensor')
    assert logits.shape == (6, 5)
    torch.testing.assert_close(losses['loss'], F.cross_entropy(logits, data['label'], label_smoothing=0.1))
    assert losses['top1'].item() == pytest.approx(100 * (logits.argmax(1) == data['label']).float().mean().item())


def test_mixup() -> None:
    model, data = classifier(mixup=0.8, label_smoothing=0.1), batch()
    image, label = data['image'], data['label']
    np.random.seed(5)  # the global generator, whose state a checkpoint carries
    loss = model.train()(image=image.clone(), label=label, mode='loss')['loss']
    np.random.seed(5)
    mixed, target = model.mixup(image.clone(), label)
    share = ((mixed - image.flip(0)) / (image - image.flip(0))).median()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * image + (1 - share) * image.flip(0), rtol=1e-4, atol=1e-5)
    smooth = torch.full((6, 5), 0.1 / 5).scatter(1, label[:, None], 1 - 0.1 + 0.1 / 5)
    torch.testing.assert_close(target, share * smooth + (1 - share) * smooth.flip(0), rtol=1e-4, atol=1e-5)
    logits = model(mixed, mode='tensor')
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    assert not torch.allclose(loss, classifier(label_smoothing=0.1).train()(**data, mode='loss')['loss'])


@pytest.mark.parametrize(
    'settings', [{'mixup': -1.0}, {'label_smoothing': 1.0}, {'model': {'model_name': 'pinas_nan'}}]
)
def test_settings_beyond_their_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='mixup must be at least 0|Unknown model'):
        Classifier(**{'model': {'model_name': 'pinas_nano_a'}, 'num_classes': 3, **settings})


def test_no_mixup_in_evaluation() -> None:
    model, data = classifier(mixup=0.8).eval(), batch()
    samples = model(**data, mode='predict')
    logits = model(data['image'], mode='tensor')
    assert all(torch.equal(s['scores'], logit) for s, logit in zip(samples, logits, strict=True))
    assert [int(s['label']) for s in samples] == data['label'].tolist()


def test_top_accuracy_is_the_naive_one() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(40, 7, generator=generator), torch.randint(7, (40,), generator=generator)
    metric = TopAccuracy(topk=(1, 3, 5))
    for part in torch.arange(40).split(16):
        metric.process({}, [{'scores': scores[i], 'label': labels[i]} for i in part])
    ours = metric.evaluate(40)
    for k in (1, 3, 5):
        hits = sum(int(label) in row.topk(k).indices.tolist() for row, label in zip(scores, labels, strict=True))
        assert ours[f'accuracy/top{k}'] == pytest.approx(100 * hits / 40)
    assert ours['accuracy/loss'] == pytest.approx(F.cross_entropy(scores, labels).item(), abs=1e-6)
    assert all(type(value) is float for value in ours.values())


@pytest.mark.parametrize('value', [0.0, float('nan')])
def test_equal_scores_are_no_hits(value: float) -> None:
    """A dead network, or ties of half types, must not look perfect: the first class counts, as with argmax."""
    metric = TopAccuracy()
    metric.process({}, [{'scores': torch.full((4,), value), 'label': torch.tensor(y)} for y in range(4)])
    assert metric.evaluate(4)['accuracy/top1'] == (25 if value == 0 else 0)


# ---- checkpoints --------------------------------------------------------------------------------


def test_load_supernet_from_every_stage(tmp_path: Path) -> None:
    method = dict(type='pinas_zoo.PiNAS', dim=8, queue_length=16, seed=0)
    pretraining = SupernetPretraining(SPACE, method)
    with torch.no_grad():
        for parameter in pretraining.method.teacher.parameters():
            parameter.add_(1)  # the student is what is read
    stage = linear_stage()
    models = {'pretrain': (pretraining, pretraining.method.student.backbone), 'linear': (stage, stage.supernet)}
    models['alone'] = (stage.supernet, stage.supernet)
    for name, (model, supernet) in models.items():
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / f'{name}.pth')
        loaded = load_supernet(tmp_path / f'{name}.pth', SPACE)
        assert all(torch.equal(t, supernet.state_dict()[k]) for k, t in loaded.state_dict().items()), name
    other = SearchSpace.from_dict(SPACE.to_dict() | {'name': 'wider', 'planes': (16, 64)})
    with pytest.raises(ValueError, match='do not fit SuperNet'):
        load_supernet(tmp_path / 'linear.pth', other)
    again = LinearStage(SPACE, 5, supernet=str(tmp_path / 'pretrain.pth'))
    expected = pretraining.method.student.backbone.state_dict()
    assert all(torch.equal(t, expected[k]) for k, t in again.supernet.state_dict().items())


def test_keys_beside_the_wrapped_data_set_reach_it(tmp_path: Path):
    from pinas_zoo.mm.engine.launch import load_config
    from pinas_zoo.mm.engine.options import Options

    base = Path(__file__).parents[1] / 'configs/imagenet/pinas-a_8xb32-coslr-270e_in1k.py'
    text = "_base_ = {!r}\ntrain_dataloader = dict(dataset=dict(source=dict(root='flowers'), size=32))\n"
    (tmp_path / 'own.py').write_text(text.format(str(base)))
    wrapper = load_config(tmp_path / 'own.py', Options()).train_dataloader.dataset
    assert set(wrapper) == {'type', 'dataset'} and wrapper.dataset.size == 32
    assert wrapper.dataset.source == {'kind': 'folder', 'root': 'flowers'}
