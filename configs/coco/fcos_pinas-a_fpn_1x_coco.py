# FCOS 1x (centre sampling, GIoU) in mmdet's form with pinas_a (Pi-NAS-cls). Not trained here.
_base_ = './fcos_pinas-b_fpn_1x_coco.py'

model = dict(backbone=dict(arch='301-3231-203213-032'))
