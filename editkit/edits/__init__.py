"""The ledger of a run's edits: kept, applied, undone."""

from editkit.edits.batch import EditBatch, stored
from editkit.edits.ledger import Edits, load_edits
from editkit.edits.weights import WeightSnapshot, apply_batch, apply_delta

__all__ = ["EditBatch", "Edits", "WeightSnapshot", "apply_batch", "apply_delta", "load_edits", "stored"]
