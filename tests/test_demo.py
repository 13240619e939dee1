"""pinas demo: the page shows what the predictors return; it is loaded in Chromium where gradio is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, Chromium
from PIL import Image

from pinas_cli import demo as command
from pinas_cli import main as cli

FOUND = r"/\d+ objects?/.test(document.body?.innerText ?? '')"


class TestCommand:
    @pytest.mark.parametrize('missing', ['gradio', 'mmdet, mmseg'])
    def test_it_says_what_to_install(self, monkeypatch, capsys, missing):
        monkeypatch.setattr(command, 'find_spec', lambda name: None if name in missing else True)
        assert cli.main(['demo']) == 1
        assert capsys.readouterr().err == (
            f"pinas demo: error: the page needs {missing}, not installed here: pip install 'pinas-zoo[demo]'\n"
        )

    @pytest.mark.mm
    def test_weights_need_a_model(self, monkeypatch, capsys):
        monkeypatch.setattr(command, 'find_spec', lambda name: True)
        assert cli.main(['demo', '--checkpoint', 'x.pth']) == 1
        assert 'error: --checkpoint and --cfg-options need --model' in capsys.readouterr().err


@pytest.fixture(scope='module')
def networks():
    from pinas_zoo.mm.demo import open_networks

    return open_networks(device='cpu')


@pytest.fixture(scope='module')
def examples(tmp_path_factory) -> list[Path]:
    from pinas_zoo.mm.demo import draw_examples

    return draw_examples(tmp_path_factory.mktemp('examples'))


@pytest.mark.mm
class TestPredict:
    def test_examples_are_pictures_that_differ(self, examples):
        assert [path.name for path in examples] == [*(f'scene_{number}.png' for number in range(4)), 'item.png']
        pictures = [np.asarray(Image.open(path)) for path in examples]
        assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 4 + [(28, 28)]
        assert len({picture.tobytes() for picture in pictures}) == 5

    @pytest.mark.parametrize('score_thr', [0.05, 0.3, 1.0])
    def test_a_scene(self, networks, examples, score_thr):
        from pinas_zoo.mm.demo import NETWORKS, predict
        from pinas_zoo.mm.inference.records import draw

        (boxes, objects), (segments, shares), (classes, best) = predict(examples[0], score_thr, networks)
        image = np.ascontiguousarray(np.asarray(Image.open(examples[0]))[..., ::-1])
        instances, labels, ranking = (network.run([image])[0] for network in networks.values())
        assert tuple(networks) == NETWORKS
        assert int(objects.split()[0]) == (instances.scores >= score_thr).sum()
        if score_thr == 0.05:
            assert boxes == draw(image, instances, networks[NETWORKS[0]]) and instances.masks is not None
        if score_thr == 1.0:
            assert objects == '0 objects' and boxes == Image.open(examples[0]).resize(boxes.size, 0)
        assert segments == draw(image, labels, networks[NETWORKS[1]])
        counts = np.bincount(labels.labels.ravel())
        names = networks[NETWORKS[1]].classes
        assert shares.startswith(f'{names[counts.argmax()]} {100 * counts.max() / counts.sum():.1f} %')
        assert best == f'{networks[NETWORKS[2]].classes[ranking.labels[0]]} {100 * ranking.scores[0]:.1f} %'
        assert classes == draw(image, ranking, networks[NETWORKS[2]])

    def test_a_grey_picture_and_a_damaged_one(self, networks, examples, tmp_path):
        from pinas_zoo.data.sources import BrokenImageError
        from pinas_zoo.mm.demo import predict

        assert len(predict(examples[-1], 0.3, networks)) == 3
        (tmp_path / 'bad.png').write_bytes(examples[0].read_bytes()[:500])
        with pytest.raises(BrokenImageError, match="^cannot read image 'bad.png': "):
            predict(tmp_path / 'bad.png', 0.3, networks)

    def test_a_network_of_the_user(self):
        from pinas_zoo.mm.demo import open_networks

        file = 'checkpoints/pinas_nano_a_deeplabv3_scenes'
        opened = open_networks(f'{file}.py', f'{file}.safetensors', 'cpu')
        assert list(opened) == ['pinas_nano_a_deeplabv3_scenes']


@pytest.fixture(scope='module')
def address(networks, examples, tmp_path_factory) -> Iterator[str]:
    """The page on a free port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(tmp_path_factory.mktemp('gradio')))
        pytest.importorskip('gradio')
        from pinas_zoo.mm.demo import build_page

        page = build_page(networks, examples)
        page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True, ssr_mode=False)
        yield page.local_url
        page.close()


@pytest.mark.mm
class TestPage:
    @pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
    @pytest.mark.parametrize('width', [1400, 420])
    def test_in_a_browser(self, address, networks, examples, tmp_path, width):
        from pinas_zoo.mm.demo import NETWORKS, predict

        with Chromium(tmp_path) as browser:
            browser.open(address, width)
            (_, objects), (_, shares), (_, best) = predict(examples[0], 0.3, networks)
            browser.wait_for(FOUND)
            text = browser.value('document.body.innerText')
            assert objects in text and shares in text and best in text
            drawn = f'[{", ".join(map(repr, NETWORKS))}].map(n => document.querySelector(`img[alt="${{n}}"]`))'
            assert browser.wait_for(f'{drawn}.every(i => i?.naturalWidth >= 384)')
            assert browser.value('[document.documentElement.scrollWidth, innerWidth]') == [width, width]
            own = "performance.getEntriesByType('resource').every(r => new URL(r.name).origin === location.origin)"
            assert browser.value(own), 'the page loads from elsewhere'

            browser.value("document.querySelectorAll('.gallery-item')[4].click()")
            (_, _), (_, shares), (_, best) = predict(examples[4], 0.3, networks)
            browser.wait_for(f"document.body.innerText.includes('{shares}')")
            assert best in browser.value('document.body.innerText')

    def test_through_its_api(self, address, networks, examples):
        from gradio_client import Client, handle_file

        from pinas_zoo.mm.demo import predict

        client = Client(address, verbose=False)
        answer = client.predict(handle_file(str(examples[1])), 0.1, api_name='/predict')
        assert list(answer[1::2]) == [text for _, text in predict(examples[1], 0.1, networks)]
