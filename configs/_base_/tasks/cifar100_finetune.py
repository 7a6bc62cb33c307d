_base_ = "../finetune.py"

_data = dict(type="tokensparse.CIFARDataset", root="data/cifar100", num_classes=100)
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = val_dataloader
