# Stand-alone training of one patch network with a short budget, for the shortlist: the recipe of the ranking study.
_base_ = '../_base_/small_labelled.py'

size = (20, 40)
model = dict(
    type='pinas_zoo.Classifier',
    model=dict(model_name='pinas', space='pinas_patch', arch='33-33'),
    num_classes='from data',  # as in the data
    zero_init_last=True,
    channels_last=True,
)
model_wrapper_cfg = dict(_delete_=True, type='MMDistributedDataParallel', find_unused_parameters=False)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        dataset=dict(
            source=dict(kind='pairs', split='train', items_limit=50000, pairs=50000), size=size, shift=2, train=True
        )
    ),
)
# Used for the choice; the test items are for the report.
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='pinas_zoo.SupervisedView',
        source=dict(kind='pairs', split='train', items_start=50000, items_limit=5000, pairs=4000),
        size=size,
    ),
    collate_fn=dict(type='pinas_zoo.default_collate'),
)
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='pinas_zoo.SupervisedView', source=dict(kind='pairs', split='test', pairs=5000), size=size),
    collate_fn=dict(type='pinas_zoo.default_collate'),
)
val_evaluator = dict(type='pinas_zoo.TopAccuracy', topk=(1,))
test_evaluator = val_evaluator
max_iters = 1000
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True),
    clip_grad=dict(max_norm=2.0, foreach=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, eta_min=0, by_epoch=False),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='pinas_zoo.ExponentialMovingAverage', momentum=0.02, update_buffers=True),
    dict(type='pinas_zoo.NonFiniteGuardHook'),
    dict(type='pinas_zoo.PathLogHook'),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500))
auto_scale_lr = dict(base_batch_size=32)
