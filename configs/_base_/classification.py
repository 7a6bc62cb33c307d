val_evaluator = dict(type="tokensparse.Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type="tokensparse.AutocastOptimWrapper",
    precision="auto",
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(
            pos_embed=dict(decay_mult=0.0),
            relative_position_bias_table=dict(decay_mult=0.0),
            cls_token=dict(decay_mult=0.0),
            dist_token=dict(decay_mult=0.0),
            reg_token=dict(decay_mult=0.0),
        ),
    ),
)
