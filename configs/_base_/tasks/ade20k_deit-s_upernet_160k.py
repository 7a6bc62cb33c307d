# ADE20K by UPerNet as mmseg trains DeiT-S: four maps of one size, levels by mmseg's MultiLevelNeck.
# mmengine finds "mmseg::" only where the distribution is called mmsegmentation; this finds both.
_base_ = (
    __import__("mmseg").__path__[0]
    + "/.mim/configs/vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py"
)

custom_imports = dict(imports=["tokensparse"])
model = dict(pretrained=None)
