"""A small builder of ONNX graphs."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 23
IR_VERSION = 10

Weights = Literal["float32", "float16", "int8"]
Shape = Sequence[int | str]

_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


class Graph:
    """A graph under construction: values go by their names, and `op` adds a node and names its result.

    `weights` says how matrices are stored. What is stored smaller becomes float32 again when a runtime loads the file
    (it folds the constants), so that it costs download and rounding, but no time in play.
    """

    def __init__(self, name: str, weights: Weights = "float32"):
        self._name, self._weights = name, weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple, str] = {}
        self._count = 0

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}.{self._count}"

    def input(self, name: str, dtype: str, shape: Shape) -> str:
        """Declare an input; a name in the shape stands for any length."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Shape) -> None:
        """Declare a value as the output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """A constant kept as it is; equal ones share a name."""
        array = np.asarray(value, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._fresh("constant")
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, value: Any) -> str:
        """A float32 array [..., columns], stored as the graph's `weights` says; int8 has a scale for each column."""
        array = np.asarray(value, np.float32)
        if self._weights == "float32":
            return self.constant(array)
        if self._weights == "float16":
            name = self._store(array.astype(np.float16))
            return self.op("Cast", name, to=TensorProto.FLOAT)
        scale = np.maximum(np.abs(array).max(axis=tuple(range(array.ndim - 1))), 1e-12) / 127
        name = self._store(np.round(array / scale).astype(np.int8))
        return self.op("Mul", self.op("Cast", name, to=TensorProto.FLOAT), self.constant(scale))

    def _store(self, array: np.ndarray) -> str:
        name = self._fresh("weight")
        self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one result."""
        return self.split(kind, *inputs, results=1, **attributes)[0]

    def split(self, kind: str, *inputs: str, results: int, **attributes: Any) -> list[str]:
        """A node with several results."""
        names = [self._fresh(kind.lower()) for _ in range(results)]
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """A 0 in the shape keeps that dimension, -1 takes what is left."""
        return self.op("Reshape", value, self.constant(shape, "int64"))

    def slice(self, value: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """value[start:end:step] along an axis, bounds as in Python."""
        return self.op("Slice", value, *(self.constant([n], "int64") for n in (start, end, axis, step)))

    def model(self) -> onnx.ModelProto:
        """The finished model, checked.

        Raises:
          onnx.checker.ValidationError: the graph is not valid.
        """
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._initializers)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="melodjinn")
        onnx.checker.check_model(model)
        return model


END = np.iinfo(np.int32).max
"""The end of any axis, for `Graph.slice`."""
