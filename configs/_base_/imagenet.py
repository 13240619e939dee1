# How trainings on ImageNet read their images: 8 workers per process that end with it, whole batches, seeded samples; a
# config adds the data set, the batch size and the collation.
_base_ = './runtime.py'

train_dataloader = dict(
    num_workers=8,
    worker_init_fn=dict(type='pinas_zoo.end_with_parent'),
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='pinas_zoo.StatelessSampler', shuffle=True),
    dataset=dict(type='pinas_zoo.SeededDataset'),
)
