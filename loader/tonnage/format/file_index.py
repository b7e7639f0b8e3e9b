"""The index of a file with tensors, of either format."""

from __future__ import annotations

from tonnage.format.safetensors import SafetensorsIndex
from tonnage.format.tensors_index import TensorsIndex

FileIndex = TensorsIndex | SafetensorsIndex
