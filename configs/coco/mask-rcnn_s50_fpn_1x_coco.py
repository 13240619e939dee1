# Baseline: mmdet's ResNeSt-50 (radix 2) with its public ImageNet weights instead of pinas_b, all else equal.
_base_ = ['./mask-rcnn_pinas-b_fpn_1x_coco.py', '../_base_/models/resnest50.py']

model = dict(
    backbone=dict(
        _base_.resnest50,
        frozen_stages=-1,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnest50'),
    )
)
