# DeepLabV3 in the paper's form on Cityscapes, 80k, 769x769 with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './deeplabv3_pinas-b-d8_4xb2-80k_cityscapes-769x769.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
