# Labelled small images as the linear stage and trainings of one network on a CPU read them; a config adds the source,
# the size and the batch size.
_base_ = './runtime.py'

train_dataloader = dict(
    num_workers=0,
    sampler=dict(type='pinas_zoo.StatelessSampler', shuffle=True),
    dataset=dict(type='pinas_zoo.SeededDataset', dataset=dict(type='pinas_zoo.SupervisedView', finish=False)),
    collate_fn=dict(type='pinas_zoo.default_collate'),
)
