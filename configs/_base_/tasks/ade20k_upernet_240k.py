# The same as for 160,000 iterations, for 240,000.
_base_ = "ade20k_upernet_160k.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=240000, by_epoch=False),
]
train_cfg = dict(max_iters=240000, val_interval=24000)
default_hooks = dict(checkpoint=dict(interval=24000, max_keep_ckpts=2))
