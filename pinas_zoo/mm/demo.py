"""A page in the browser: a picture in; boxes, masks, segments and classes out (`pinas demo`)."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pinas_zoo.data import FashionMNISTSource
from pinas_zoo.data.images import read_picture
from pinas_zoo.data.scenes.images import SceneSettings, compose, cut_items
from pinas_zoo.data.sources import BrokenImageError
from pinas_zoo.mm.inference.infer import UNFIT
from pinas_zoo.mm.inference.predictors import (
    Instances,
    Prediction,
    PredictionSettings,
    Predictor,
    Ranking,
    open_predictor,
)
from pinas_zoo.mm.inference.records import draw

__all__ = ['NETWORKS', 'build_page', 'draw_examples', 'open_networks', 'predict', 'serve']

#: The networks of the page, one of each task; their weights are part of the project.
NETWORKS = ('pinas_nano_a_mask-rcnn_scenes', 'pinas_nano_a_deeplabv3_scenes', 'pinas_nano_a.fmnist')
#: The title of each of them; a network of the user's has only its name.
TITLES = dict(zip(NETWORKS, ('Objects', 'Segments', 'Class of a single item on black'), strict=True))
#: Objects below this score are never shown: the slider chooses among the others.
LOWEST = 0.05
ABOUT = '# pinas_zoo\nA picture in; boxes, masks, segments and classes out. '
NANO = (
    'The nano networks were trained for minutes on small pictures of clothes: the detector and the segmentor know '
    'composed scenes, the classifier one item on black.'
)


def open_networks(
    model: str | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Predictor]:
    """The page's networks by name: `NETWORKS`, or one as `open_predictor` takes it.

    Raises:
        ValueError: Weights or options are given without a model, or do not fit it.
    """
    settings = PredictionSettings(score_thr=LOWEST)
    if model is not None:
        name = Path(model).stem if model.endswith('.py') else model
        return {name: open_predictor(model, checkpoint, device, settings, cfg_options)}
    if checkpoint is not None or cfg_options:
        raise ValueError('--checkpoint and --cfg-options need --model')
    return {name: open_predictor(name, device=device, settings=settings) for name in NETWORKS}


def draw_examples(folder: Path) -> list[Path]:
    """Writes four composed scenes, and an item alone, as PNG files; the items are test images, unseen in training."""
    source, settings = FashionMNISTSource('test', limit=400), SceneSettings(size=128)
    items = cut_items(source, len(source), seed=0)
    seeds = [np.random.default_rng([0, number]) for number in range(4)]
    pictures = [compose(items, rng, settings.size, settings.size, settings).image for rng in seeds]
    paths = [folder / f'scene_{number}.png' for number in range(4)] + [folder / 'item.png']
    for path, pixels in zip(paths, [*pictures, source.load(0)[0].numpy()], strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def predict(path: str | Path, score_thr: float, networks: Mapping[str, Predictor]) -> list[tuple[Image.Image, str]]:
    """The drawn picture and a line of text of each network.

    Args:
        path: A picture.
        score_thr: Smallest score of an object, 0..1.
        networks: Predictors by name.

    Raises:
        BrokenImageError: The picture does not decode.
        ValueError: A network cannot process a picture of its size.
    """
    image = np.ascontiguousarray(read_picture(path, name=lambda: Path(path).name)[0][..., ::-1])
    results = []
    for name, predictor in networks.items():
        try:
            found = _above(predictor.run([image])[0], score_thr)
        except UNFIT as error:
            raise ValueError(f'{name} cannot process {image.shape[1]}x{image.shape[0]} px ({error})') from error
        results.append((draw(image, found, predictor), _summary(found, predictor.classes)))
    return results


def _above(found: Prediction, score_thr: float) -> Prediction:
    """Without objects of a smaller score."""
    if not isinstance(found, Instances):
        return found
    kept = found.scores >= score_thr
    masks: Any = found.masks
    if masks is not None:
        masks = [masks[index] for index in kept.nonzero().flatten().tolist()]
    return replace(found, boxes=found.boxes[kept], labels=found.labels[kept], scores=found.scores[kept], masks=masks)


def _summary(found: Prediction, classes: Sequence[str]) -> str:
    """Objects with their scores, classes with their shares of the picture, or the likeliest class."""
    if isinstance(found, Instances):
        order = found.scores.argsort(descending=True).tolist()
        rows = [f'{classes[int(found.labels[index])]} {found.scores[index]:.2f}' for index in order]
        return f'{len(rows)} object{"" if len(rows) == 1 else "s"}' + (f': {", ".join(rows)}' if rows else '')
    if isinstance(found, Ranking):  # the picture has the others
        return f'{classes[found.labels[0]]} {100 * found.scores[0]:.1f} %'
    labels, counts = np.unique(found.labels, return_counts=True)
    pairs = sorted(zip(labels.tolist(), (counts / counts.sum()).tolist(), strict=True), key=lambda pair: -pair[1])
    return ', '.join(f'{classes[label]} {100 * share:.1f} %' for label, share in pairs)


def build_page(networks: Mapping[str, Predictor], examples: Sequence[Path]) -> Any:
    """The page, a `gradio.Blocks`; it opens with the result of the first example."""
    import gradio as gr

    def show(path: str | None, score_thr: float) -> list[Any]:
        if path is None:
            return [value for _ in networks for value in (None, '')]
        try:
            return [value for pair in predict(path, score_thr, networks) for value in pair]
        except (BrokenImageError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    outputs: list[Any] = []
    with gr.Blocks(title='pinas_zoo', analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(ABOUT + (NANO if tuple(networks) == NETWORKS else ''))
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(str(examples[0]), type='filepath', image_mode=None, label='Picture')
                least = gr.Slider(LOWEST, 1, 0.3, step=0.05, label='Smallest score of an object')
                gr.Examples([str(path) for path in examples], picture, label='Examples')
            with gr.Column(scale=3, min_width=280), gr.Row():
                for name in networks:
                    with gr.Column(min_width=280):
                        title = f'**{TITLES[name]}**<br>' if name in TITLES else ''
                        gr.Markdown(f'{title}`{name}`')  # a label of the picture would hide its corner
                        drawn = gr.Image(format='png', interactive=False, show_label=False, buttons=[], alt_text=name)
                        outputs += [drawn, gr.Markdown()]
        events = [page.load, picture.change, least.release]
        gr.on(events, show, [picture, least], outputs, api_name='predict', trigger_mode='always_last')
    return page


def serve(networks: Mapping[str, Predictor], host: str = '127.0.0.1', port: int | None = None) -> None:
    """Serves the page until it is interrupted; uploaded pictures are deleted then.

    Args:
        networks: Predictors by name.
        host: Address to listen on.
        port: None takes the first free one from 7860.

    Raises:
        OSError: The port is taken.
    """
    with tempfile.TemporaryDirectory(prefix='pinas_demo_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # gradio reads it at import
        page = build_page(networks, draw_examples(Path(folder)))
        shown = {'quiet': True, 'run_history': False, 'ssr_mode': False}  # gradio's own lines propose a public link
        page.launch(server_name=host, server_port=port, prevent_thread_lock=True, max_file_size='50mb', **shown)
        print(f'{page.local_url} (Ctrl-C ends it)', flush=True)
        page.block_thread()
