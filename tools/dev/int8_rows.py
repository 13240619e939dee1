"""Top-1 and speed of our own classifiers in int8, for tools/dev/export_table.py."""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor

import pinas_zoo  # noqa: F401  registers the timm names
from pinas_zoo.data import open_source
from pinas_zoo.models.description import timm_preprocessing
from pinas_zoo.models.export import export_onnx, import_onnxruntime
from pinas_zoo.models.int8 import quantise_onnx
from pinas_zoo.speed.timing import Settings, alternate, compare


def _call(session: Any, x: Any, _: int) -> None:
    session.run(None, {'input': x})


def int8_rows(names: Sequence[str], images: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Top-1 and speed of our own classifiers, float32 and int8, on Fashion-MNIST."""
    train, test = (open_source({'kind': 'fashion-mnist', 'split': split}) for split in ('train', 'test'))
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def to_picture(pixels: Tensor) -> Image.Image:
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    for name in names:
        net: Any = timm.create_model(name, pretrained=True).eval()
        view = timm_preprocessing(net.pretrained_cfg)

        def inputs(source: Any, count: int, view: Any = view) -> Iterator[Any]:
            step = len(source) // count
            return (view(to_picture(source.load(index))) for index in range(0, step * count, step))

        with tempfile.TemporaryDirectory() as folder:
            files = {kind: Path(folder) / f'{kind}.onnx' for kind in ('fp32', 'int8', 'int8, 7 bits')}
            export_onnx(net, torch.zeros(2, 3, 28, 28), files['fp32'])
            quantise_onnx(files['fp32'], files['int8'], inputs(train, images))
            quantise_onnx(files['fp32'], files['int8, 7 bits'], inputs(train, images), narrow=True)
            sessions = {kind: onnxruntime.InferenceSession(str(file), options) for kind, file in files.items()}
            sizes = {kind: file.stat().st_size for kind, file in files.items()}
        x = torch.stack([torch.from_numpy(image) for image in inputs(test, len(test))]).numpy()
        labels = torch.tensor([test.label(index) for index in range(len(test))])
        top1 = {}
        for kind, session in sessions.items():
            logits = [session.run(None, {'input': x[i : i + 100]})[0] for i in range(0, len(x), 100)]
            found = torch.cat([torch.from_numpy(part).argmax(1) for part in logits])
            top1[kind] = float(100 * (found == labels).double().mean())
        calls: dict[str, Any] = {k: partial(_call, session, x[:32]) for k, session in sessions.items()}
        times = alternate(calls, Settings(rounds=15, warmups=3), name, repeats=10)
        ratios = {kind: compare(times['fp32'], times[kind]) for kind in sessions if kind != 'fp32'}
        milliseconds = {kind: 1e3 * median(each.wall) for kind, each in times.items()}
        yield name, {'top1': top1, 'bytes': sizes, 'milliseconds': milliseconds, 'ratios': ratios, 'images': images}
