# Unsupervised Pi-NAS on small images on a CPU: a short run on few of them, so the queue is shorter, and the teacher
# follows faster than at the paper's 0.999. A config adds the space, the source, the queue length and the schedule.
_base_ = './runtime.py'

model = dict(
    type='pinas_zoo.SupernetPretraining',
    channels_last=True,
    method=dict(type='pinas_zoo.PiNAS', dim=64, momentum=0.99, temperature=0.2),
)
train_dataloader = dict(
    num_workers=0,
    sampler=dict(type='pinas_zoo.StatelessSampler', shuffle=True),
    dataset=dict(type='pinas_zoo.SeededDataset', dataset=dict(type='pinas_zoo.BatchedViews')),
    collate_fn=dict(type='pinas_zoo.collate_views'),
)
