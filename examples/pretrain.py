"""Unsupervised pre-training of a Pi-NAS supernet on a folder of images, in plain PyTorch.

    python examples/pretrain.py data/imagenet/train --epochs 100 --out supernet.pth

A step takes four views of each image and two paths that differ at every position. The query of one path is compared
with the key of the other, which a mean teacher embeds, against a queue of negative keys (Peng et al., ICCV 2021,
section 3). All of that is `PiNAS.loss`; the rest is an ordinary training loop. The linear stage and the search continue
from the file.

For several GPUs, exact resuming and logs: `pinas train configs/pretrain/pinas-supernet_8xb24-coslr-100e_in1k.py`.
"""

import argparse
from pathlib import Path

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from pinas_zoo.data import FolderSource, FourViews
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import SPACES


def pretrain(args: argparse.Namespace) -> SuperNet:
    """Trains a supernet and returns it."""
    torch.manual_seed(args.seed)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')

    views = FourViews(FolderSource(args.images), size=args.size)
    loader = DataLoader(
        views, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers, pin_memory=device.type == 'cuda'
    )
    if len(loader) == 0:
        raise SystemExit(
            f'{args.images}: {len(views)} images are fewer than one batch of {args.batch_size}: lower --batch-size'
        )

    supernet = SuperNet(args.space)
    method = PiNAS(supernet, queue_length=args.queue, momentum=args.momentum, seed=args.seed).to(device).train()
    optimizer = torch.optim.SGD(method.param_groups()['weights'], lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = CosineAnnealingLR(optimizer, T_max=args.epochs * len(loader))

    step = 0
    for epoch in range(args.epochs):
        for batch in loader:
            images = batch['views'].to(device, non_blocking=True)  # (N, 4, 3, H, W)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
                losses = method.loss({'views': images}, step)  # the step decides which two paths are drawn
            optimizer.zero_grad()  # to None: blocks that are not on the paths neither move nor decay
            losses['loss'].backward()
            optimizer.step()
            scheduler.step()
            if step % args.log_every == 0:
                paths = ' '.join(map(supernet.space.format, method.paths(step)))
                # The standard deviation of the embeddings is about 1; near 0 they have collapsed.
                logged = {name: f'{value:.3f}' for name, value in losses.items()}
                print(f'epoch {epoch + 1}/{args.epochs} step {step} {logged} paths {paths}', flush=True)
            step += 1
    return supernet


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and adds every default."""


def main() -> None:
    """Reads the options, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument('images', help='folder of images, in subfolders or not; labels are not used')
    parser.add_argument('--out', type=Path, default=Path('supernet.pth'), help='checkpoint to write')
    parser.add_argument('--space', choices=sorted(SPACES), default='pinas', help='search space')
    parser.add_argument('--size', type=int, default=224, help='side of the views in px')
    parser.add_argument('--epochs', type=int, default=100, help='passes over the images')
    parser.add_argument('--batch-size', type=int, default=192, help='images per step, on one device')
    parser.add_argument('--lr', type=float, default=0.03, help="learning rate, the paper's for 192 images")
    parser.add_argument('--queue', type=int, default=49152, help='negative keys')
    parser.add_argument('--momentum', type=float, default=0.999, help='of the mean teacher; lower for short runs')
    parser.add_argument('--workers', type=int, default=8, help='processes that read images')
    parser.add_argument('--seed', type=int, default=0, help='seed of paths, weights and order')
    parser.add_argument('--log-every', type=int, default=50, metavar='STEPS', help='steps between lines')
    args = parser.parse_args()

    supernet = pretrain(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': supernet.cpu().state_dict()}, args.out)
    print(f'{args.out}: supernet of the space {args.space}')


if __name__ == '__main__':
    main()
