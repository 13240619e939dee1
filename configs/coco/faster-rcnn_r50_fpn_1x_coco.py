# Baseline: Faster R-CNN 1x on mmdet's ResNet-50 with its public ImageNet weights, on the same schedule.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
