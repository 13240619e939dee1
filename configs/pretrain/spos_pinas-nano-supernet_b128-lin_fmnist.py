# SPOS on the nano space, at the cost of the quickstart's Pi-NAS: 260 steps x 8/3 path units.
_base_ = '../_base_/small_labelled.py'

model = dict(
    type='pinas_zoo.SupernetPretraining',
    space='pinas_nano',
    channels_last=True,
    method=dict(type='pinas_zoo.SPOS', num_classes='from data', label_smoothing=0.1),
)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        dataset=dict(source=dict(kind='fashion-mnist', split='train', limit=20000), size=28, train=True, shift=2)
    ),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=693)
optim_wrapper = dict(
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=4e-5, fused=True),
)
param_scheduler = dict(type='LinearLR', start_factor=1.0, end_factor=0.0, begin=0, end=693, by_epoch=False)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=128)
