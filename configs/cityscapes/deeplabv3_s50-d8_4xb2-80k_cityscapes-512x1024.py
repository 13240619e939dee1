# Baseline: mmseg's ResNeSt-50 (radix 2) with its public ImageNet weights instead of pinas_b, all else equal.
_base_ = './deeplabv3_pinas-b-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(
    pretrained='open-mmlab://resnest50',
    backbone=dict(
        _delete_=True,
        type='ResNeSt',
        stem_channels=64,
        depth=50,
        radix=2,
        reduction_factor=4,
        avg_down_stride=True,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
    ),
)
