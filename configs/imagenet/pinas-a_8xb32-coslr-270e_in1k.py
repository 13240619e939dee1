# Retraining of a searched network from scratch: the ResNeSt recipe (lr 0.1 per 256 images, 270 epochs).
_base_ = '../_base_/imagenet.py'

model = dict(
    type='pinas_zoo.Classifier',
    model=dict(model_name='pinas_a', drop_rate=0.2),
    num_classes=1000,
    mixup=0.2,
    label_smoothing=0.1,
)
model_wrapper_cfg = dict(_delete_=True, type='MMDistributedDataParallel', find_unused_parameters=False)
data = dict(kind='folder', root='data/imagenet/train')
val = dict(kind='folder', root='data/imagenet/val')
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        dataset=dict(type='pinas_zoo.SupervisedView', source=data, size=224, train=True, augment='autoaugment')
    ),
    collate_fn=dict(type='pinas_zoo.default_collate'),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    worker_init_fn=dict(type='pinas_zoo.end_with_parent'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='pinas_zoo.SupervisedView', source=val, size=224),
    collate_fn=dict(type='pinas_zoo.default_collate'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='pinas_zoo.TopAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_epochs=270, val_interval=10)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='pinas_zoo.AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=265, by_epoch=True, begin=5, end=270, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='pinas_zoo.ExponentialMovingAverage', momentum=1e-4, update_buffers=True),
    dict(type='pinas_zoo.NonFiniteGuardHook'),
    dict(type='pinas_zoo.PathLogHook'),
]
default_hooks = dict(checkpoint=dict(interval=5000, save_best='accuracy/top1', rule='greater'))
auto_scale_lr = dict(base_batch_size=256)
