# Unsupervised Pi-NAS supernet of the nano space on grey 28 px images, sized for two CPU cores.
_base_ = '../_base_/small_pinas.py'

model = dict(space='pinas_nano', method=dict(queue_length=4096))
train_dataloader = dict(
    batch_size=128,
    dataset=dict(dataset=dict(size=28, source=dict(kind='fashion-mnist', split='train', limit=20000))),
)
train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=260)
optim_wrapper = dict(
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4, fused=True),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=260, eta_min=0, by_epoch=False)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=128)
