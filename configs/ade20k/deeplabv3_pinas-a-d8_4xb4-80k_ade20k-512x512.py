# DeepLabV3 in the paper's form on ADE20K, 80k with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './deeplabv3_pinas-b-d8_4xb4-80k_ade20k-512x512.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
