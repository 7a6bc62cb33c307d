_base_ = "../finetune.py"

_data = dict(type="tokensparse.CIFARDataset", root="data/cifar10", num_classes=10)
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = val_dataloader
