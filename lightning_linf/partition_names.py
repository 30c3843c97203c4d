"""The built-in partitions of a model's parameters: their names, and what each means.

Blockwise Adam keeps one second moment for each block of a partition. With one block for every
parameter it is Adam; with a single block it is SGD with an adaptive step size.
"""

from typing import Literal, NamedTuple

PartitionName = Literal["coordinate", "row", "column", "head", "tensor", "module", "global"]
MeasuredName = Literal[PartitionName, "spectral"]
"""What can be measured: partitions, and "spectral", the geometry of Muon, which has no blocks."""
ModuleFreeName = Literal["coordinate", "tensor", "global"]
"""Partitions that can be made of the parameters alone; the others need the module's structure."""
FusedQKV = Literal["qkv_head", "head_qkv"]
"""Orders of the outputs of one linear map that computes query, key and value of all heads.

"qkv_head": first the queries of all heads, then their keys, then their values (nanoGPT, timm).
"head_qkv": first query, key and value of the first head, and so on (GPT-NeoX, BLOOM).
"""


class Meaning(NamedTuple):
    """What a name stands for."""

    block: str  # what one block is
    optimizer: str = "blockwise"  # whose geometry this is


# From many blocks to few: the same names as in `PartitionName`, in the same order.
FINE_TO_COARSE: dict[PartitionName, Meaning] = {
    "coordinate": Meaning("a single parameter (one number)", "Adam"),
    "row": Meaning(
        "the weights into one output neuron, or one token's embedding, or one entry of a vector"
    ),
    "column": Meaning("the weights out of one input neuron, or a whole vector"),
    "head": Meaning(
        "the query, key, value or output weights of one attention head, or another whole tensor"
    ),
    "tensor": Meaning("a parameter tensor"),
    "module": Meaning("the parameter tensors that one submodule holds directly"),
    "global": Meaning("all parameters together", "SGD"),
}
SPECTRAL: Literal["spectral"] = "spectral"
GEOMETRY_OF: dict[str, str] = {
    **{name: meaning.optimizer for name, meaning in FINE_TO_COARSE.items()},
    SPECTRAL: "Muon",
}
"""Whose geometry each of the names is."""
ENDS: tuple[PartitionName, ...] = ("coordinate", "global")
"""The geometries of Adam and of SGD, which every measurement includes."""
DEFAULT: tuple[PartitionName, ...] = ("coordinate", "row", "tensor", "global")
"""What is measured unless one says otherwise."""
