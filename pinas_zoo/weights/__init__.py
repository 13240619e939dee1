"""Weight files: reading without unpickling code, loading with a report, writing atomically."""
