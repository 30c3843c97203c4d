"""Write one record per measured step: a row for each parameter tensor, a column per quantity."""

import json
from typing import Any

import numpy as np

from lightning_linf.panels.table import lay_out
from lightning_linf.quantities import LOG10_GRAD, PREFIX
from lightning_linf.record import SCHEMA_VERSION, LogHistogram, Record
from lightning_linf.tensorboard import PLUGIN_NAME


def write_record(writer: Any, record: Record) -> None:
    """Write a record's table as one tensor event of float32, and its histogram.

    The event's metadata are JSON: ``schema``, ``tensors`` (names of rows), ``whole`` (whether a
    last row is that of all parameters together) and ``columns`` (name, width, label, unit and
    levels of each, in order). Its tag is the record's with a digest of them: parameters may change.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        record: What to write.
    """
    # Here and not above: whoever logs elsewhere need not have tensorboard.
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    table, columns = lay_out(record)
    content = json.dumps({"schema": SCHEMA_VERSION, **columns.to_json()})
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content.encode()),
        data_class=DATA_CLASS_TENSOR,
    )
    series = columns.tag_of_series(record.tag)
    values = [Summary.Value(tag=series, tensor=make_tensor_proto(table), metadata=metadata)]
    if record.histogram is not None:
        # "geometry/heterogeneity_per_tensor/optimizer0" has its histogram beside it.
        _, slash, suffix = record.tag.removeprefix(PREFIX).partition("/")
        tag = LOG10_GRAD.tag + slash + suffix
        values.append(Summary.Value(tag=tag, histo=_histogram(record.histogram)))
    # The writer may have closed its file, as Lightning's does after a training.
    writer._get_file_writer().add_summary(Summary(value=values), record.step)


def _histogram(histogram: LogHistogram) -> Any:
    """Turn counts into the protobuf; sums are those of bins' centres."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    edges, counts = np.asarray(histogram.edges), np.asarray(histogram.counts)
    centers = (edges[1:] + edges[:-1]) / 2
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * centers).sum(),
        sum_squares=(counts * centers**2).sum(),
        # A first, empty bucket: readers take the lower edge of a bucket from the one before it.
        bucket_limit=edges,
        bucket=[0, *counts],
    )
