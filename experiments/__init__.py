"""One file per table or measurement; its docstring says what it measures, how it is run and what was found."""
