"""The model as ONNX graphs, for runtimes without JAX; written by hand, node by node, for our own few layers."""
