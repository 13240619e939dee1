# Baseline: mmdet's ResNeSt-50 (radix 2) with its public ImageNet weights instead of pinas_b, all else equal.
_base_ = './mask-rcnn_pinas-b_fpn_1x_coco.py'

model = dict(
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
        frozen_stages=-1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnest50'),
    )
)
