"""Write one record per measured step: a row for each parameter tensor, a column per quantity."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PLUGIN_NAME = "geometry"
SCHEMA_VERSION = 1


def write_per_tensor(
    writer: Any, tag: str, tensor_names: Sequence[str], columns: Mapping[str, Tensor], step: int
) -> None:
    """Write a float32 table as one tensor event.

    Its metadata are JSON: ``schema``, ``tensors`` (names of rows) and ``columns`` (names with their
    widths, in order).

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        tag: Name of the table.
        tensor_names: Names of the T rows.
        columns: By name, of shape (T,) or (T, q).
        step: Of training.
    """
    # Here and not above: whoever logs elsewhere need not have tensorboard.
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    tables = [column.reshape(len(tensor_names), -1) for column in columns.values()]
    widths = [[name, table.shape[1]] for name, table in zip(columns, tables, strict=True)]
    content = {"schema": SCHEMA_VERSION, "tensors": list(tensor_names), "columns": widths}
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(
            plugin_name=PLUGIN_NAME, content=json.dumps(content).encode()
        ),
        data_class=DATA_CLASS_TENSOR,
    )
    table = torch.cat(tables, dim=1).float().numpy()
    value = Summary.Value(tag=tag, tensor=make_tensor_proto(table), metadata=metadata)
    writer.file_writer.add_summary(Summary(value=[value]), step)
