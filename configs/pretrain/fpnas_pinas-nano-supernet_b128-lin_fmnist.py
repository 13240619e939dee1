# FP-NAS on the nano space, re-implementation with our own constants; at the cost of SPOS there or less: 100 steps of
# warm-up x 1 path unit, then 118 x 5 (3 samples of 5/3 units; 2 samples once the entropy has fallen).
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.FPNAS', warmup_steps=100, samples_per_nat=0.25, temperature=10.0))
train_dataloader = dict(dataset=dict(dataset=dict(type='pinas_zoo.HalvedView')))
train_cfg = dict(max_iters=218)
optim_wrapper = dict(
    _delete_=True,
    constructor='pinas_zoo.MethodOptimWrapperConstructor',
    weights=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=4e-5, fused=True)),
    arch=dict(optimizer=dict(type='Adam', lr=0.01, betas=(0.5, 0.999))),
)
param_scheduler = dict(
    _delete_=True,
    weights=dict(type='LinearLR', start_factor=1.0, end_factor=0.0, begin=0, end=218, by_epoch=False),
    arch=[],
)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=50))
