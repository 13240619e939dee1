# PSPNet in mmseg's form on Cityscapes, 80k, 769x769. Not trained here.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-769x769.py', '../_base_/models/mmseg_parts.py']

model = dict(pretrained=None, backbone=_base_.pinas_b_d8)  # the base's pretrained is for ResNet
auto_scale_lr = dict(enable=False, base_batch_size=8)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
