"""Export of networks: ONNX and torch.export, compared with eager mode; BN folded into convolutions where possible.

The batch size is dynamic and, for fully convolutional forms (features, segmentors, detectors), height and width.
"""

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from operator import floordiv
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pinas_zoo.files import write_atomic, write_bytes
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.pooling import with_dynamic_pooling

__all__ = [
    'Features',
    'compare',
    'export_onnx',
    'export_program',
    'fold_batch_norms',
    'import_onnxruntime',
    'run_onnx',
    'save_program',
]

#: What has to be installed for ONNX.
ONNX_ADVICE = "pip install 'pinas-zoo[export]'"


class Features(nn.Module):
    """The last stages of a network as a plain tuple, for export.

    Args:
        net: A `PiNASNet`.
        indices: Features to return: 0 the stem, 1..4 the stages.

    Shape:
        (N, C, H, W) -> one (N, C_i, h_i, w_i) per index
    """

    def __init__(self, net: PiNASNet, indices: Sequence[int] = (1, 2, 3, 4)) -> None:
        super().__init__()
        self.net, self.indices = net, list(indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.net.forward_intermediates(x, self.indices, intermediates_only=True)
        assert isinstance(features, list)
        return tuple(features)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose BN layers are folded into the convolution right before them.

    Valid where a convolution's output goes only to its BN, which is the case in every block here: the stem's
    pairs, conv1/bn1, conv2.conv/bn0, conv2.fc1/bn1, conv3/bn3 and the shortcut's pair. A folded BN becomes an
    identity, so the names do not change.

    Raises:
        ValueError: A BN layer of the module does not follow a convolution.
    """
    module = copy.deepcopy(module).eval()
    total = sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())
    folded = sum(_fold(parent) for parent in list(module.modules()))
    if folded != total:
        raise ValueError(f'{total - folded} of {total} BN layers do not follow a convolution and cannot be folded')
    return module


def _fold(parent: nn.Module) -> int:
    """Folds the pairs among the direct children, which are in the order in which they run."""
    folded = 0
    before: str | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            if before is None:
                continue
            conv = getattr(parent, before)
            owner, key = (conv, str(len(conv) - 1)) if isinstance(conv, nn.Sequential) else (parent, before)
            last = getattr(owner, key)
            if isinstance(last, nn.Conv2d):
                setattr(owner, key, fuse_conv_bn_eval(last, child))
                setattr(parent, name, nn.Identity())
                folded += 1
        before = name
    return folded


def export_program(
    module: nn.Module, example: Tensor, dynamic_size: bool = False, dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """torch.export with a dynamic batch size and, if asked for, dynamic height and width.

    Args:
        module: Network; exported in eval mode.
        example: Example input, (N, C, H, W), with N of at least 2 if the batch is dynamic.
        dynamic_size: Whether height and width are dynamic too.
        dynamic_batch: Whether the batch size is dynamic.
    """
    axes = ((0,) if dynamic_batch else ()) + ((2, 3) if dynamic_size else ())
    if dynamic_size:
        module = with_dynamic_pooling(module)
    # torch asks whether the size of a pool's input leaves a remainder, which would limit the program to such sizes; the
    # answer does not matter where a division rounds down, as in Python.
    rounded = mock.patch('torch._meta_registrations.div_rtn', floordiv, create=True)
    with torch.no_grad(), rounded:
        return torch.export.export(module.eval(), (example,), dynamic_shapes=(_dynamic(axes),), strict=False)


def _dynamic(axes: Sequence[int]) -> dict[int, Any]:
    kind = getattr(torch.export.Dim, 'AUTO', None)
    if kind is None:  # before torch 2.6
        return {axis: torch.export.Dim(f'axis{axis}') for axis in axes}
    return dict.fromkeys(axes, kind)


def save_program(program: torch.export.ExportedProgram, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes an exported program atomically, with each entry of the metadata as the extra file NAME.json."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f'{name}.json': text for name, text in metadata.items()})
    write_bytes(path, buffer.getvalue())


def export_onnx(
    module: nn.Module,
    example: Tensor,
    path: str | Path,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
    outputs: Mapping[str, Mapping[int, str]] | None = None,
    dynamic_batch: bool = True,
) -> None:
    """Writes an ONNX file with a dynamic batch size, atomically.

    Args:
        module: Network; exported in eval mode.
        example: Example input, (N, C, H, W).
        path: File to write.
        dynamic_size: Whether height and width are dynamic too; for networks without classifier.
        metadata: Texts stored in the file, by name.
        outputs: Names of the outputs, each with its dynamic axes. Default: `output`, or `output0` and so on.
        dynamic_batch: Whether the batch size is dynamic.

    Raises:
        ImportError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f'ONNX export needs onnx: {ONNX_ADVICE}') from error
    if dynamic_size:
        module = with_dynamic_pooling(module, ceil=False)
    axes = {**({0: 'batch'} if dynamic_batch else {}), **({2: 'height', 3: 'width'} if dynamic_size else {})}
    outputs = outputs or _outputs(module, example, dynamic_size)

    def write(temporary: Path) -> None:
        # The tracing exporter: it needs only onnx, and keeps the names of the weights.
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'You are using the legacy TorchScript-based', DeprecationWarning)
            torch.onnx.export(
                module.eval(),
                (example,),
                str(temporary),
                input_names=['input'],
                output_names=list(outputs),
                dynamic_axes={'input': axes, **outputs},
                opset_version=17,
                dynamo=False,
            )
        if metadata:
            content = onnx.load(str(temporary))
            onnx.helper.set_model_props(content, dict(metadata))
            onnx.save(content, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)

    write_atomic(path, write)


def _outputs(module: nn.Module, example: Tensor, dynamic_size: bool) -> dict[str, dict[int, str]]:
    with torch.no_grad():
        found = module.eval()(example)
    count = len(found) if isinstance(found, (tuple, list)) else 1
    names = ['output'] if count == 1 else [f'output{index}' for index in range(count)]
    axes = {0: 'batch', **({2: 'height_out', 3: 'width_out'} if dynamic_size else {})}
    return dict.fromkeys(names, axes)


def import_onnxruntime() -> Any:
    """The module onnxruntime.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'running an ONNX file needs onnxruntime: {ONNX_ADVICE}') from error
    return onnxruntime


def run_onnx(path: str | Path, x: Tensor) -> list[Tensor]:
    """The outputs of an ONNX file run by onnxruntime on a CPU.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(array) for array in session.run(None, {'input': x.numpy()})]


@torch.no_grad()
def compare(ours: Any, theirs: Any) -> float:
    """Largest absolute difference between outputs.

    Raises:
        ValueError: The numbers or shapes of the outputs differ.
    """
    ours, theirs = (list(x) if isinstance(x, (tuple, list)) else [x] for x in (ours, theirs))
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        raise ValueError(f'shapes {[tuple(x.shape) for x in ours]} and {[tuple(x.shape) for x in theirs]} differ')
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
