# EnTranNAS on the nano space, re-implementation with our own constants; at the cost of SPOS there:
# 93 steps of warm-up x 1 path unit, then 171 pairs of weight and architecture steps x 3.5, two engine positions each.
_base_ = './sparse_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(
    method=dict(type='pinas_zoo.EnTranNAS', warmup_steps=93, engines=2, temperatures=(5.0, 0.5), anneal_steps=171)
)
train_cfg = dict(max_iters=264)
# 43 steps move each position's parameters, far fewer than in the paper's setting: a larger rate than the usual 3e-4.
optim_wrapper = dict(
    arch=dict(optimizer=dict(_delete_=True, type='Adam', lr=0.05, betas=(0.5, 0.999), weight_decay=0.0))
)
param_scheduler = dict(weights=dict(end=264))
