_base_ = "../finetune.py"

_data = dict(type="tokensparse.TinyImageNetDataset", root="data/tiny-imagenet-200")
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = val_dataloader
