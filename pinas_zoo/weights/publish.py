"""Publishes a checkpoint of any stage: timm's hub folder, and mmengine's form with the hash in its name."""

import json
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_token
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

import pinas_zoo
from pinas_zoo.files import file_sha256, write_bytes, write_text
from pinas_zoo.space import PINAS, PINAS_NANO, SearchSpace
from pinas_zoo.weights.load import Checkpoint, read_checkpoint, save_weights
from pinas_zoo.weights.manifest import entries
from pinas_zoo.weights.model_card import Card, model_card
from pinas_zoo.weights.shapes import backbone_shapes, find_arch, find_space, shapes_of

__all__ = ['Published', 'describe', 'find_network', 'publish', 'push_to_hub']

#: Prefixes of the network's names, by the origin of the file: plain, our classifier, mmdet and mmseg.
PREFIXES = ('', 'net.', 'backbone.', 'module.', 'module.net.')
#: The usage example in a hub folder's card.
USAGE = "import timm, pinas_zoo\nnet = timm.create_model('local-dir:THIS_FOLDER', pretrained=True)"
NAMED = {(PINAS.name, '301-3231-203213-032'): 'pinas_a', (PINAS.name, '333-3113-330011-021'): 'pinas_b'}


@dataclass(frozen=True)
class Published:
    """The files that were written.

    Args:
        folder: timm's hub folder: config.json, model.safetensors, README.md.
        mmengine: The whole model without training state, its hash in the name.
        architecture: timm name in config.json.
    """

    folder: Path
    mmengine: Path
    architecture: str


def publish(
    checkpoint: str | Path,
    folder: str | Path,
    card: Card | None = None,
    preprocess: dict[str, Any] | None = None,
    name: str | None = None,
) -> Published:
    """Strips training state and writes both forms.

    For a detector or segmentor the hub folder gets the backbone; the mmengine form has the whole model.

    Args:
        checkpoint: `.safetensors` or `.pth` file of a backbone, a classifier, or a model that has one.
        folder: Folder to write to.
        card: Content of the model card.
        preprocess: timm's settings of the input (input_size, mean, std, crop_pct, interpolation); the others are those
            that the checkpoint states, or the manifest for a file of the zoo.
        name: Stem of the mmengine file; default: the folder's name.

    Raises:
        ValueError: It contains no network of a known space, or an incomplete one; or it is a classifier and neither the
            checkpoint nor the manifest nor `preprocess` states mean and std.
    """
    checkpoint, folder, card = Path(checkpoint), Path(folder), card or Card()
    content = read_checkpoint(checkpoint)
    state, metadata = content.state, dict(content.metadata)
    if content.dataset_meta:
        metadata['dataset_meta'] = json.dumps(content.dataset_meta)
    net, space, arch = find_network(state, metadata, checkpoint)
    classes = net['fc.weight'].shape[0] if 'fc.weight' in net else 0
    facts = describe(checkpoint, metadata, 'classifier' if classes else 'backbone', space, arch, classes)
    facts['licence'] = card.licence or facts['licence']
    names = content.classes if len(content.classes) == classes else []
    settings = _preprocess(content, checkpoint) | (preprocess or {})
    if classes and not {'mean', 'std'} <= set(settings):
        raise ValueError(
            f'{checkpoint} does not state the mean and std of its input, and whoever loads the folder would use '
            'those of ImageNet; give them: --preprocess \'{"mean": [...], "std": [...]}\''
        )
    facts['dataset_meta'] = json.dumps({'classes': names, 'preprocess': settings})
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / 'model.safetensors', net, facts)
    config = _config(space, arch, net, classes, facts['licence'], settings)
    if names:
        config['label_names'] = names  # where timm and transformers look for them
    write_text(folder / 'config.json', json.dumps(config, indent=1) + '\n')
    title = f'{config["architecture"]}, architecture {arch}'
    tags = ('timm', 'image-classification')
    write_text(folder / 'README.md', model_card(title, USAGE, folder / 'model.safetensors', facts, card, tags))
    mmengine = _write_mmengine(folder, name or folder.resolve().name, state, {**metadata, **_strings(facts)})
    return Published(folder, mmengine, config['architecture'])


