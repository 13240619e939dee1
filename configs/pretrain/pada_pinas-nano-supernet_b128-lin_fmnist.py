# PA&DA's path sampling on the nano space, at the cost of SPOS there.
_base_ = './spos_pinas-nano-supernet_b128-lin_fmnist.py'

model = dict(method=dict(type='pinas_zoo.PADA', steps=693, interval=12))
