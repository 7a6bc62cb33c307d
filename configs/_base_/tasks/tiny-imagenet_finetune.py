_base_ = "../classification.py"

train_dataloader = dict(
    dataset=dict(
        type="tokensparse.TinyImageNetDataset",
        root="data/tiny-imagenet-200",
        split="train",
        img_size=224,
        augment=dict(color_jitter=0.0, interpolation="bilinear"),
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
        type="tokensparse.TinyImageNetDataset",
        root="data/tiny-imagenet-200",
        split="val",
        img_size=224,
        augment=dict(crop_pct=1.0, interpolation="bilinear"),
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    persistent_workers=True,
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.01, fused=True))
train_cfg = dict(by_epoch=True, max_epochs=100)
