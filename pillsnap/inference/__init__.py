"""Running a bundle with ONNX Runtime."""
