_base_ = "../classification.py"

train_dataloader = dict(
    dataset=dict(
        type="tokensparse.DigitsDataset",
        split="train",
        img_size=64,
        augment=dict(hflip=0.0, color_jitter=0.0, scale=(0.7, 1.0), ratio=(0.85, 1.18)),
    ),
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    batch_size=64,
    num_workers=0,
    drop_last=True,
)
val_dataloader = dict(
    dataset=dict(
        type="tokensparse.DigitsDataset", split="val", img_size=64, augment=dict(crop_pct=1.0)
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    batch_size=64,
    num_workers=0,
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=10, eta_min_ratio=0.01, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=10)
