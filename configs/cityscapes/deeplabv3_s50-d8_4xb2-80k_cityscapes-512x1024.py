# Baseline: mmseg's ResNeSt-50 (radix 2) with its public ImageNet weights instead of pinas_b, all else equal.
_base_ = './deeplabv3_pinas-b-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(pretrained='open-mmlab://resnest50', backbone=_base_.resnest50_d8)
