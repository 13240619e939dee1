# Written by tools/publish_zoo.py. Trained with
# pinas-nano-supernet_b128-coslr-1k_fmnist.py
# pinas-nano-linear_b256-300_fmnist.py
arch = '30-02-00-10'
calibration = dict(
    batch_size=128,
    batches=3,
    in_memory=True,
    view=dict(size=28, source=dict(kind='fashion-mnist', limit=50000, split='train')),
)
channels_last = True
evaluation = dict(
    batch_size=500,
    in_memory=True,
    view=dict(size=28, source=dict(kind='fashion-mnist', limit=2000, split='train', start=50000)),
)
num_classes = 10
space = 'pinas_nano'
