# Unsupervised Pi-NAS supernet of the nano space on grey 28 px images, sized for two CPU cores.
_base_ = '../_base_/runtime.py'

model = dict(
    type='pinas_zoo.SupernetPretraining',
    space='pinas_nano',
    channels_last=True,
    # A short run on few images: a shorter queue, and a teacher that follows faster than the paper's 0.999.
    method=dict(type='pinas_zoo.PiNAS', dim=64, queue_length=4096, momentum=0.99, temperature=0.2),
)
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type='pinas_zoo.StatelessSampler', shuffle=True),
    dataset=dict(
        type='pinas_zoo.SeededDataset',
        dataset=dict(
            type='pinas_zoo.BatchedViews',
            size=28,
            source=dict(kind='fashion-mnist', split='train', limit=20000),
        ),
    ),
    collate_fn=dict(type='pinas_zoo.collate_views'),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=260)
optim_wrapper = dict(
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4, fused=True),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=260, eta_min=0, by_epoch=False)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=128)
