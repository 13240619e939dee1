# DeepLabV3 in mmseg's form on ADE20K, 160k with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './deeplabv3-plain_pinas-b-d8_4xb4-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
