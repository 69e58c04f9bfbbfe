"""Where sweeps are sent to: a backend a file, which exports `BACKEND` (ftjax.sweep.backend.Backend)."""
