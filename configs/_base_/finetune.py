"""Fine-tuning at 224 px as SparseSwin does it (arXiv:2309.05224); a task adds its data."""

_base_ = "classification.py"

_loader = dict(
    collate_fn=dict(type="default_collate"),
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    persistent_workers=True,
)
train_dataloader = dict(
    dataset=dict(
        split="train",
        img_size=224,
        augment=dict(color_jitter=0.0, interpolation="bilinear"),
    ),
    sampler=dict(type="DefaultSampler", shuffle=True),
    drop_last=True,
    **_loader,
)
val_dataloader = dict(
    dataset=dict(
        split="val",
        img_size=224,
        augment=dict(crop_pct=1.0, interpolation="bilinear"),
    ),
    sampler=dict(type="DefaultSampler", shuffle=False),
    **_loader,
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.01, fused=True))
train_cfg = dict(by_epoch=True, max_epochs=100)
