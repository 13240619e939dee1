# DeepLabV3 in mmseg's form on ADE20K, 160k. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = 'mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-160k_ade20k-512x512.py'

model = dict(
    pretrained=None,  # the base's is for ResNet
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        arch='333-3113-330011-021',
        output_stride=8,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
