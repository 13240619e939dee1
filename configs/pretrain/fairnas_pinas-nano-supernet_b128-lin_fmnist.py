# FairNAS on the nano space, at the cost of SPOS there: four paths per step.
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.FairNAS'))
train_cfg = dict(max_iters=173)
param_scheduler = dict(end=173)
