_base_ = "in1k_deit.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", begin=20, end=300, eta_min_ratio=0.01, convert_to_iter_based=True
    ),
]
