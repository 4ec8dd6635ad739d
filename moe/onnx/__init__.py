"""The model as one ONNX graph: written and checked beside torch, answering without it.

Exporting, with torch and onnx: `parts` -> `int8` -> `graph` -> `parity`, all called by `export`.
Answering, with numpy, tokenizers and onnxruntime alone: `predictor`, on `bundle`, `routing` and
`readout`.
"""
