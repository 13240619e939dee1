"""Run a file of `pinas export` on a picture, without torch: numpy, Pillow and onnxruntime.

    python examples/run_onnx.py model.onnx photo.jpg

The file states its task, pre-processing and classes. A classifier prints its best classes, a segmentor the share of
each class, a detector its objects in px of the picture.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def prepare(picture: Image.Image, mean: Any, std: Any, channels: str, interpolation: str, **size: Any) -> np.ndarray:
    """The network's input (1, 3, H, W) for an RGB picture."""
    sides = [(size[name], pick(picture.size)) for name, pick in (('short', min), ('long', max)) if name in size]
    factor = min((wanted / side for wanted, side in sides), default=1)
    height, width = size.get('size') or [int(side * factor + 0.5) for side in reversed(picture.size)]
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[interpolation.upper()])
    down, right = size.get('crop') or (height, width)
    top, left = round((height - down) / 2), round((width - right) / 2)
    pixels = np.asarray(picture, np.float32)[top : top + down, left : left + right, :: 1 if channels == 'RGB' else -1]
    return ((pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).transpose(2, 0, 1)[None]


def predict(path: str, image: str) -> list[dict[str, Any]]:
    """What the file finds in the picture, as rows."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    picture = Image.open(image).convert('RGB')
    x = prepare(picture, **about['preprocessing'])
    outputs = session.run(None, {'input': x})
    names = about.get('classes') or range(10**6)
    if about['task'] == 'detection':  # boxes, scores, labels, and masks of the input's size
        scale = np.divide(picture.size * 2, (x.shape[3], x.shape[2]) * 2)
        rows = zip(*outputs[:3], strict=True)
        return [{'class': names[c], 'score': float(s), 'box': (b * scale).round(1).tolist()} for b, s, c in rows]
    if about['task'] == 'segmentation':
        labels = outputs[0].argmax(1) if outputs[0].ndim == 4 else outputs[0]
        counts = np.bincount(labels.ravel())
        return [{'class': names[c], 'share': float(counts[c] / labels.size)} for c in counts.nonzero()[0]]
    chances = np.exp(outputs[0][0] - outputs[0][0].max())
    return [{'class': names[c], 'score': float(chances[c] / chances.sum())} for c in chances.argsort()[:-6:-1]]


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for row in predict(*sys.argv[1:]):
        print(json.dumps(row, ensure_ascii=False))
