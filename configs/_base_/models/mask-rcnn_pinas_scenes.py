# Mask R-CNN with few channels for composed scenes; a config adds the space, its widths and its strides.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='pinas_zoo.PiNASBackbone'),
    roi_head=dict(
        bbox_head=dict(fc_out_channels=256, num_classes='from data'),
        mask_head=dict(num_classes='from data'),
    ),
    train_cfg=dict(rpn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=200)),
)
