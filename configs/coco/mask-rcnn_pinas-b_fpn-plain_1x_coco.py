# Mask R-CNN 1x in mmdet's form, for a pre-trained backbone. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
# From scratch: model.backbone.frozen_stages=-1 model.backbone.norm_eval=False
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/models/mmdet_parts.py']

model = dict(backbone=_base_.pinas_b)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
