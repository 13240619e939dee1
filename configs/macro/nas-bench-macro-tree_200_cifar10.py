# Search in a NAS-Bench-Macro supernet; the last 5,000 training images score the paths. It was not run.
space = 'nas_bench_macro'
num_classes = 'from data'
searcher = dict(
    name='tree', initial=48, heights=(56, 72, 96, 120), min_samples=8, estimators=24, depth=2, max_draws=4096
)
budget = 200
channels_last = True
calibration = dict(
    view=dict(source=dict(kind='cifar10', split='train', limit=45000), size=32),
    batch_size=128,
    batches=16,
    in_memory=True,
)
evaluation = dict(
    view=dict(source=dict(kind='cifar10', split='train', start=45000, limit=5000), size=32),
    batch_size=500,
    in_memory=True,
)
