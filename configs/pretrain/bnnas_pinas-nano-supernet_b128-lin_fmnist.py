# BN-NAS, variant R, on the nano space: a tenth of SPOS's steps there, as in the paper; 69 x 2/3 path units.
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.BNNAS', variant='R'))
train_cfg = dict(max_iters=69)
# As released, 0.25 at a batch of 512, scaled; without decay, which BN must not have; gradients clipped by value.
optim_wrapper = dict(
    optimizer=dict(lr=0.0625, weight_decay=0.0),
    clip_grad=dict(type='value', clip_value=5.0),
)
param_scheduler = dict(end_factor=0.002, end=69)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=50))
