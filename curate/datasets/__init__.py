"""Where candidates and targets come from."""

from curate.datasets.batches import (
    BatchExamples,
    batch_length,
    leaves,
    map_leaves,
    mapped_tensors,
    take,
)
from curate.datasets.collated import (
    Pairs,
    Sequences,
    as_collated,
    is_flattened,
    owners_of,
)
from curate.datasets.columns import (
    match_features,
    read_features,
    refuse_nulls,
    require_columns,
)
from curate.datasets.corrections import ROW, correct_labels, read_corrections
from curate.datasets.csv_files import Use
from curate.datasets.examples import Examples, Scaling, SourceExamples, TensorExamples, drawn
from curate.datasets.files import plain_table
from curate.datasets.forms import as_arrow, names_of, with_columns
from curate.datasets.labels import (
    Classes,
    find_classes,
    holds_names,
    plant_label_noise,
    read_classes,
    read_numbers,
)
from curate.datasets.look import Column, contradicting, look, repeated, row_keys, shared
from curate.datasets.pairs import REFERENCE, PairExamples
from curate.datasets.references import refuse_outside
from curate.datasets.rows import pick_rows
from curate.datasets.session import PREFIX, as_dataset, handing
from curate.datasets.sources import HUB_NAME, fingerprint_of, read
from curate.datasets.streaming import Stream, stream
from curate.datasets.tensors import counted
from curate.datasets.text import (
    cache_file,
    encode_completions,
    encode_messages,
    encode_texts,
    encode_whole,
    truncate,
)
from curate.datasets.tokens import IGNORED, Encoded, TokenExamples

__all__ = [
    "HUB_NAME",
    "IGNORED",
    "PREFIX",
    "REFERENCE",
    "ROW",
    "BatchExamples",
    "Classes",
    "Column",
    "Encoded",
    "Examples",
    "PairExamples",
    "Pairs",
    "Scaling",
    "Sequences",
    "SourceExamples",
    "Stream",
    "TensorExamples",
    "TokenExamples",
    "Use",
    "as_arrow",
    "as_collated",
    "as_dataset",
    "batch_length",
    "cache_file",
    "contradicting",
    "correct_labels",
    "counted",
    "drawn",
    "encode_completions",
    "encode_messages",
    "encode_texts",
    "encode_whole",
    "find_classes",
    "fingerprint_of",
    "handing",
    "holds_names",
    "is_flattened",
    "leaves",
    "look",
    "map_leaves",
    "mapped_tensors",
    "match_features",
    "names_of",
    "owners_of",
    "pick_rows",
    "plain_table",
    "plant_label_noise",
    "read",
    "read_classes",
    "read_corrections",
    "read_features",
    "read_numbers",
    "refuse_nulls",
    "refuse_outside",
    "repeated",
    "require_columns",
    "row_keys",
    "shared",
    "stream",
    "take",
    "truncate",
    "with_columns",
]
