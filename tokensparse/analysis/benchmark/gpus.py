"""Peak rates of known GPUs, for the share of them that a model uses (MFU)."""

import torch

#: Name as torch gives it -> 10^12 FLOP/s (2 per multiply-accumulate) of dense products: tensor
#: cores in bf16 and fp16, TF32, plain fp32; None: not supported. From NVIDIA's data sheets, without
#: sparsity. The longest name that fits counts.
PEAK: dict[str, dict[str, float | None]] = {
    "Tesla V100": dict(bf16=None, fp16=125.0, tf32=None, fp32=15.7),
    "Tesla T4": dict(bf16=None, fp16=65.0, tf32=None, fp32=8.1),
    "A10": dict(bf16=125.0, fp16=125.0, tf32=62.5, fp32=31.2),
    "A100": dict(bf16=312.0, fp16=312.0, tf32=156.0, fp32=19.5),
    "L4": dict(bf16=121.0, fp16=121.0, tf32=60.0, fp32=30.3),
    "L40S": dict(bf16=362.0, fp16=362.0, tf32=183.0, fp32=91.6),
    "H100 80GB HBM3": dict(bf16=989.0, fp16=989.0, tf32=494.0, fp32=67.0),
    "H100 PCIe": dict(bf16=756.0, fp16=756.0, tf32=378.0, fp32=51.0),
    "H200": dict(bf16=989.0, fp16=989.0, tf32=494.0, fp32=67.0),
}


def peak_rate(device: str, dtype: str, tf32: bool | None = None) -> float | None:
    """Peak rate of a device.

    Args:
        device: its name, see :func:`tokensparse.analysis.device_name`.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        tf32: whether fp32 products run as TF32; None asks torch.

    Returns:
        FLOP/s, or None for a device that is not in :data:`PEAK`.
    """
    words = device.split()
    found = [name for name in PEAK if _contains(words, name.split())]
    if not found:
        return None
    if dtype == "fp32":
        allowed = torch.backends.cuda.matmul.allow_tf32 if tf32 is None else tf32
        dtype = "tf32" if allowed and PEAK[max(found, key=len)]["tf32"] else "fp32"
    rate = PEAK[max(found, key=len)][dtype]
    return None if rate is None else rate * 1e12


def _contains(words: list[str], name: list[str]) -> bool:
    """Whether ``name`` stands in ``words``, each word whole or before a hyphen (A100-SXM4-80GB)."""
    heads = [word.split("-")[0] for word in words]
    for known in (words, heads):
        for start in range(len(known) - len(name) + 1):
            if known[start : start + len(name)] == name:
                return True
    return False
