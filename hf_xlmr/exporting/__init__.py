"""A model folder as a graph of ONNX or OpenVINO, by Transformers' exporters, run and compared."""

from __future__ import annotations

from hf_xlmr.exporting.runtime_card import RuntimeReport
from hf_xlmr.exporting.runtime_folder import to_onnx, to_openvino

__all__ = ["RuntimeReport", "to_onnx", "to_openvino"]
