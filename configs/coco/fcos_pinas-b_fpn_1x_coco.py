# FCOS 1x (centre sampling, GIoU) in mmdet's form, for a pre-trained backbone. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
# From scratch: model.backbone.frozen_stages=-1 model.backbone.norm_eval=False
_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    '../_base_/models/mmdet_parts.py',
]

model = dict(
    data_preprocessor=dict(  # the base expects a Caffe network's BGR
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=_base_.pinas_b,
)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
