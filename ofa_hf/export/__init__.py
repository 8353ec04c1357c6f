"""Export a model as ONNX graphs or with int8 weights."""
