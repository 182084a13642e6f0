"""Hash Python code by what it does, so that an edited comment does not invalidate saved results."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType


def code_hash(*code: str | Path | ModuleType) -> str:
    """Return the sha256 (hex) of code; comments, docstrings, line breaks and the form of quotes do not count.

    Another version of Python may give another hash, because it may write the same code in another form.

    Args:
        code: source texts, files or modules.

    Raises:
        SyntaxError: a source is not Python.
    """
    total = hashlib.sha256()
    for one in code:
        file = Path(str(one.__file__)) if isinstance(one, ModuleType) else one
        total.update(_bare(file if isinstance(file, str) else file.read_text(encoding="utf-8")).encode() + b"\0")
    return total.hexdigest()


@cache  # the stages of a chain use mostly the same modules
def _bare(source: str) -> str:
    """Return the source without comments and without the texts that are no value."""
    return ast.unparse(_WithoutTexts().visit(ast.parse(source)))


class _WithoutTexts(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Drop a docstring, or the text below an attribute."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node
