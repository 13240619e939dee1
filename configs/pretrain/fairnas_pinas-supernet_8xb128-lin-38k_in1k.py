# FairNAS on the paper's space, at the cost of SPOS: four paths per step, so a quarter of its steps.
_base_ = './spos_pinas-supernet_8xb128-lin-150k_in1k.py'

model = dict(method=dict(type='pinas_zoo.FairNAS'))
train_cfg = dict(max_iters=37500)
param_scheduler = dict(end=37500)
