"""onnxnas: fits a trained ONNX network to the accelerator it has to run on."""
