# What all our configs share: checkpoints that resume exactly, guard and logs, all counted in iterations. The loop
# (ExactIterLoop), the sampler and the seeded data set are named by each config: what it says is what runs.
default_scope = 'pinas_zoo'
default_hooks = dict(
    runtime_info=dict(type='pinas_zoo.LateInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='pinas_zoo.ExactCheckpointHook', interval=1000, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='pinas_zoo.NonFiniteGuardHook'), dict(type='pinas_zoo.PathLogHook')]
# Only the modules of the drawn paths get gradients; BN buffers differ between ranks, rank 0's are saved.
model_wrapper_cfg = dict(
    type='pinas_zoo.MethodDistributedDataParallel', find_unused_parameters=True, broadcast_buffers=False
)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl', timeout=7200))
# JSON lines for our tools, and TensorBoard; to use Weights & Biases instead:
# --cfg-options visualizer.vis_backends.1.type=WandbVisBackend
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
log_level = 'INFO'
