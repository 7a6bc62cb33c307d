# ADE20K by UPerNet as mmseg trains Swin: AdamW 6e-5, weight decay 0.01, linear decay, 1,500 iterations
# of warm-up, batch 16, 160,000 iterations.
# mmengine finds "mmseg::" only where the distribution is called mmsegmentation; this finds both.
_base_ = (
    __import__("mmseg").__path__[0]
    + "/.mim/configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
)

custom_imports = dict(imports=["tokensparse"])