def find_network(
    state: dict[str, Tensor], metadata: dict[str, str], checkpoint: Path
) -> tuple[dict[str, Tensor], SearchSpace, str]:
    """The network inside a checkpoint, under the names of `PiNASNet`, with its space and architecture.

    Args:
        state: Tensors by name: a backbone, a classifier, or a model that has one.
        metadata: The file's strings; space and architecture in them are checked.
        checkpoint: Where both come from, for messages.

    Raises:
        ValueError: It contains no network of a known space, or an incomplete one.
    """
    prefix = next((prefix for prefix in PREFIXES if f'{prefix}conv1.0.weight' in state), None)
    if prefix is None:
        raise ValueError(f'{checkpoint} contains no network of this project: no conv1.0.weight after any of {PREFIXES}')
    net = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    shapes = shapes_of(net)
    if 'space' in metadata:
        space = SearchSpace.from_dict(json.loads(metadata['space']))
    else:
        space = find_space(shapes)
    arch = find_arch(shapes, space)
    classes = shapes.get('fc.weight', (0,))[0]
    expected = backbone_shapes(space, arch, classes, shapes['conv1.0.weight'][1] // space.stem_patch**2)
    # A plain state dict of something else may have more names; then it is not a network of this project.
    wrong = sorted(name for name in set(expected) | set(shapes) if expected.get(name) != shapes.get(name))
    wrong = [name for name in wrong if name in shapes or not name.endswith('num_batches_tracked')]
    if wrong:
        raise ValueError(f'{checkpoint} is not a complete network: {", ".join(wrong[:5])} are missing or do not belong')
    text = space.format(arch)
    if metadata.get('arch', text) != text:
        raise ValueError(f'{checkpoint} states architecture {metadata["arch"]}, but its shapes are those of {text}')
    return net, space, text


def describe(
    checkpoint: Path, metadata: dict[str, str], kind: str, space: SearchSpace, arch: str | None, classes: int
) -> dict[str, Any]:
    """What a published file states: kind, arch, space, classes, origin, licence, version.

    Args:
        checkpoint: File that the weights come from; its name and hash are recorded, unless it names its own source.
        metadata: The strings of that file.
        kind: Kind of the model.
        space: Its space.
        arch: Its architecture; None for a supernet.
        classes: Its classes; 0 for none.
    """
    return {
        'kind': kind,
        'arch': arch,
        'space': json.dumps(space.to_dict()),
        'num_classes': classes,
        'source': metadata.get('source', checkpoint.name),
        'source_sha256': metadata.get('source_sha256') or file_sha256(checkpoint),
        'licence': metadata.get('licence', 'not stated'),
        'version': pinas_zoo.__version__,
    }


def _preprocess(content: Checkpoint, checkpoint: Path) -> dict[str, Any]:
    """timm's settings of the input: those of the checkpoint, otherwise those of the zoo's file that it is."""
    if stated := content.dataset_meta.get('preprocess'):
        return dict(stated)
    facts = {file_sha256(checkpoint), *(content.metadata.get(key) for key in ('source', 'source_sha256'))} - {None}
    for entry in entries().values():
        of_entry = {entry.sha256, *((entry.released.file, entry.released.sha256) if entry.released else ())}
        if facts & of_entry:
            return {'mean': list(IMAGENET_DEFAULT_MEAN), 'std': list(IMAGENET_DEFAULT_STD)} | entry.preprocess
    return {}


def _config(
    space: SearchSpace, arch: str, net: dict[str, Tensor], classes: int, licence: str, preprocess: dict[str, Any]
) -> dict[str, Any]:
    """timm's config.json."""
    architecture = NAMED.get((space.name, arch), 'pinas_nano' if space == PINAS_NANO else 'pinas')
    arguments: dict[str, Any] = {} if architecture in NAMED.values() else {'arch': arch}
    if architecture == 'pinas' and space != PINAS:
        arguments['space'] = space.to_dict()
    chans = net['conv1.0.weight'].shape[1] // space.stem_patch**2
    if chans != 3:
        arguments['in_chans'] = chans
    settings = {
        'input_size': [chans, space.input_size, space.input_size],
        'num_classes': classes,
        'first_conv': 'conv1.0',
        'classifier': 'fc',
        'license': licence,
        **preprocess,
    }
    # Our sources return grey images as three equal channels, which `preprocess` then states.
    settings['input_size'] = [chans, *settings['input_size'][1:]]
    settings |= {key: settings[key][:chans] for key in ('mean', 'std') if key in settings}
    return {
        'architecture': architecture,
        'num_classes': classes,
        'num_features': space.num_features,
        'pretrained_cfg': settings,
        **({'model_args': arguments} if arguments else {}),
    }


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Uploads a published folder to the Hugging Face Hub, which needs a token with write access.

    Args:
        folder: timm's hub folder, as `publish` wrote it.
        repository: 'USER/NAME'; created if it is missing.
        private: Whether a new repository is private.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: The token is missing, or nothing was published into the folder.
        huggingface_hub.errors.HfHubHTTPError: The hub refused it.
    """
    if not Path(folder, 'config.json').is_file():
        raise ValueError(f'{folder} has no config.json: publish into it first')
    if get_token() is None:
        raise ValueError(f'{repository} needs a token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN')
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=['*.pth']))


def _strings(facts: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in facts.items()}


def _write_mmengine(folder: Path, name: str, state: dict[str, Tensor], meta: dict[str, str]) -> Path:
    """mmengine's form: only weights and metadata, with the first eight digits of the hash in the name."""
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    buffer = BytesIO()  # torch.save into a file writes the file's name into it: the hash would change from call to call
    torch.save({'state_dict': plain, 'meta': meta}, buffer)
    path = folder / f'{name}-{sha256(buffer.getbuffer()).hexdigest()[:8]}.pth'
    write_bytes(path, buffer.getvalue())
    return path
