"""Edited models for others to load: a Hugging Face checkpoint, or a LoRA adapter of PEFT's."""

from editkit.export.adapter import AdapterLayer, export_adapter
from editkit.export.checkpoint import export_checkpoint

__all__ = ["AdapterLayer", "export_adapter", "export_checkpoint"]
