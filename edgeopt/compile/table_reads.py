"""What a lowering remembers of the tables that it reads by rows."""

import numpy as np
from tvm import relax

from edgeopt.compile.lift import digest_array
from edgeopt.compile.site import Site
from edgeopt.compile.tables import LARGE_TABLE, Table
from edgeopt.compile.views import constant_of, look_through, operator_of, shape_of


def note_table(site: Site, values: np.ndarray, indices: relax.Expr) -> None:
    """Remember a large constant table of which the rows at the indices are read."""
    if values.nbytes < LARGE_TABLE:
        return
    root = look_through(indices, site.lookup, scales=False).root
    while operator_of(site.bound(root)) == "relax.astype":
        root = look_through(site.bound(root).args[0], site.lookup, scales=False).root
    constant = constant_of(root)
    parameter = isinstance(root, relax.Var) and site.lookup(root) is None
    site.tables.append(
        Table(
            digest=digest_array(values),
            rows=values.shape[0],
            row_bytes=values.nbytes // values.shape[0],
            source=str(root.name) if parameter else "",
            constant=() if constant is None else tuple(int(i) for i in constant.reshape(-1)),
            reads=int(np.prod(shape_of(indices), dtype=np.int64)),
        )
    )
