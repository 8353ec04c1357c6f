"""For those who serve elsewhere: the network as ONNX files, or with int8 weights."""
