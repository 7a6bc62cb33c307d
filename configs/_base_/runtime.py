default_scope = "mmengine"
custom_imports = dict(imports=["tokensparse"])
default_hooks = dict(
    logger=dict(type="tokensparse.ProgressHook"),
    checkpoint=dict(
        type="CheckpointHook",
        interval=1,
        max_keep_ckpts=2,
        save_best="accuracy/top1",
        rule="greater",
    ),
)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="TensorboardVisBackend")])
log_processor = dict(by_epoch=True)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
randomness = dict(seed=0, deterministic=False)
