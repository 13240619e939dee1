# DeepLabV3 in the paper's form on Cityscapes, 40k, 512x1024. Not trained here.
_base_ = './deeplabv3_pinas-b-d8_4xb2-80k_cityscapes-512x1024.py'

train_cfg = dict(max_iters=40000, val_interval=4000)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=40000, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=4000))
