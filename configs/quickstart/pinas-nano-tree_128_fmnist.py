# Search in the nano supernet. A tree for 128 evaluations grows earlier than the paper's for 1,000.
space = 'pinas_nano'
num_classes = 'from data'
searcher = dict(
    name='tree', initial=48, heights=(56, 72, 96, 120), min_samples=8, estimators=24, depth=2, max_draws=4096
)
budget = 128
channels_last = True
calibration = dict(
    view=dict(source=dict(kind='fashion-mnist', split='train', limit=20000), size=28),
    batch_size=128,
    batches=3,
    in_memory=True,
)
# Training images that no earlier stage has seen.
evaluation = dict(
    view=dict(source=dict(kind='fashion-mnist', split='train', start=50000, limit=1000), size=28),
    batch_size=500,
    in_memory=True,
)
