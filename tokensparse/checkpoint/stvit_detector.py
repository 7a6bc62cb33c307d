"""The released STViT-R detector, whole: Cascade Mask R-CNN of mmdet 2, in the names of mmdet 3.

The released recipe (arXiv:2303.08685, Sec. 4.2; Swin's for COCO) has an FPN, a region proposal
network and three box heads of four convolutions and one fully connected layer, and three mask
heads. mmdet 3 kept their names and the order of their values: what was renamed between mmdet 1
and 2 (the background class, the order of box offsets) is older. The normalisation of images has no
tensors.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from tokensparse.checkpoint.names import prefixed
from tokensparse.checkpoint.reading import CheckpointError, State
from tokensparse.checkpoint.source import Source, keep_prefix
from tokensparse.checkpoint.stvit import DENSE_RULES, join_queries, stvit_r_settings

Shape = tuple[int, ...]

#: Sizes that every released config shares.
WIDTH, HIDDEN, ROI, ANCHORS, CONVS, STAGES = 256, 1024, 7, 3, 4, 3
_CLASSES = "roi_head.bbox_head.0.fc_cls.weight"
_LISTED = 3


def head_shapes(channels: list[int], classes: int = 80) -> dict[str, Shape]:
    """Shape of every tensor of neck and heads, by name.

    Args:
        channels: of the backbone's maps.
        classes: without background.

    Returns:
        Shapes in the order of mmdet's model.
    """
    shapes: dict[str, Shape] = {}

    def conv(name: str, out: int, dim: int, side: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, dim, side, side)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def linear(name: str, out: int, dim: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, dim), (out,)

    for i, dim in enumerate(channels):
        conv(f"neck.lateral_convs.{i}.conv", WIDTH, dim, 1)
        conv(f"neck.fpn_convs.{i}.conv", WIDTH, WIDTH, 3)
    conv("rpn_head.rpn_conv", WIDTH, WIDTH, 3)
    conv("rpn_head.rpn_cls", ANCHORS, WIDTH, 1)
    conv("rpn_head.rpn_reg", 4 * ANCHORS, WIDTH, 1)
    for stage in range(STAGES):
        box, mask = f"roi_head.bbox_head.{stage}", f"roi_head.mask_head.{stage}"
        linear(f"{box}.fc_cls", classes + 1, HIDDEN)
        linear(f"{box}.fc_reg", 4 * classes, HIDDEN)
        for i in range(CONVS):
            conv(f"{box}.shared_convs.{i}.conv", WIDTH, WIDTH, 3, bias=False)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{box}.shared_convs.{i}.bn.{leaf}"] = (WIDTH,)
            shapes[f"{box}.shared_convs.{i}.bn.num_batches_tracked"] = ()
            conv(f"{mask}.convs.{i}.conv", WIDTH, WIDTH, 3)
        linear(f"{box}.shared_fcs.0", HIDDEN, WIDTH * ROI * ROI)
        conv(f"{mask}.upsample", WIDTH, WIDTH, 2)
        conv(f"{mask}.conv_logits", classes, WIDTH, 1)
    return shapes


def heads(theirs: State) -> State:
    """Neck and heads of a whole checkpoint, by their names in mmdet 3.

    Args:
        theirs: released tensors by name.

    Returns:
        Everything that does not lie in ``backbone.``.

    Raises:
        CheckpointError: a tensor is missing, misshapen or one too many; it names the first ones.
    """
    found = {k: v for k, v in theirs.items() if not k.startswith("backbone.")}
    if len(found) == len(theirs):
        raise CheckpointError(
            "not what the name says. missing: backbone.*: a whole detector is expected; a backbone "
            "alone is stvit-r-det"
        )
    channels = [_norm(theirs, i).shape[0] for i in range(4)]
    classes = found[_CLASSES].shape[0] - 1 if _CLASSES in found and found[_CLASSES].ndim else 80
    wanted = head_shapes(channels, classes)
    _refuse_others(found, wanted)
    return found


def _norm(theirs: Mapping[str, Tensor], index: int) -> Tensor:
    """The norm of one of the backbone's maps, which tells its channels."""
    name = f"backbone.norm{index}.weight"
    if name not in theirs or theirs[name].ndim != 1:
        raise CheckpointError(f"not what the name says. missing or misshapen: {name}")
    return theirs[name]


def _refuse_others(found: Mapping[str, Tensor], wanted: Mapping[str, Shape]) -> None:
    parts = []
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} is {tuple(found[name].shape)}, expected {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    for title, names in (("missing", missing), ("not expected", extra), ("misshapen", misshapen)):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            parts.append(f"{title}: " + ", ".join(names[:_LISTED]) + more)
    if parts:
        raise CheckpointError("not what the name says. " + "; ".join(parts))


def backbone_of(theirs: State) -> State:
    """The backbone of a detector whose neck and heads are those that were released."""
    heads(theirs)
    inner = join_queries(keep_prefix(theirs, "backbone."))
    return {f"backbone.{name}": value for name, value in inner.items()}


SOURCES = {
    "stvit-r-det-full": Source(
        prefixed("backbone.", DENSE_RULES),
        partial(stvit_r_settings, spec="released-det"),
        prepare=backbone_of,
        keywords=("num_heads",),
        dense=True,
        own_plan=True,
        heads=heads,
    )
}
