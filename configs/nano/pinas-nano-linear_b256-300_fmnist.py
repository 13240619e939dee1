# Linear stage of the supernet under checkpoints/.
_base_ = '../quickstart/pinas-nano-linear_b256_fmnist.py'

model = dict(supernet='work_dirs/nano/pretrain')
train_dataloader = dict(dataset=dict(dataset=dict(source=dict(limit=50000))))
train_cfg = dict(max_iters=300)
param_scheduler = dict(milestones=[180, 240])
