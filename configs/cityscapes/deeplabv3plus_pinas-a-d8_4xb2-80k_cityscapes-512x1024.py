# DeepLabV3+ in mmseg's form on Cityscapes, 80k, 512x1024 with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './deeplabv3plus_pinas-b-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
