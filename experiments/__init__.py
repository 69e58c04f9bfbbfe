"""One file per table or measurement; each says in its docstring what it costs and what to expect."""
