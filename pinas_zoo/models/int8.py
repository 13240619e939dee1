"""Post-training quantisation of an ONNX file to int8, for CPUs: static, from calibration images.

The result has QDQ form: QuantizeLinear and DequantizeLinear around the convolutions and matrix products, which
onnxruntime and other runtimes replace by their integer kernels. Weights are quantised per channel.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.files import write_atomic
from pinas_zoo.models.export import ONNX_ADVICE, import_onnxruntime

__all__ = ['quantise_onnx']

#: What is computed in integers; everything between them stays float32.
OPERATORS = ('Conv', 'Gemm', 'MatMul')


def quantise_onnx(source: str | Path, out: str | Path, images: Iterable[np.ndarray], narrow: bool = False) -> None:
    """Writes the int8 form of an ONNX file, with the metadata of the original.

    Args:
        source: File with float32 weights and one input named `input`.
        out: File to write; may be `source`.
        images: Inputs, (C, H, W) float32 each; they set the ranges of activations. Some hundred are enough.
        narrow: Weights of 7 bits, for x86 processors without VNNI, whose integer products overflow otherwise.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: `images` is empty.
    """
    import_onnxruntime()
    try:
        import onnx
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quant_pre_process,
            quantize_static,
        )
    except ImportError as error:
        raise ImportError(f'quantisation needs onnx: {ONNX_ADVICE}') from error
    reader = _Reader(images)

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(dir=temporary.parent) as folder, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            prepared = Path(folder) / 'prepared.onnx'
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            level = logging.getLogger().level
            logging.getLogger().setLevel(logging.ERROR)  # it advises the preparation that has just been done
            try:
                quantize_static(
                    str(prepared),
                    str(temporary),
                    reader,
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(OPERATORS),
                    per_channel=True,
                    reduce_range=narrow,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
            finally:
                logging.getLogger().setLevel(level)
        content = onnx.load(str(temporary))
        known = {entry.key: entry.value for entry in onnx.load(str(source), load_external_data=False).metadata_props}
        onnx.helper.set_model_props(content, known)
        onnx.save(content, str(temporary))

    write_atomic(out, write)


class _Reader:
    """onnxruntime's CalibrationDataReader over images, one at a time."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self.images: Iterator[np.ndarray] = iter(images)
        first = next(self.images, None)
        if first is None:
            raise ValueError('calibration needs at least one image, got none')
        self.waiting = [first]

    def get_next(self) -> dict[str, Any] | None:
        """The next input, or None."""
        image = self.waiting.pop() if self.waiting else next(self.images, None)
        return None if image is None else {'input': image[None]}

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, Any]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found
