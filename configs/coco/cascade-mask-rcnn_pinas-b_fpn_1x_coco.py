# Cascade Mask R-CNN 1x in mmdet's form, for a pre-trained backbone. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
# From scratch: model.backbone.frozen_stages=-1 model.backbone.norm_eval=False
_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        arch='333-3113-330011-021',
        frozen_stages=1,  # as mmdet does with ResNet-50
        norm_eval=True,
    )
)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
