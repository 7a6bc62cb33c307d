"""UPerNet of mmseg, narrowed, on DigitScenes: 64 channels, crops of 128 px, classes weighted."""

_base_ = [
    __import__("mmseg").__path__[0] + "/.mim/configs/_base_/models/upernet_swin.py",
    __import__("mmseg").__path__[0] + "/.mim/configs/_base_/default_runtime.py",
    "../quick.py",
]

_norm = dict(type="BN", requires_grad=True)
_loss = dict(
    type="CrossEntropyLoss",
    use_sigmoid=False,
    class_weight=[0.2] + [1.0] * 10,  # nine tenths of the pixels are background
)
model = dict(
    data_preprocessor=dict(size=(128, 128), test_cfg=dict(size_divisor=32)),
    backbone=dict(_delete_=True, type="tokensparse.SwinTransformer", out_indices=(0, 1, 2, 3)),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=64,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=dict(loss_weight=1.0, **_loss),
    ),
    auxiliary_head=dict(
        in_channels=128,
        channels=64,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=dict(loss_weight=0.4, **_loss),
    ),
)
_train_pipeline = [  # whole scenes are learnt by heart: 86 % of digit pixels right, 71 % in new ones
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(192, 192), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="PackSegInputs"),
]
_test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="tokensparse.DigitScenesSegmentation", split="train", pipeline=_train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="tokensparse.DigitScenesSegmentation", split="val", pipeline=_test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(type="tokensparse.AutocastOptimWrapper", precision="auto")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", begin=0, end=30, eta_min_ratio=0.01, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30, val_interval=2)
log_processor = dict(by_epoch=True)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="tokensparse.ProgressHook", metric="mIoU"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
