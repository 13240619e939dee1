# AttentiveNAS, BestUp-3 by loss, on the nano space at the cost of SPOS there: 6 path units per step. One bin, since its
# paths cost about the same. The other arms: model.method.arm=worst, uniform (4 units), random (4 units, no sandwich).
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.AttentiveNAS', arm='best', candidates=3, subnets=4, bins=1))
train_cfg = dict(max_iters=115)
# As released, 0.1 at a batch of 256, scaled; its warm-up of 5 in 360 epochs would be 2 steps and is left out.
optim_wrapper = dict(
    optimizer=dict(lr=0.05, nesterov=True, weight_decay=1e-5),
    clip_grad=dict(type='value', clip_value=1.0),
)
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=115, by_epoch=False)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=50))
