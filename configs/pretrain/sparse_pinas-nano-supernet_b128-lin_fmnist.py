# Sparse supernet on the nano space, re-implementation with our own constants; at the cost of SPOS there:
# 18 steps of warm-up x 4 path units, then 77 pairs of weight and architecture steps x 8 (at most).
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.SparseSupernet', warmup_steps=18))
train_dataloader = dict(dataset=dict(dataset=dict(type='pinas_zoo.HalvedView')))
train_cfg = dict(max_iters=95)
optim_wrapper = dict(
    _delete_=True,
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    weights=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=4e-5, fused=True)),
    # Without a schedule: the threshold is the step size times the strength. The strengths rise over half of the pairs.
    arch=dict(optimizer=dict(type='pinas_zoo.AdamProximal', lr=0.005, momentum=0.5, l1=1.5, l2=0.3, ramp=38)),
)
param_scheduler = dict(
    _delete_=True,
    weights=dict(type='LinearLR', start_factor=1.0, end_factor=0.0, begin=0, end=95, by_epoch=False),
    arch=[],
)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=50))
