_base_ = "../classification.py"

train_dataloader = dict(
    dataset=dict(
        type="tokensparse.ImageNetDataset",
        root="data/imagenet",
        split="train",
        img_size=224,
        augment=dict(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4),
    ),
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    persistent_workers=True,
    drop_last=True,
)
val_dataloader = dict(
    dataset=dict(
        type="tokensparse.ImageNetDataset",
        root="data/imagenet",
        split="val",
        img_size=224,
        augment=dict(crop_pct=0.875),
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    persistent_workers=True,
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
auto_scale_lr = dict(base_batch_size=1024, enable=True)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", begin=20, end=300, eta_min_ratio=0.01, convert_to_iter_based=True
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300)
