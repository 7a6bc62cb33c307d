_base_ = "../classification.py"

train_dataloader = dict(
    dataset=dict(
        type="tokensparse.FashionMNISTDataset",
        root="data/fashion-mnist",
        split="train",
        img_size=28,
        augment=dict(hflip=0.5, color_jitter=0.0, scale=(0.9, 1.0), ratio=(0.95, 1.05)),
    ),
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    batch_size=32,
    num_workers=0,
    drop_last=True,
)
val_dataloader = dict(
    dataset=dict(
        type="tokensparse.FashionMNISTDataset",
        root="data/fashion-mnist",
        split="val",
        img_size=28,
        augment=dict(crop_pct=1.0),
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    batch_size=100,
    num_workers=0,
)
test_dataloader = val_dataloader

# At the common rate a schedule this short ends before the position table has grown.
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(lr_mult=10.0, decay_mult=0.0))),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=0.2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", begin=0.2, end=2, eta_min_ratio=0.01, convert_to_iter_based=True
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=2)
