# RLNAS on the nano space, at the cost of SPOS there: random labels of 2,000 images, 44 epochs.
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.RLNAS'))
train_dataloader = dict(dataset=dict(dataset=dict(source=dict(limit=2000))))
optim_wrapper = dict(clip_grad=dict(type='value', clip_value=5.0))
