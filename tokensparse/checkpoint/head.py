"""A checkpoint whose head knows another number of classes: refused, or replaced where asked for."""

import logging

from mmengine.logging import print_log
from torch import nn

from tokensparse.checkpoint.reading import State
from tokensparse.checkpoint.safe_load import CheckpointError


def fit_head(state: State, model: nn.Module, name: str, replace: bool = False) -> State:
    """The tensors of a checkpoint, its head exchanged for the model's own where that is asked for.

    Args:
        state: tensors by our names.
        model: what they are loaded into.
        name: of the file, for messages.
        replace: keep the model's fresh head where the numbers of classes differ; a warning says so.

    Returns:
        ``state``, or a copy with the model's head. Other misfits are left to ``load_state_dict``.

    Raises:
        CheckpointError: the numbers differ and ``replace`` is False.
    """
    own = model.state_dict()
    other = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    heads = [
        k
        for k in other
        if not k.startswith("backbone.")
        and own[k].ndim == state[k].ndim > 0
        and own[k].shape[1:] == state[k].shape[1:]
    ]
    if not heads:
        return state
    first, there, wanted = heads[0], len(state[heads[0]]), len(own[heads[0]])
    if not replace:
        raise CheckpointError(
            f"{name}: {first} has {there} rows (classes), but the model {wanted}; set the model's "
            f"num_classes={there}, or replace_head=True to keep all but the head and train that "
            "anew"
        )
    print_log(
        f"replace_head: {', '.join(heads)} of {name} ({there} classes) are left out; the model's "
        f"own head ({wanted} classes) starts anew",
        "current",
        logging.WARNING,
    )
    return {k: own[k] if k in heads else v for k, v in state.items()}
