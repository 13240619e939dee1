# Mask R-CNN in the paper's form, detectron2's 1x: 8 x 2 images, 90k iterations, multi-scale 640-800. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = ['mmdet::common/ms-poly-90k_coco-instance.py', 'mmdet::_base_/models/mask-rcnn_r50_fpn.py']

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        arch='333-3113-330011-021',
        frozen_stages=-1,  # mmdet freezes the stem, one stage and all statistics; the paper freezes nothing
        norm_cfg=norm_cfg,
        norm_eval=False,
    ),
    neck=dict(norm_cfg=norm_cfg),  # with a norm its convolutions have no bias
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),  # of the four convolutions; the deconvolution and the RPN have none
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
