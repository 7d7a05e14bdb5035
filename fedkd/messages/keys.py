"""The message contract between server and silos: message types, records and keys.

Programs outside the project use it too. Keys are kebab-case on the wire.

=================  ==========================================  =================================
message type       sent                                        answered
=================  ==========================================  =================================
``query.describe`` ``config``: run id, transfer-set hash       ``info``: who the silo is
``query.teacher``  ``config``: mode, density, ...;             ``teacher``: state dict or logits;
                   ``transfer``, ``basis``,                    ``familiarity``: log-densities, or
                   ``basis-model``: arrays                     moments; ``info``
``query.distil``   ``config``; ``teacher-0``, ...:             ``arrays``, ``metrics``, ``info``
                   state dicts
``train``          ``arrays``, ``config``                      ``arrays``, ``metrics``, ``info``
``evaluate``       ``arrays``, ``config``                      ``metrics``, or if asked
                                                               ``silos-get``; ``info``
``query.receive``  ``arrays``, ``config``; if it asks for it   ``info``
``query.sums``     ``config``                                  ``info``: sums of a table's columns
=================  ==========================================  =================================
"""

from __future__ import annotations

from typing import Final

DESCRIBE: Final = "query.describe"
TEACHER: Final = "query.teacher"
DISTIL: Final = "query.distil"
TRAIN: Final = "train"
EVALUATE: Final = "evaluate"
RECEIVE: Final = "query.receive"
TABLE_SUMS: Final = "query.sums"

# Records.
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
METRICS: Final = "metrics"
INFO: Final = "info"
TEACHER_RECORD: Final = "teacher"
FAMILIARITY: Final = "familiarity"
TRANSFER: Final = "transfer"
BASIS: Final = "basis"
BASIS_MODEL: Final = "basis-model"
SILOS_GET: Final = "silos-get"
"""Of a reply; in the config of ``evaluate`` it asks for it."""

# Keys of config and info.
RUN_ID: Final = "run-id"
ROUND: Final = "server-round"
TRANSFER_HASH: Final = "transfer-hash"
MODE: Final = "mode"
DENSITY: Final = "density"
DENSITY_KIND: Final = "density-kind"
NEIGHBOURS: Final = "neighbours"
SILO: Final = "silo"
ARCHITECTURE: Final = "architecture"
NUM_PARAMETERS: Final = "num-parameters"
NUM_EXAMPLES: Final = "num-examples"
CLASS_COUNTS: Final = "class-counts"
CHECKPOINT_HASH: Final = "checkpoint-hash"
HOLDS_TRANSFER: Final = "holds-transfer"
FIXED_PART: Final = "fixed-part"
RECEIVES: Final = "receives"
TOKENIZER: Final = "tokenizer"
HOLDS_OUT: Final = "holds-out"
PROBLEM: Final = "problem"
COLUMNS: Final = "columns"

# Keys of query.distil's config: lists with one entry per teacher, and the student.
ARCHITECTURES: Final = "architectures"
ACCURACIES: Final = "accuracies"
STUDENT: Final = "student"

# Keys of arrays.
LOGITS: Final = "logits"
LOG_DENSITY: Final = "log-density"
MOMENT_COUNTS: Final = "class-counts"
MOMENT_MEANS: Final = "class-means"
MOMENT_SECOND: Final = "second-moment"
IMAGES: Final = "images"
BASIS_MEAN: Final = "mean"
BASIS_COMPONENTS: Final = "components"
BASIS_SIDE: Final = "side"
BASIS_FILTERS: Final = "filters"
BASIS_OFFSET: Final = "offset"
BASIS_LIMIT: Final = "limit"

# Values.
MODE_WEIGHTS: Final = "weights"
MODE_LOGITS: Final = "logits"
MODE_NONE: Final = "none"
DENSITY_NONE: Final = "none"
DENSITY_SAMPLE: Final = "sample"
DENSITY_CLASS: Final = "class"
DENSITY_MOMENTS: Final = "moments"

# Metrics of train and evaluate.
LOSS: Final = "loss"
ACCURACY: Final = "accuracy"
MACRO_F1: Final = "macro-f1"
CLASS_LABELS: Final = "class-labels"
CLASS_PREDICTED: Final = "class-predicted"
CLASS_HITS: Final = "class-hits"

# Keys of Flower's run config. Folders are empty on real hosts, which share no disk.
CONFIG_STUDY: Final = "study"
CONFIG_ARM: Final = "arm"
CONFIG_SEED: Final = "seed"
CONFIG_TARGETS: Final = "targets"
CONFIG_RUN_DIR: Final = "run-dir"
CONFIG_RUN_NAME: Final = "run-name"
CONFIG_CACHE_DIR: Final = "cache-dir"
CONFIG_FETCH: Final = "fetch"
"""Model files of runs that are sent by the log, as JSON; the run then asks no silo."""
CONFIG_HOLDER: Final = "holder"
"""On a Ray cluster: the name of what hands out data and models to its nodes."""
CONFIG_MODELS: Final = "models"
"""Models that are measured, as JSON; the run then trains nothing."""

# Key of a SuperNode's --node-config: the path of a deployed silo's own file.
NODE_SILO: Final = "silo"

NO_HASH: Final = "none"
"""Stands for the hash of a model or transfer set where there is none."""

NO_TEACHER: Final = -1
"""The ``student`` of ``query.distil`` where its model is not among the teachers."""


def teacher_record(index: int) -> str:
    """Name the record of ``query.distil`` that holds a teacher's model."""
    return f"{TEACHER_RECORD}-{index}"
