"""Whether the condition of a task holds, in as much of CEL as TFX's compiler writes."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from pipeline.vertex.emulation.metadata import Artifacts

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def holds(condition: str, inputs: Artifacts) -> bool:
    """Evaluates a task's condition.

    Args:
        condition: Comparisons of constants and of `inputs.artifacts[KEY].artifacts[INDEX]`'s
            `uri` or `metadata[NAME]`, with `!`, `&&` and `||`.
        inputs: The task's input artifacts.

    Raises:
        ValueError: The condition is none of these.
    """
    # But for these three, CEL's operators are Python's, with the same precedence among them.
    python = re.sub(r"!(?!=)", " not ", condition).replace("&&", " and ").replace("||", " or ")
    artifacts = {
        key: {"artifacts": [{"uri": a["uri"], "metadata": a.get("metadata", {})} for a in listed]}
        for key, listed in inputs.items()
    }

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.Name(id="inputs"):
                return {"artifacts": artifacts}
            case ast.Attribute(value=of, attr=name):
                return value(of)[name]
            case ast.Subscript(value=of, slice=key):
                return value(of)[value(key)]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not value(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(value(part) for part in parts)
            case ast.BoolOp(op=ast.Or(), values=parts):
                return any(value(part) for part in parts)
            case ast.Compare(left=left, ops=[comparison], comparators=[right]):
                if compare := _COMPARISONS.get(type(comparison)):
                    return compare(value(left), value(right))
        raise ValueError(f"{ast.unparse(node)!r} in the condition {condition!r} is not understood")

    try:
        expression = ast.parse(python.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"the condition {condition!r} is not understood: {error}") from None
    return bool(value(expression.body))
