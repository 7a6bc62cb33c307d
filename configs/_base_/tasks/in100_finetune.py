_base_ = "../finetune.py"

_data = dict(type="tokensparse.ImageNet100Dataset", root="data/imagenet100")
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=dict(**_data, augment=dict(crop_pct=0.875)))
test_dataloader = val_dataloader
