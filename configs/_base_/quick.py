custom_imports = dict(imports=["tokensparse", "tokensparse.dense.datasets"])
randomness = dict(seed=0, deterministic=False)
optim_wrapper = dict(
    type="OptimWrapper",  # fp32: mmcv's NMS has no bf16 on a CPU
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={"relative_position_bias_table": dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", begin=0, end=4, eta_min_ratio=0.01, convert_to_iter_based=True),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
