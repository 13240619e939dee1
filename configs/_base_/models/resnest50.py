# A baseline: ResNeSt-50 with radix 2, as mmdet and mmseg define it. Configs name the value; nothing else reads it.
resnest50 = dict(
    _delete_=True,
    type='ResNeSt',
    stem_channels=64,
    depth=50,
    radix=2,
    reduction_factor=4,
    avg_down_stride=True,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    norm_eval=False,
    style='pytorch',
)
