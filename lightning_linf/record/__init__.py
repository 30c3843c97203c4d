"""What a monitor measured at one step, as plain data, and the file that keeps it."""

from lightning_linf.record.jsonl import FILE_NAME as FILE_NAME
from lightning_linf.record.jsonl import Reader as Reader
from lightning_linf.record.jsonl import append as append
from lightning_linf.record.jsonl import cut as cut
from lightning_linf.record.record import SCHEMA_VERSION as SCHEMA_VERSION
from lightning_linf.record.record import LogHistogram as LogHistogram
from lightning_linf.record.record import Record as Record
from lightning_linf.record.record import SchemaError as SchemaError
