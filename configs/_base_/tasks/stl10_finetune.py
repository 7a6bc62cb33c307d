_base_ = "../finetune.py"

_data = dict(type="tokensparse.STL10Dataset", root="data/stl10")
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = val_dataloader
